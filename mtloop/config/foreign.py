"""Read flags of other trainers as settings of mtloop, by the table of foreign_flags.yaml.

Must not know the command line or files: it gets (name, text) entries from both.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import takewhile, zip_longest
from typing import Any

import yaml

from mtloop.config.conversions import CONVERSIONS, Settings
from mtloop.config.fields import BOOLS, LEAVE_ONE_OUT, default_text, read_value
from mtloop.config.settings import FIELDS
from mtloop.config.yaml_file import Entry
from mtloop.errors import FieldError, UserError, without_passwords

KINDS = ("switches", "values", "lists")
MODES = ("do_train", "do_eval", "do_predict")
FILES = ("train_file", "validation_file", "test_file")
Say = Callable[[str], object]


@dataclass(frozen=True)
class ForeignFlag:
    """A flag of another trainer, from foreign_flags.yaml.

    Attributes:
        effect: translated, modes, ignored, changes_result or refused.
        kind: switches, values or lists: the number of its values.
        advice: What to use instead, or what it becomes.
        silent: Values that ask for what is done anyway.
        to: The setting that gets the value.
        set: The settings of a switch that is true.
        convert: The name of the function that returns the settings.
        wins: Whether it replaces a setting that is given as well.
        is_secret: Whether its value is never shown.
    """

    effect: str
    kind: str
    advice: str = ""
    silent: tuple[str, ...] = ()
    to: str = ""
    set: Mapping[str, str] = field(default_factory=dict)
    convert: str = ""
    wins: bool = False
    is_secret: bool = False

    def text(self, value: str | list[str]) -> str:
        """Return a value as the table writes it: true and false for switches."""
        text = " ".join(value) if isinstance(value, list) else value
        return _bool_text(text) if self.kind == "switches" else text


def _bool_text(text: str) -> str:
    return str(BOOLS[text.lower()]).lower() if text.lower() in BOOLS else text


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((files("mtloop.config") / "foreign_flags.yaml").read_text("utf-8"))
    return table


@cache
def foreign_flags() -> dict[str, ForeignFlag]:
    """Read the flags of other trainers, by name."""
    flags: dict[str, ForeignFlag] = {}
    for effect, rows in _table().items():
        for row in rows if effect != "other_values" else ():
            row = dict(row)
            names = [(name, kind) for kind in KINDS for name in row.pop(kind, ())]
            silent = tuple(str(value).lower() for value in row.pop("silent", ()))
            advice = row.pop("note", "") or row.pop("advice", "")
            flags |= {name: ForeignFlag(effect, kind, advice, silent, **row) for name, kind in names}
    return flags


def other_values() -> dict[str, dict[str, str]]:
    """Return the words of other trainers for values of settings, by setting."""
    words: dict[str, dict[str, str]] = _table()["other_values"]
    return words


def find_foreign(name: str) -> tuple[ForeignFlag | None, str, bool]:
    """Find the flag of another trainer that a name stands for.

    Returns:
        The flag, its name, and True if it is negated, as --no_NAME is; None for a setting.

    Raises:
        UserError: for an unknown flag, with the nearest name.
    """
    if name in FIELDS or name == "config":
        return None, name, False
    known = foreign_flags()
    if name in known:
        return known[name], name, False
    positive = name.removeprefix("no_")
    if name.startswith("no_") and positive in known and known[positive].kind == "switches":
        return known[positive], positive, True
    near = difflib.get_close_matches(name, [*FIELDS, "config", *known], n=1)
    raise UserError(f"--{name}: no such flag" + (f", did you mean --{near[0]}?" if near else ". See --help."))


def take_value(flag: ForeignFlag, following: Sequence[str], is_flag: Callable[[str], object]) -> list[str]:
    """Return the words after a flag that are its values; a switch takes only true or false."""
    words = list(takewhile(lambda word: not is_flag(word), following))
    if flag.kind == "lists":
        return words
    is_value = words and (flag.kind == "values" or words[0].lower() in BOOLS)
    return words[:1] if is_value else []


def refuse_secrets(words: Sequence[str]) -> None:
    """Refuse the flags of other trainers that hold a token before another message quotes the value.

    Raises:
        UserError: naming the flag.
    """
    for word, following in zip_longest(words, words[1:], fillvalue="--"):
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        foreign = foreign_flags().get(name) if word.startswith("-") else None
        if foreign is None or not foreign.is_secret:
            continue
        value = value if equals or following.startswith("-") else following
        if foreign.kind == "values" or (value and _bool_text(value) not in foreign.silent):
            raise UserError(f"--{name}: {foreign.advice}.")


def translate(entries: Sequence[Entry], say: Say, warn: Say) -> list[Entry]:
    """Replace the flags of other trainers among the entries of one source by settings.

    Args:
        entries: Settings and flags of other trainers; one that is given twice has its last value.
        say: Called with a line for each flag that became a setting.
        warn: Called with a line for each flag without an effect. The value is not shown: it may be a secret.

    Returns:
        The settings, and the entries of MODES.

    Raises:
        UserError: for a flag that is unknown or refused, an invalid value, or a contradiction.
    """
    latest = {entry.name: entry for entry in entries}
    given = {name: _shown(entry.value) for name, entry in latest.items() if entry.value is not None}
    settings: dict[str, Entry] = {}
    origins: dict[str, str] = {}
    foreign: list[tuple[Entry, ForeignFlag]] = []
    for entry in latest.values():
        flag, name, is_negated = _found(entry)
        if flag is None:
            settings[entry.name] = _in_our_words(entry, say)
        elif entry.value is not None:
            foreign.append((Entry(name, "false" if is_negated else entry.value, entry.where), flag))
    for entry, flag in foreign:
        try:
            found, warning = _settings_of(entry, flag, given)
            _check_contradictions(entry, flag, found, settings, origins)
        except UserError as error:
            raise UserError(f"{entry.prefix}{error}") from None
        if warning:
            warn(f"{entry.prefix}{warning}")
        text = flag.text(_shown(entry.value))
        if flag.effect == "modes":
            settings[entry.name] = Entry(entry.name, text, entry.where)
        shown = " ".join(_flag_text(name, value) for name, value in found.items())
        if found:
            say(without_passwords(f"{entry.prefix}--{entry.name} {text} -> {shown}"))
        for name, value in found.items():
            settings[name] = Entry(name, value, entry.where)
            origins[name] = entry.name
    _drop_files(settings, warn)
    return list(settings.values())


def _drop_files(settings: dict[str, Entry], warn: Say) -> None:
    """Remove the files of a command line of run_translation.py that names a data set too: it trains on the data set."""
    named = [name for name in FILES if name in settings]
    if "dataset_name" in settings and "train_file" in named and any(mode in settings for mode in MODES):
        flags = ", ".join(f"--{name}" for name in named)
        warn(f"{flags}: ignored, as in run_translation.py: --dataset_name is given as well")
        for name in named:
            del settings[name]


def _found(entry: Entry) -> tuple[ForeignFlag | None, str, bool]:
    """Find the flag of an entry; errors begin with its file and line."""
    try:
        return find_foreign(entry.name)
    except UserError as error:
        raise UserError(f"{entry.prefix}{error}") from None


def _shown(value: str | list[str] | None) -> str:
    return " ".join(value) if isinstance(value, list) else value or ""


def _flag_text(name: str, value: str | None) -> str:
    return f"--{name} {value}" if value is not None else f"no --{name} ({default_text(FIELDS[name])})"


def _in_our_words(entry: Entry, say: Say) -> Entry:
    words = other_values().get(entry.name, {})
    ours = words.get(entry.value.lower()) if isinstance(entry.value, str) else None
    if ours is None:
        return entry
    say(f"{entry.prefix}--{entry.name} {entry.value} -> --{entry.name} {ours}")
    return Entry(entry.name, ours, entry.where)


def _settings_of(entry: Entry, flag: ForeignFlag, given: Mapping[str, str]) -> tuple[Settings, str]:
    """Return the settings that a flag becomes, and the warning about one without an effect."""
    text = flag.text(_shown(entry.value))
    if flag.effect in ("translated", "modes") and flag.kind == "switches" and text not in ("true", "false"):
        raise FieldError(entry.name, "expected true or false", got=repr(text))
    if text.lower() in flag.silent or flag.effect == "modes":
        return {}, ""
    if flag.effect == "translated":
        if flag.convert:
            return CONVERSIONS[flag.convert](entry.name, text, given), ""
        return {flag.to: text} if flag.to else dict(flag.set) if text == "true" else {}, ""
    if flag.effect == "refused":
        if flag.is_secret:
            raise UserError(f"--{entry.name}: {flag.advice}.")
        raise FieldError(entry.name, "not supported", got=text, remedy=f"{flag.advice[0].upper()}{flag.advice[1:]}.")
    effect = "is IGNORED AND THE RESULT CHANGES" if flag.effect == "changes_result" else "is ignored"
    return {}, f"--{entry.name} {effect}: {flag.advice}"


def _check_contradictions(
    entry: Entry, flag: ForeignFlag, found: Settings, settings: Mapping[str, Entry], origins: Mapping[str, str]
) -> None:
    """Refuse a flag whose setting is given as well, by itself or by another flag, with another value."""
    for name, value in found.items():
        other = settings.get(name)
        if other is None or (flag.wins and name not in origins):
            continue
        values = [read_value(FIELDS[name], _shown(text)) for text in (value, other.value)]
        if values[0] != values[1]:
            first = origins.get(name) or f"{name} {_shown(other.value)}"
            raise FieldError(entry.name, f"--{first} is given as well", got=_shown(entry.value), remedy=LEAVE_ONE_OUT)
