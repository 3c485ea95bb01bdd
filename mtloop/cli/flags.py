"""Flags that several commands share, and what they name: processes, metrics, test sets and the model to score."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.checkpoint.listing import open_folder
from mtloop.config.commands import NUMBERS
from mtloop.config.environment import HardwareConfig
from mtloop.config.evaluation import BLEU_TOKENIZERS
from mtloop.config.fields import BOOLS, LEAVE_ONE_OUT, Field, check_value, kind_of, read_value, separate
from mtloop.config.inputs import DataConfig, Dialect
from mtloop.config.settings import FIELDS, Config
from mtloop.errors import FieldError, UserError, rename_flag
from mtloop.languages import match_language

if TYPE_CHECKING:
    from datasets import Dataset

    from mtloop.evaluation.metrics import Metric
    from mtloop.evaluation.test_sets import ScoredModel, TestSet
    from mtloop.runtime.ranks import Runtime

# As in train.py.
SETTINGS = ("source_lang", "target_lang", "source_key", "target_key", "source_column", "target_column", "source_prefix")
TABLE_SETTINGS = ("quoting", "delimiter", "no_header", "keep_fuzzy")
# A switch of the settings, which accepts its value as in train.py; other text is refused by the settings.
SWITCH: dict[str, Any] = {
    "nargs": "?", "const": True, "metavar": "BOOL", "type": lambda text: BOOLS.get(text.lower(), text),
}  # fmt: skip


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select how a model is loaded, searches and computes."""
    add = parser.add_argument
    add("--num_beams", type=number_type("num_beams"), metavar="N", help="beams (none: the model's own, else 4)")
    add(
        "--max_tokens_per_batch",
        type=number_type("max_tokens_per_batch"),
        default=2000,
        metavar="N",
        help="source tokens of a batch: memory (2000)",
    )
    add(
        "--mixed_precision",
        choices=FIELDS["mixed_precision"].metadata["choices"],
        help="arithmetic (none: that of the launch file)",
    )
    add("--use_cpu", action="store_true", help="compute on the CPU although an accelerator is present")
    add(
        "--cpu_threads",
        type=number_type("cpu_threads"),
        metavar="N",
        help="CPU threads a process (none: the cores shared out)",
    )
    add("--trust_remote_code", action="store_true", help="run code from the model's repository")
    add("--no_verify", action="store_true", help="do not compare a checkpoint or final/ with its manifest")


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    """Add the form of the files."""
    for name in TABLE_SETTINGS:
        kind = SWITCH if kind_of(FIELDS[name]) is bool else {"metavar": "TEXT"}
        parser.add_argument(f"--{name}", help="as in train.py (none: as the run of the model was trained)", **kind)


def dialect_of(given: argparse.Namespace, trained: Config | None) -> Dialect:
    """Return the form of the files by the flags, else by the run of the model.

    Raises:
        UserError: naming the flag.
    """
    own = trained.data.dialect if trained is not None else Dialect()
    chosen = {name: getattr(given, name) for name in TABLE_SETTINGS if getattr(given, name) is not None}
    for name, value in chosen.items():
        check_value(FIELDS[name], value)
    return replace(own, **chosen)


def add_metrics_flag(parser: argparse.ArgumentParser, *default: str) -> None:
    """Add which scores are computed, and list them below the flags."""
    from mtloop.evaluation.metrics import METRICS

    titles = [one.title + ("" if one.greater_is_better else ", lower is better") for one in METRICS.values()]
    known = [f"{name} ({title})" for name, title in zip(METRICS, titles, strict=True)]
    parser.epilog = f"metrics: {'; '.join(known)}. Functions: mtloop.main([...], metrics=[function])."
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=list(default),
        metavar="NAME",
        help=f"scores of the translations, listed below ({' '.join(default)})",
    )
    parser.add_argument(
        "--bleu_tokenizer",
        choices=BLEU_TOKENIZERS,
        help="as in train.py (none: that of the run, or by the script of the target language)",
    )


def chosen_metrics(given: argparse.Namespace, trained: Config | None) -> tuple[Metric, ...]:
    """Return the metrics of --metrics, and those that were passed to main(); BLEU's tokenizer may be the run's.

    Raises:
        UserError: naming the flag.
    """
    from mtloop.evaluation.selection import choose_metrics

    own = None if trained is None else trained.evaluation.bleu_tokenizer
    return choose_metrics(separate(given.metrics), given.functions, bleu_tokenizer=given.bleu_tokenizer or own)


