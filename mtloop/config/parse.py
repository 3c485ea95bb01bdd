"""Read flags, YAML files and recipes into a checked Config. Must not import torch or transformers: --help is instant.

The settings of a recipe are read as flags are; a flag on the command line replaces that of the recipe.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TextIO

import mtloop
from mtloop.config.fields import (
    AUTO,
    MAX_CHOICES_IN_PLACEHOLDER,
    Field,
    help_text,
    is_unicode,
    kind_of,
    read_value,
)
from mtloop.config.foreign import MODES, Say, find_foreign, refuse_secrets, take_value, translate
from mtloop.config.settings import BUDGETS, DATA_FIELDS, FIELDS, GROUPS, MODEL_FIELDS, Config, check_complete
from mtloop.config.yaml_file import MAPPING_FIELD, Entry, read_source, recipe_names
from mtloop.errors import FieldError, UserError, without_passwords

DEMO = "demo"
TRAINER_BATCH_SIZE = 8  # the default of TrainingArguments and run_translation_no_trainer.py, per device
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
        epilog="Flags of run_translation*.py and TrainingArguments are read as these; docs/coming-from.md lists them.",
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


def parse_config(argv: Sequence[str] | None, warn: Say | None = None, say: Say | None = None) -> Config:
    """Read a command line.

    Args:
        argv: The words after the name of the program; None and [] are the demo. sys.argv is not read.
        warn: Called with a line for each flag of another trainer without an effect; by default it is printed to stderr.
        say: Called with a line for each one that is read as a setting; by default it is printed.

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
    reports = (say or _print, warn or _print_warning)
    own, foreign = _divide(tokens)
    namespace, words = parser.parse_known_args(own)
    values = vars(namespace)
    stray = next((word for word in words if word.startswith("-")), None)
    if stray is not None:
        raise UserError(f"{stray}: no such flag. See --help; write a value that begins with - as --flag=value.")
    if "config" in values:
        words.append(values.pop("config"))
    if len(words) > 1:
        raise UserError(f"{words[1]}: only one recipe or file is possible, and {words[0]} is given. Leave one out.")
    entries = [Entry(name, text) for name, text in values.items()] + foreign
    return _assemble(_read_entries(entries, reports), words[0] if words else None, reports)


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
    reports = (_print, _print_warning)
    given = _read_entries([entry for entry in entries if entry.name != "config"], reports)
    return _assemble(given, source, reports)


def _assemble(given: dict[str, Any], source: str | None, reports: tuple[Say, Say]) -> Config:
    """Create a config of given values and those of a recipe, which is the demo if neither model nor data is given."""
    if source is None and all(given.get(name) is None for name in (*MODEL_FIELDS, *DATA_FIELDS)):
        source = DEMO
    if source is None and given.get("gradient_accumulation_steps") and not any(given.get(name) for name in BUDGETS):
        given = {**given, "per_device_train_batch_size": TRAINER_BATCH_SIZE}
        reports[0](
            f"--gradient_accumulation_steps {given['gradient_accumulation_steps']} -> --per_device_train_batch_size "
            f"{TRAINER_BATCH_SIZE}, the default of TrainingArguments"
        )
    recipe, entries = read_source(source) if source is not None else (None, [])
    values = _merge(_read_entries(entries, reports), given)
    modes = {name: values.pop(name) == "true" for name in MODES if name in values}
    try:
        groups = {
            group: kind(**{one.name: values[one.name] for one in dataclasses.fields(kind) if one.name in values})
            for group, kind in GROUPS.items()
        }
        config = Config(**groups, recipe=recipe, scored=_scored_splits(modes))
        check_complete(config)
        if modes.get("do_predict") and not (config.data.test_file or config.data.dataset_name):
            raise UserError("--do_predict: no test data is given. Add --test_file FILE.")
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


def _scored_splits(modes: Mapping[str, bool]) -> tuple[str, ...]:
    """Return the splits that are scored instead of training: of --do_eval and --do_predict without --do_train."""
    if modes.get("do_train"):
        return ()
    splits = tuple(split for name, split in (("do_eval", "valid"), ("do_predict", "test")) if modes.get(name))
    if not splits and "do_train" in modes:
        raise UserError("--do_train: leaves nothing to do (got false). Give true, --do_eval or --do_predict.")
    return splits


def _divide(tokens: list[str]) -> tuple[list[str], list[Entry]]:
    """Divide a command line into words for the parser, with underscores in names, and flags of other trainers.

    Raises:
        UserError: for a flag that is unknown, or holds a token.
    """
    refuse_secrets(tokens)
    own: list[str] = []
    foreign: list[Entry] = []
    start = 0
    while start < len(tokens):
        token = tokens[start]
        start += 1
        if not FLAG.fullmatch(token):
            own.append(token)
            continue
        flag, equals, value = token[2:].partition("=")
        name = flag.replace("-", "_")
        kind, _, is_negated = find_foreign(name)
        if kind is None:
            own.append(f"--{name}{equals}{value}")
            continue
        words = [value] if equals else [] if is_negated else take_value(kind, tokens[start:], FLAG.fullmatch)
        start += 0 if equals else len(words)
        foreign.append(Entry(name, words if kind.kind == "lists" else " ".join(words) or "true"))
    return own, foreign


def _read_entries(entries: Sequence[Entry], reports: tuple[Say, Say]) -> dict[str, Any]:
    """Convert the settings of the command line, a file or a dict."""
    values: dict[str, Any] = {}
    for entry in entries:
        if entry.name == "config":
            raise UserError(f"{entry.prefix}--config: a file cannot load another one. Name it on the command line.")
    for entry in translate(entries, *reports):
        try:
            values[entry.name] = entry.value if entry.name in MODES else _value_of(entry)
        except UserError as error:
            raise UserError(f"{entry.prefix}{error}") from None
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


def _print(line: str, start: str = "", stream: TextIO | None = None) -> None:
    if os.environ.get("RANK", "0") == "0":  # every process of a launch reads the same command line
        print(f"{start}{line}", file=stream, flush=True)


def _print_warning(line: str) -> None:
    _print(line, "mtloop: warning: ", sys.stderr)
