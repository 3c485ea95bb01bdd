"""Flags, YAML and recipes in, a checked Config out. Owns the parser; no torch, so that --help answers at once.

A recipe's settings are read as flags are and lie below the command line's: a flag replaces what the recipe says.
"""

import argparse
import copy
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser

import mtloop
from mtloop.config import accepted
from mtloop.config.fields import OWN_METADATA
from mtloop.config.settings import DATA_FIELDS, DEFAULTS, GROUPS, MODEL_FIELDS, Config, check_complete, group_fields
from mtloop.config.yaml_file import MAPPING_FIELD, Entry, read_source, recipe_names
from mtloop.errors import FieldError, UserError

DEMO = "demo"
VERSION_LINE = f"mtloop {mtloop.__version__}"
FLAG = re.compile(r"--[A-Za-z][\w-]*(=.*)?", re.DOTALL)
UNSET = object()

LIST_FIELDS = frozenset({"train_file", "validation_file", "test_file", "freeze", "lora_target_modules", "metrics"})
# One of these families says how large an update is; a flag of one replaces a recipe's of another.
BUDGET_FAMILIES = (
    ("tokens_per_update",),
    ("sentences_per_update",),
    ("per_device_train_batch_size", "gradient_accumulation_steps"),
)
# Likewise for what is translated into what.
LANGUAGE_FAMILIES = (("source_lang", "target_lang"), ("pairs",))

Warn = Callable[[str], object]


class _HelpFormatter(argparse.HelpFormatter):
    """Shows each flag once, its type, and its default unless that is None: then the help text says what None means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or action.default in (None, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        name = getattr(action.type, "__name__", "text")
        return {"str": "TEXT", "string_to_bool": "BOOL", "number_or_auto": "INT|auto"}.get(name, name.upper())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0 or not action.option_strings:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {values}"


class _Parser(HfArgumentParser):
    """HfArgumentParser whose errors are UserErrors and which leaves our own metadata out of add_argument."""

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: Any) -> None:
        # A copy, because the base class narrows field.type in place (X | None becomes X).
        field = copy.copy(field)
        parse = field.metadata.get("parse")
        if parse is not None:
            parser.add_argument(f"--{field.name}", type=parse, default=field.default, help=field.metadata["help"])
            return
        field.metadata = {key: value for key, value in field.metadata.items() if key not in OWN_METADATA}
        HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as one line: `--num_beams: invalid int value: 'x'`."""
        raise UserError(re.sub(r"^argument (--\w+)(/--[\w-]+)*: ", r"\1: ", " ".join(message.split())))