def number_type(name: str) -> partial[Any]:
    """Return the type of a flag with a number: it refuses what is out of bounds as train.py does."""
    return partial(_read_number, {**FIELDS, **NUMBERS}[name])


def _read_number(field: Field, text: str) -> Any:
    value = read_value(field, text)
    try:
        check_value(field, value)
    except FieldError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f"--{field.name}: ")) from None
    return value


def start_runtime(given: argparse.Namespace) -> Runtime:
    """Initialize the processes by the flags. Collective."""
    from mtloop.runtime.quiet import silence_libraries
    from mtloop.runtime.ranks import Runtime

    silence_libraries()
    return Runtime(
        HardwareConfig(mixed_precision=given.mixed_precision, use_cpu=given.use_cpu, cpu_threads=given.cpu_threads)
    )


def add_test_set_flags(parser: argparse.ArgumentParser, *, without: str, max_samples: int | None = None) -> None:
    """Add the flags of the rows to score on; `without` describes the rows without --test_set."""
    add = parser.add_argument
    add("--test_set", action="append", default=[], metavar="[NAME=]FILE[,FILE]", help="rows (.jsonl, .csv, .tsv, "
        ".parquet, .po, .tmx, .xliff), or two aligned text files, source first; may be given several times "
        f"(none: {without})")  # fmt: skip
    for name in SETTINGS:
        add(f"--{name}", metavar="TEXT", help="as in train.py (none: as the run of the model was trained)")
    add_table_flags(parser)
    add("--max_samples", type=number_type("max_samples"), default=max_samples, metavar="N",
        help=f"the first N rows of each test set ({max_samples or 'none: all'})")  # fmt: skip


def check_test_sets(given: argparse.Namespace) -> None:
    """Check the flags of test sets and model.

    Raises:
        UserError: naming the flag.
    """
    names = [_named(text)[0] for text in given.test_set]
    if len(set(names)) < len(names):
        raise UserError(f"--test_set: two have the same name (got {', '.join(names)}). Give them as NAME=FILE.")


def _named(text: str) -> tuple[str, list[str]]:
    """Split NAME=FILE,FILE; without a name it is that of the first file."""
    name, equals, files = text.partition("=")
    if not equals or "/" in name:
        name, files = "", text
    paths = files.split(",")
    return name or Path(paths[0]).name.split(".")[0], paths


def check_keys(given: argparse.Namespace) -> None:
    """Refuse a key and a column of the rows.

    Raises:
        UserError: naming the flag.
    """
    for side in ("source", "target"):
        if (key := getattr(given, f"{side}_key", None)) and given.source_column:
            raise UserError(f"--{side}_key: --source_column is given as well (got {key}). {LEAVE_ONE_OUT}")


def own_places(given: argparse.Namespace, data: DataConfig) -> dict[str, str | None]:
    """Return the keys and the columns of a run's rows as far as the flags name no other ones.

    A key belongs to the run's language: it is None where the flags ask for another one.
    """
    places: dict[str, str | None] = {}
    for side in ("source", "target"):
        asked, own = getattr(given, f"{side}_lang"), getattr(data, f"{side}_lang")
        is_own = asked is None or bool(own and match_language(asked, [own]))
        places[f"{side}_key"] = getattr(data, f"{side}_key") if is_own and not given.source_column else None
        has_key = given.source_key or getattr(given, "target_key", None)
        places[f"{side}_column"] = None if has_key else getattr(data, f"{side}_column")
    return places


def fill_settings(given: argparse.Namespace, trained: Config | None) -> None:
    """Take languages and columns that are not given from the run's own configuration.

    The prefix of the sources is in the model's config. With several pairs the first one is taken: each test set of the
    run brings its languages.
    """
    given.is_one_pair = bool(given.source_lang and given.target_lang)
    check_keys(given)
    own: dict[str, str | None] = {"source_lang": given.source_key, "target_lang": given.target_key}
    if trained is not None and not (trained.data.pairs and given.test_set):
        own = own_places(given, trained.data)
        own["source_lang"], own["target_lang"] = trained.data.languages[0]
    for name, value in own.items():
        if getattr(given, name) is None:
            setattr(given, name, value)


def load_run_rows_or_test_sets(given: argparse.Namespace, trained: Config | None) -> list[TestSet]:
    """Load what --test_set names, else the validation and test rows of the run of --model.

    Raises:
        UserError: There are no rows, or a file cannot be read.
    """
    if given.test_set:
        return load_test_sets(given, trained)
    if trained is None:
        raise UserError(
            f"--test_set: missing, and --model is not a run folder (got {given.model}). Give rows to score on."
        )
    return load_own_rows(given, trained, "valid", "test")


