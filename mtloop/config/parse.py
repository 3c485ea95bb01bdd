"""Read flags, YAML files and recipes into a checked Config. Must not import torch or transformers: --help is instant.

The settings of a recipe are read as flags are; a flag on the command line replaces that of the recipe.
"""

import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any, NoReturn

import yaml

import mtloop
from mtloop.config.fields import (
    AUTO,
    BOOLS,
    MAX_CHOICES_IN_PLACEHOLDER,
    Field,
    help_text,
    is_unicode,
    kind_of,
    read_value,
)
from mtloop.config.settings import DATA_FIELDS, FIELDS, GROUPS, MODEL_FIELDS, Config, check_complete
from mtloop.config.yaml_file import MAPPING_FIELD, Entry, read_source, recipe_names
from mtloop.errors import FieldError, UserError, without_passwords

DEMO = "demo"
VERSION_LINE = f"mtloop {mtloop.__version__}"
FLAG = re.compile(r"--[A-Za-z][\w-]*(=.*)?", re.DOTALL)
# Settings that say the same in different ways: one that is given replaces those of the other ways in the recipe.
ALTERNATIVES = (
    # the size of an update
    (
        ("tokens_per_update",),
        ("sentences_per_update",),
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
    # the languages
    (("source_lang", "target_lang", "source_key", "target_key"), ("pairs",)),
)

Warn = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class ForeignFlag:
    """A flag of another trainer, from foreign_flags.yaml.

    Attributes:
        effect: ignored, changes_result or refused.
        values: switches, values or lists: the number of its values.
        advice: What to use instead.
    """

    effect: str
    values: str
    advice: str


@cache
def foreign_flags() -> dict[str, ForeignFlag]:
    """Read the flags of other trainers that are accepted or refused, by name."""
    table = yaml.safe_load((files("mtloop.config") / "foreign_flags.yaml").read_text("utf-8"))
    return {
        name: ForeignFlag(effect, values, row["advice"])
        for effect, rows in table.items()
        for row in rows
        for values in ("switches", "values", "lists")
        for name in row.get(values, ())
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise an error of argparse as one line: `--num_beams: expected one argument`."""
        raise UserError(" ".join(message.split()).removeprefix("argument "))


def build_parser() -> argparse.ArgumentParser:
    """Create the parser: every setting, and --config. It leaves all values text, and flags that are not given out."""
    prog = "train.py" if os.path.basename(sys.argv[0]) == "train.py" else f"{mtloop.program()} train"
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [RECIPE | FILE.yaml] [--flag value ...]",
        description=f"Train a translation model. Recipes: {', '.join(recipe_names())}. Without flags: the demo.",
        epilog="Other flags of run_translation*.py and TrainingArguments are accepted with advice on what to use.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    # The pattern of argparse takes -1e-3 for a flag.
    parser._negative_number_matcher = re.compile(r"-\d*\.?\d+([eE][-+]?\d+)?$")
    parser.add_argument("--version", action="version", version=VERSION_LINE, help="print the version and exit")
    parser.add_argument("--config", metavar="RECIPE", help="recipe or YAML file, as the first word (default: demo)")
    for kind in GROUPS.values():
        section = parser.add_argument_group(kind.title)
        for field in dataclasses.fields(kind):
            section.add_argument(f"--{field.name}", help=help_text(field), metavar=_metavar(field), **_nargs(field))
    return parser


def _nargs(field: Field) -> dict[str, Any]:
    if kind_of(field) is bool:
        return {"nargs": "?", "const": "true"}
    return {"nargs": "+"} if kind_of(field) is list else {}


def _metavar(field: Field) -> str:
    if choices := field.metadata["choices"]:
        return f"{{{','.join(choices)}}}" if len(choices) <= MAX_CHOICES_IN_PLACEHOLDER else "NAME"
    kind = kind_of(field)
    unit = field.metadata["unit"] or ("text" if kind in (str, list) else kind.__name__)
    return unit.upper() + (f"|{AUTO}" if field.metadata["may_be_auto"] else "")


def parse_config(argv: Sequence[str] | None, warn: Warn | None = None) -> Config:
    """Read a command line.

    Args:
        argv: The words after the name of the program; None and [] are the demo. sys.argv is not read.
        warn: Called with a line for each accepted flag of another trainer; by default the line is printed to stderr.

    Raises:
        UserError: one line with the flag or the line of the file, the value and the remedy.
        SystemExit: with status 0, after --help or --version.
    """
    tokens = list(argv or [])
    parser = build_parser()
    if "-h" in tokens or "--help" in tokens:
        parser.print_help()
        raise SystemExit(0)
    if "--version" in tokens:
        print(VERSION_LINE)
        raise SystemExit(0)
    warn = warn or _print_warning
    namespace, words = parser.parse_known_args(_own_tokens(tokens, warn))
    values = vars(namespace)
    stray = next((word for word in words if word.startswith("-")), None)
    if stray is not None:
        raise UserError(f"{stray}: no such flag. See --help; write a value that begins with - as --flag=value.")
    if "config" in values:
        words.append(values.pop("config"))
    if len(words) > 1:
        raise UserError(f"{words[1]}: only one recipe or file is possible, and {words[0]} is given. Leave one out.")
    given = {name: _value_of(Entry(name, text)) for name, text in values.items()}
    return _assemble(given, words[0] if words else None, warn)


def config_from(value: Config | Mapping[str, Any] | Sequence[str] | str | None) -> Config:
    """Convert what a notebook may pass: a Config, a dict of flag names, a list of flags, the name of a recipe, or None.

    The values of a dict are Python values, `{"num_beams": 4, "train_file": ["a.tsv"]}`; the key `config` is a recipe.

    Raises:
        UserError: as parse_config does.
    """
    if isinstance(value, Config):
        check_complete(value)
        return value
    if not isinstance(value, Mapping):
        return parse_config([value] if isinstance(value, str) else value)
    entries = [_entry(name, one) for name, one in value.items()]
    source = next((entry.value for entry in entries if entry.name == "config"), None)
    assert source is None or isinstance(source, str)
    given = _read_entries((entry for entry in entries if entry.name != "config"), _print_warning)
    return _assemble(given, source, _print_warning)


def _assemble(given: dict[str, Any], source: str | None, warn: Warn) -> Config:
    """Create a config of given values and those of a recipe, which is the demo if neither model nor data is given."""
    if source is None and all(given.get(name) is None for name in (*MODEL_FIELDS, *DATA_FIELDS)):
        source = DEMO
    recipe, entries = read_source(source) if source is not None else (None, [])
    values = _merge(_read_entries(entries, warn), given)
    try:
        groups = {
            group: kind(**{one.name: values[one.name] for one in dataclasses.fields(kind) if one.name in values})
            for group, kind in GROUPS.items()
        }
        config = Config(**groups, recipe=recipe)
        check_complete(config)
    except FieldError as error:
        where = next((entry.where for entry in entries if entry.name == error.name and error.name not in given), None)
        raise UserError(f"{where}: {error}" if where else str(error)) from None
    return config


def _merge(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    # In the stored configuration of a run both are valid: the sizes per device, and their product.
    if given.get("sentences_per_update") and given.get("per_device_train_batch_size"):
        raise FieldError(
            "sentences_per_update",
            "--per_device_train_batch_size gives the size of an update as well",
            got=given["sentences_per_update"],
            remedy="Leave one out.",
        )
    kept = dict(recipe)
    for ways in ALTERNATIVES:
        chosen = [way for way in ways if any(given.get(name) is not None for name in way)]
        for way in ways:
            if chosen and way not in chosen:
                for name in way:
                    kept.pop(name, None)
    return {**kept, **given}


def refuse_secrets(words: Sequence[str]) -> None:
    """Refuse the flags of other trainers that hold a token before another message quotes the value.

    Raises:
        UserError: naming the flag.
    """
    for word in words:
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        foreign = foreign_flags().get(name) if word.startswith("-") else None
        if foreign is not None and foreign.effect == "refused":
            raise UserError(f"--{name}: {foreign.advice}")


def _own_tokens(tokens: list[str], warn: Warn) -> list[str]:
    """Remove accepted flags of other trainers and their values, refuse unknown flags, replace hyphens in names."""
    refuse_secrets(tokens)
    kept: list[str] = []
    start = 0
    while start < len(tokens):
        token = tokens[start]
        start += 1
        if not FLAG.fullmatch(token):
            kept.append(token)
            continue
        flag, equals, value = token[2:].partition("=")
        name = flag.replace("-", "_")
        foreign = _foreign(name, "", warn)
        if foreign is None:
            kept.append(f"--{name}{equals}{value}")
        elif not equals:
            following = list(takewhile(lambda word: not FLAG.fullmatch(word), tokens[start:]))
            if foreign.values != "lists":
                following = following[:1]
            if foreign.values == "switches" and following and following[0].lower() not in BOOLS:
                following = []  # the recipe
            start += len(following)
    return kept


def _foreign(name: str, where: str, warn: Warn) -> ForeignFlag | None:
    """Return the flag of another trainer of this name, after a warning; None for a setting.

    The value of the flag is never shown: it may be a secret.

    Raises:
        UserError: for an unknown flag, with the nearest name, and a refused one.
    """
    if name in FIELDS or name == "config":
        return None
    known = foreign_flags()
    foreign = known.get(name) or known.get(name.removeprefix("no_"))
    if foreign is None or (name not in known and foreign.values != "switches"):
        near = difflib.get_close_matches(name, [*FIELDS, "config", *known], n=1)
        raise UserError(f"--{name}: no such flag" + (f", did you mean --{near[0]}?" if near else ". See --help."))
    if foreign.effect == "refused":
        raise UserError(f"--{name}: {foreign.advice}")
    effect = "is IGNORED AND THE RESULT CHANGES" if foreign.effect == "changes_result" else "is ignored"
    warn(f"{where}--{name} {effect}: {foreign.advice}")
    return foreign


def _read_entries(entries: Iterable[Entry], warn: Warn) -> dict[str, Any]:
    """Convert the settings of a file or a dict as flags are."""
    values = {}
    for entry in entries:
        where = f"{entry.where}: " if entry.where else ""
        if entry.name == "config":
            raise UserError(f"{where}--config: a file cannot load another one. Name it on the command line.")
        try:
            if _foreign(entry.name, where, warn) is None:
                values[entry.name] = _value_of(entry)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
    return values


def _value_of(entry: Entry) -> Any:
    field = FIELDS[entry.name]
    for text in entry.value if isinstance(entry.value, list) else [entry.value or ""]:
        if not is_unicode(text):
            raise FieldError(entry.name, "not Unicode text", got=ascii(text), remedy="Give it in UTF-8.")
        if "\0" in text:
            raise FieldError(entry.name, "expected text without a NUL character", got=ascii(text))
        if (shown := without_passwords(text)) != text:
            raise FieldError(
                entry.name,
                "a password in a URL, which config.yaml would keep",
                got=shown,
                remedy="Leave it out.",
            )
    if isinstance(entry.value, list):
        return list(entry.value)
    return None if entry.value is None else read_value(field, entry.value)


def _entry(key: object, value: Any) -> Entry:
    """Write a Python value as the text that a flag would have."""
    name = str(key).removeprefix("--").replace("-", "_")
    if value is None:
        return Entry(name, None)
    if isinstance(value, Mapping) and name == MAPPING_FIELD:
        return Entry(name, json.dumps(dict(value)))
    if isinstance(value, (list, tuple)):
        return Entry(name, [str(item) for item in value])
    if isinstance(value, (str, int, float, os.PathLike)):
        return Entry(name, str(value))
    raise UserError(f"--{name}: expected text, a number, a bool or a list (got {type(value).__name__}).")


def _print_warning(line: str) -> None:
    print(f"mtloop: warning: {line}", file=sys.stderr)
