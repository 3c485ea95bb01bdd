"""How a config field is declared and checked: its help line, its range, and whether a resumed run may change it.

Owns the metadata keys `same_run`, `check` and `parse`. Must not know which fields exist.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from mtloop.errors import FieldError

Check = Callable[[Any], str]

# Metadata that is ours; everything else in a field's metadata is a keyword of argparse's add_argument.
OWN_METADATA = ("same_run", "check", "parse")
AUTO = "auto"


def setting(
    default: Any,
    help: str,
    *,
    same_run: bool = False,
    check: Check | None = None,
    parse: Callable[[str], Any] | None = None,
    **options: Any,
) -> Any:
    """Declare one field of a config group.

    Args:
        default: The value when nobody gives one; None is explained by the help line.
        help: What the field means, with its unit.
        same_run: True when a run folder may only be resumed with the same value.
        check: Takes the value, returns what to give instead, or "" when the value is fine. Not asked about None.
        parse: Reads the flag's text where its type alone does not say how.
        **options: Further keywords of argparse's add_argument.
    """
    metadata = {"help": help, "same_run": same_run, "check": check, "parse": parse, **options}
    return dataclasses.field(default=default, metadata=metadata)


def is_number(value: object) -> bool:
    """Tell whether the value is an int or a float that is not NaN; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def at_least(lowest: int) -> Check:
    """Accept whole numbers from `lowest` on."""
    remedy = f"give a whole number of at least {lowest}"
    return lambda value: "" if is_number(value) and isinstance(value, int) and value >= lowest else remedy


def at_least_or_auto(lowest: int) -> Check:
    """Accept whole numbers from `lowest` on, and the word auto."""
    return lambda value: (
        "" if value == AUTO or at_least(lowest)(value) == "" else f"{at_least(lowest)(None)}, or {AUTO}"
    )


def number_or_auto(text: str) -> int | str:
    """Read a whole number; anything else is left for the field's check."""
    try:
        return int(text)
    except ValueError:
        return text


def between(lowest: int, highest: int) -> Check:
    """Accept whole numbers from `lowest` to `highest`: beyond it a machine's memory or a library gives way."""
    remedy = f"give a whole number from {lowest} to {highest}"
    return lambda value: "" if at_least(lowest)(value) == "" and value <= highest else remedy


def above_zero(value: Any) -> str:
    """Accept finite numbers above 0."""
    return "" if is_number(value) and 0 < value < math.inf else "give a number above 0"


def zero_or_more(value: Any) -> str:
    """Accept finite numbers from 0 on."""
    return "" if is_number(value) and 0 <= value < math.inf else "give 0 or a number above it"


def zero_to_inf(value: Any) -> str:
    """Accept numbers from 0 on, infinity among them."""
    return "" if is_number(value) and value >= 0 else "give 0 or a number above it"


def below_one(value: Any) -> str:
    """Accept numbers in [0, 1)."""
    return "" if is_number(value) and 0 <= value < 1 else "give a number from 0 to below 1"


def between_zero_and_one(value: Any) -> str:
    """Accept numbers in (0, 1)."""
    return "" if is_number(value) and 0 < value < 1 else "give a share between 0 and 1, as 0.1"


def multiple_of_eight(value: Any) -> str:
    """Accept multiples of 8 from 8 to a million."""
    return "" if between(8, 1_000_000)(value) == "" and value % 8 == 0 else "give a multiple of 8, as 8000"


def not_empty(value: Any) -> str:
    """Accept texts that are not blank."""
    return "" if isinstance(value, str) and value.strip() else "give a name, or leave the flag out"


def files(value: Any) -> str:
    """Accept a list of at least one file name."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return "" if is_list and not any(not_empty(item) for item in value) else "give one file or more"


def names(value: Any) -> str:
    """Accept a list of at least one name; an item may be several with commas between."""
    is_list = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return "" if is_list and separate(value) else "give one name or more, with commas or spaces between"


def separate(items: list[str]) -> list[str]:
    """Split each item at its commas."""
    return [name.strip() for item in items for name in item.split(",") if name.strip()]


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the values that a `Literal[...]` or `Literal[...] | None` admits, () for any other type."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


class Group:
    """What the config groups share: each field is checked on its own as the group is made."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            FieldError: A ValueError naming the field, the value and the remedy.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            check_field(field, getattr(self, field.name))


def check_field(field: dataclasses.Field[Any], value: Any) -> None:
    """Check one value against its field's choices and range.

    Raises:
        FieldError: The value is none that the field takes.
    """
    if value is None:
        if field.default is not None:
            raise FieldError(field.name, f"None: give a value, or leave it out for {field.default!r}")
        return
    choices = choices_of(field.type)
    if choices and value not in choices:
        raise FieldError(field.name, f"{value!r}: give one of {', '.join(map(str, choices))}")
    check = field.metadata.get("check")
    remedy = check(value) if check else ""
    if remedy:
        raise FieldError(field.name, f"{value!r}: {remedy}")