def load_own_rows(given: argparse.Namespace, trained: Config, *splits: str) -> list[TestSet]:
    """Load the rows of these splits that a run has, of each of its pairs; where it only scores, these alone."""
    from mtloop.data.load import load_corpus, load_scored_rows

    test_sets = []
    for data in trained.data.of_pairs():
        if given.is_one_pair and trained.data.pairs and not _is_asked(given, data):
            continue
        if trained.scored:
            rows = {split: load_scored_rows(data, split) for split in splits}
        else:
            corpus = load_corpus(data)
            rows = {split: rows for split in splits if (rows := getattr(corpus, split)) is not None}
            overlaps = corpus.compared()
        for test_set in _as_test_sets(given, rows):
            if not trained.scored:
                test_set = replace(test_set, is_unseen=overlaps[test_set.name].is_unseen[: len(test_set.rows)])
            if trained.data.pairs:
                name = f"{test_set.name} {data.source_lang}-{data.target_lang}"
                source_lang, target_lang = data.source_lang, data.target_lang
                test_set = replace(test_set, name=name, source_lang=source_lang, target_lang=target_lang)
            test_sets.append(test_set)
    if not test_sets:
        raise UserError(
            f"--source_lang, --target_lang: not a pair of the run (got {given.source_lang}-{given.target_lang}). "
            f"Give one of {trained.data.pairs}."
        )
    return test_sets


def _is_asked(given: argparse.Namespace, data: DataConfig) -> bool:
    pairs = ((given.source_lang, data.source_lang), (given.target_lang, data.target_lang))
    return all(match_language(str(asked), [str(there)]) for asked, there in pairs)


def load_test_sets(given: argparse.Namespace, trained: Config | None) -> list[TestSet]:
    """Load each --test_set; a warning counts the rows with doubtful quotes."""
    from mtloop.data.load import load_test_set
    from mtloop.data.rows import Columns, note_lines

    columns = Columns.of(given)
    dialect, found = dialect_of(given, trained), {}
    for name, files in map(_named, given.test_set):
        found[name], counts = load_test_set("--test_set", files, columns, dialect=dialect)
        if os.environ.get("RANK", "0") == "0":
            for line in note_lines(counts.get("notes", {})):
                print(f"mtloop: warning: {' '.join(files)}: {line}", file=sys.stderr)
    return _as_test_sets(given, found)


def _as_test_sets(given: argparse.Namespace, rows: dict[str, Dataset]) -> list[TestSet]:
    from mtloop.evaluation.test_sets import TestSet

    few = given.max_samples
    return [
        TestSet(
            name=name,
            rows=found if few is None or few >= len(found) else found.select(range(few)),
            target_lang=given.target_lang,
        )
        for name, found in rows.items()
    ]


def open_model(
    flag: str,
    model: str,
    given: argparse.Namespace,
    runtime: Runtime,
    *,
    trained: Config | None,
    engine: str | None = None,
) -> ScoredModel:
    """Load a model to score, with the options of the flags. Collective.

    Args:
        flag: Where the user named it.
        model: Its name.
        given: The flags.
        runtime: The ranks.
        trained: The configuration of the run whose beams, length ratio and lengths hold, as far as the model has the
            positions; None leaves them to the model.
        engine: As in open_engine.

    Raises:
        UserError: naming the flag.
    """
    from mtloop.evaluation.test_sets import ScoredModel
    from mtloop.generation.engine import EngineOptions, TransformersEngine, open_engine

    names = ("source_lang", "target_lang", "source_prefix", "num_beams", "trust_remote_code")
    asked = EngineOptions(**{name: getattr(given, name) for name in names})
    if trained is not None:
        evaluation, data = trained.evaluation, trained.data
        asked = replace(
            asked,
            num_beams=given.num_beams or evaluation.num_beams,
            max_source_length=data.max_source_length,
            max_target_length=evaluation.val_max_target_length or data.max_target_length,
            cuts_lengths=True,
        )
    try:
        folder = open_folder(model, no_verify=given.no_verify)
        opened = open_engine(folder, asked, runtime, engine=engine)
    except UserError as error:
        raise rename_flag(error, flag) from error
    ratio = None if trained is None else trained.evaluation.max_length_ratio
    if ratio is not None and not isinstance(opened, TransformersEngine):
        runtime.say(
            f"{flag} {model}: CTranslate2 does not support --max_length_ratio; the run's value {ratio} is ignored"
        )
        ratio = None
    return ScoredModel(engine=opened, runtime=runtime, max_tokens=given.max_tokens_per_batch, max_length_ratio=ratio)