def build_parser() -> HfArgumentParser:
    """Make the parser: every field of every group, and --config."""
    groups: Any = list(GROUPS.values())
    prog = "train.py" if os.path.basename(sys.argv[0]) == "train.py" else f"{mtloop.program()} train"
    parser = _Parser(
        groups,
        prog=prog,
        usage=f"{prog} [RECIPE | FILE.yaml] [--flag value ...]",
        description=f"Train a translation model. Recipes: {', '.join(recipe_names())}. No flags: the demo.",
        epilog="Other flags of run_translation*.py and TrainingArguments are taken with a line on what to use instead.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    # argparse's own pattern takes -1e-3 for a flag.
    parser._negative_number_matcher = re.compile(r"-\d*\.?\d+([eE][-+]?\d+)?$")
    parser.add_argument("--version", action="version", version=VERSION_LINE, help="print the version and exit")
    parser.add_argument("--config", metavar="RECIPE", help="recipe or YAML file, as the first word (none: demo)")
    return parser


def parse_config(argv: Sequence[str] | None, warn: Warn | None = None) -> Config:
    """Read a command line.

    Args:
        argv: The words after the program's name; None or none at all is the demo. sys.argv is not read for them.
        warn: Called with one line for each flag that is accepted and has no meaning here; default: print to stderr.

    Raises:
        UserError: One line naming the flag or the file's line, the value and the remedy.
        SystemExit: Status 0, after --help or --version.
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
    kept = _screen(tokens, warn)
    values, words = _read_flags(parser, kept)
    source = values.pop("config", None)
    if source is not None:
        words.append(source)
    if len(words) > 1:
        raise UserError(f"{words[1]}: one recipe or file only, and {words[0]} is given")
    return _assemble(parser, values, words[0] if words else None, warn)


def config_from(value: Config | Mapping[str, Any] | Sequence[str] | str | None) -> Config:
    """Take what a notebook may pass: a Config, a dict of flag names, a list of flags, a recipe's name or None.

    A dict's values are Python values, `{"num_beams": 4, "train_file": ["a.tsv"]}`; its key `config` names a recipe.

    Raises:
        UserError: As `parse_config`.
    """
    if isinstance(value, Config):
        check_complete(value)
        return value
    if not isinstance(value, Mapping):
        return parse_config([value] if isinstance(value, str) else value)
    parser = build_parser()
    values = _read_entries(parser, [_entry(name, one) for name, one in value.items()], _print_warning)
    return _assemble(parser, values, values.pop("config", None), _print_warning)


def _assemble(parser: HfArgumentParser, given: dict[str, Any], source: str | None, warn: Warn) -> Config:
    """Lay the given values over those of their recipe (the demo when nothing else is named) and build the config."""
    if source is None and all(given.get(name) is None for name in (*MODEL_FIELDS, *DATA_FIELDS)):
        source = DEMO
    recipe, entries = read_source(source) if source is not None else (None, [])
    below = _read_entries(parser, entries, warn)
    origins = {entry.name: entry.where for entry in entries if entry.name not in given}
    values = _overlay(below, given)
    try:
        groups = {
            group: kind(**{name: values[name] for name in _names(kind) if name in values})
            for group, kind in GROUPS.items()
        }
        config = Config(**groups, recipe=recipe)
        check_complete(config)
    except FieldError as error:
        where = origins.get(error.name)
        raise UserError(f"{where}: {error}" if where else str(error)) from None
    return config


def _names(kind: type) -> list[str]:
    return [one.name for group, one in group_fields() if GROUPS[group] is kind]


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge; an update size given above takes the other ways of giving it, below, with it."""
    # Below, in the configuration that a run stored, the two stand together: what was asked and what it came to.
    if above.get("sentences_per_update") and above.get("per_device_train_batch_size"):
        raise UserError(
            f"--sentences_per_update {above['sentences_per_update']}: --per_device_train_batch_size is given too, and "
            "both say how large an update is; leave one out"
        )
    dropped: set[str] = set()
    for kind in (BUDGET_FAMILIES, LANGUAGE_FAMILIES):
        if any(above.get(name) is not None for family in kind for name in family):
            families = [family for family in kind if not any(above.get(name) is not None for name in family)]
            dropped |= {name for family in families for name in family}
    return {**{name: value for name, value in below.items() if name not in dropped}, **above}


def _screen(tokens: list[str], warn: Warn) -> list[str]:
    """Take accepted flags and their values out, refuse unknown ones, write the rest with underscores."""
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
        if _is_own(name, "", warn):
            kept.append(f"--{name}{equals}{value}")
        elif not equals:
            start += accepted.num_values(name, _until_flag(tokens[start:]))
    return kept


def _until_flag(tokens: list[str]) -> list[str]:
    end = next((index for index, token in enumerate(tokens) if FLAG.fullmatch(token)), len(tokens))
    return tokens[:end]


def _is_own(name: str, where: str, warn: Warn) -> bool:
    """Tell a flag of ours from an accepted one, which is warned about.

    Raises:
        UserError: The flag is refused or unknown; then the nearest name is given.
    """
    if name in DEFAULTS or name == "config":
        return True
    line = accepted.advice(name)
    if line is not None:
        warn(f"{where}{line}")
        return False
    names = [*DEFAULTS, "config", *accepted.SWITCHES, *accepted.VALUES, *accepted.LISTS]
    near = difflib.get_close_matches(name, names, n=1)
    raise UserError(f"--{name}: no such flag" + (f", did you mean --{near[0]}?" if near else "; see --help"))


def _read_flags(parser: HfArgumentParser, tokens: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the flags that were given, and the words that belong to none."""
    # A preset namespace keeps the defaults out: what is still UNSET was not given.
    preset = argparse.Namespace(**dict.fromkeys((*DEFAULTS, "config"), UNSET))
    namespace, words = parser.parse_known_args(tokens, preset)
    stray = next((word for word in words if word.startswith("-")), None)
    if stray is not None:
        raise UserError(f"{stray}: no such flag; see --help, and write a value that begins with - as --flag=value")
    return {name: value for name, value in vars(namespace).items() if value is not UNSET}, words


def _read_entries(parser: HfArgumentParser, entries: Iterable[Entry], warn: Warn) -> dict[str, Any]:
    """Convert settings of a file or a dict as flags are, naming the line of one that is wrong."""
    values = {}
    for entry in entries:
        where = f"{entry.where}: " if entry.where else ""
        try:
            if entry.name == "config" and where:
                raise UserError("--config: a file cannot load another one")
            if _is_own(entry.name, where, warn):
                values[entry.name] = _convert(parser, entry)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
    return values


def _convert(parser: HfArgumentParser, entry: Entry) -> Any:
    name, value = entry.name, entry.value
    if value is None:
        if DEFAULTS.get(name) is not None:
            raise UserError(f"--{name}: no value: give one, or leave it out for {DEFAULTS[name]}")
        return None
    if isinstance(value, list):
        if name not in LIST_FIELDS:
            raise UserError(f"--{name}: takes one value, not a list")
        return [item for one in value for item in _convert(parser, Entry(name, one))]
    return _read_flags(parser, [f"--{name}={value}"])[0][name]


def _entry(key: object, value: Any) -> Entry:
    """Write a Python value as the text that a flag would have."""
    name = str(key).removeprefix("--").replace("-", "_")
    if value is None:
        return Entry(name, None)
    if isinstance(value, Mapping):
        if name != MAPPING_FIELD:
            raise UserError(f"--{name}: takes a value, not a dict")
        return Entry(name, json.dumps(dict(value)))
    if isinstance(value, (list, tuple)):
        return Entry(name, [str(item) for item in value])
    if isinstance(value, (str, int, float, PathLike)):
        return Entry(name, str(value))
    raise UserError(f"--{name}: takes a text, a number, a bool or a list, not a {type(value).__name__}")


def _print_warning(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
