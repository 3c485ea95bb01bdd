"""Declare a setting with its help, unit and bounds; read its value from text and check it.

Must not know which settings exist.
"""

import dataclasses
import types
from typing import Any, get_args, get_origin

from mtloop.errors import FieldError

AUTO = "auto"
LEAVE_ONE_OUT = "Leave one out."
MAX_CHOICES_IN_PLACEHOLDER = 5
# Upper bounds of settings that have no natural one: beyond them a number is a typing error.
MAX_COUNT = 1_000_000_000
MAX_BATCH_TOKENS = 10_000_000  # of one forward pass
MAX_SEED = 2**64 - 1  # torch.manual_seed takes no more
MAX_SECONDS = 1_000_000  # gloo counts milliseconds in 31 bits, which is 25 days
BOOLS = {
    **dict.fromkeys(("true", "yes", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0"), False),
}

Field = dataclasses.Field[Any]


def setting(
    default: Any,
    help: str,
    *,
    unset: str = "",
    unit: str = "",
    same_run: bool = False,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    multiple_of: int | None = None,
    may_be_auto: bool = False,
    may_be_blank: bool = False,
    is_split: bool = False,
) -> Any:
    """Declare a field of a group of settings.

    Args:
        default: The default value.
        help: The meaning, in one line.
        unset: The meaning of the default None.
        unit: The unit of a number, shown as the placeholder of its value.
        same_run: If True, a run folder can only be resumed with the same value.
        choices: The valid words.
        minimum: The smallest valid number; `above` excludes its bound.
        maximum: The largest valid number; `below` excludes its bound. Every number has one of them.
        above: See minimum.
        below: See maximum.
        multiple_of: A divisor of every valid number.
        may_be_auto: If True, the word auto is valid as well.
        may_be_blank: If True, blank text is valid.
        is_split: If True, the items of a list are split at commas, and repeated ones are removed.
    """
    metadata = dict(locals())  # the arguments
    return dataclasses.field(default=metadata.pop("default"), metadata=metadata)


class Group:
    """A group of settings, each checked when the group is created.

    Attributes:
        title: The heading of the group in --help.
    """

    title = ""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            FieldError: naming the flag, the value and what is valid.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.metadata["is_split"] and isinstance(value, list):
                value = separate(value)
                object.__setattr__(self, field.name, value)
            check_value(field, value)


def separate(items: list[str]) -> list[str]:
    """Split each item at its commas; drop blank and repeated parts."""
    parts = [part.strip() for item in items for part in item.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def check_value(field: Field, value: Any) -> None:
    """Check a value against the type, the choices and the bounds of its field.

    Raises:
        FieldError: for an invalid value.
    """
    if value is None and field.default is None:
        return
    problem = f"expected {valid_values(field)}"
    if value is None:
        remedy = f"Leave it out for the default, {default_text(field)}."
        raise FieldError(field.name, problem, got="no value", remedy=remedy)
    if not _is_valid(field, value):
        is_blank = value == [] or (isinstance(value, str) and not value.strip())
        remedy = "Leave it out for the default." if is_blank else ""
        raise FieldError(field.name, problem, got=repr(value), remedy=remedy)


def _is_valid(field: Field, value: Any) -> bool:
    bounds, kind = field.metadata, kind_of(field)
    if kind is bool:
        return isinstance(value, bool)
    if kind is list:
        is_text = isinstance(value, (list, tuple)) and all(isinstance(item, str) and item.strip() for item in value)
        return is_text and len(value) > 0
    if kind is str:
        is_text = isinstance(value, str) and bool(value.strip() or bounds["may_be_blank"])
        return is_text and (not bounds["choices"] or value in bounds["choices"])
    if bounds["may_be_auto"] and value == AUTO:
        return True
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return False
    return (
        (bounds["minimum"] is None or value >= bounds["minimum"])
        and (bounds["above"] is None or value > bounds["above"])
        and (bounds["maximum"] is None or value <= bounds["maximum"])
        and (bounds["below"] is None or value < bounds["below"])
        and (bounds["multiple_of"] is None or value % bounds["multiple_of"] == 0)
    )


def kind_of(field: Field) -> type:
    """Return the type of a field without its None: bool, int, float, str or list."""
    hint: Any = get_args(field.type)[0] if isinstance(field.type, types.UnionType) else field.type
    kind: type = get_origin(hint) or hint
    return kind


def valid_values(field: Field) -> str:
    """Describe the valid values of a field, as "a whole number from 1 to 128"."""
    bounds, kind = field.metadata, kind_of(field)
    if bounds["choices"]:
        return f"one of {', '.join(bounds['choices'])}"
    if kind in (bool, str, list):
        return {bool: "true or false", str: "text", list: "one or more values"}[kind]
    number = "a whole number" if kind is int else "a number"
    if bounds["multiple_of"]:
        number = f"a multiple of {bounds['multiple_of']}"
    if bounds["minimum"] is not None and bounds["maximum"] is not None:
        limits = [f"from {bounds['minimum']} to {bounds['maximum']}"]
    else:
        words = {"minimum": "of at least", "above": "above", "maximum": "at most", "below": "below"}
        limits = [f"{word} {bounds[name]}" for name, word in words.items() if bounds[name] is not None]
    return f"{number} {' and '.join(limits)}" + (f", or {AUTO}" if bounds["may_be_auto"] else "")


def default_text(field: Field) -> str:
    """Describe the default of a field."""
    if field.default is None:
        return str(field.metadata["unset"])
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def help_text(field: Field) -> str:
    """Return the help of a field, with its choices if they are too many for a placeholder, and its default."""
    choices = field.metadata["choices"]
    words = f": {', '.join(choices)}" if len(choices) > MAX_CHOICES_IN_PLACEHOLDER else ""
    return f"{field.metadata['help']}{words} (default: {default_text(field)})"


def is_unicode(text: str) -> bool:
    """Return True if UTF-8 can encode the text.

    JSON and YAML can spell half a surrogate pair, and Python reads a byte of the command line that is not UTF-8 as one.
    """
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_value(field: Field, text: str) -> Any:
    """Convert text to the type of a field; text that cannot be converted stays text, which check_value refuses."""
    kind = kind_of(field)
    if kind is list:
        return [text]
    if kind is bool:
        return BOOLS.get(text.lower(), text)
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        return text
