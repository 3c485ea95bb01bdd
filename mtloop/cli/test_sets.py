"""Test sets: what a model is scored on, from files or from the run that trained it, and the model that is asked."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtloop.checkpoint.listing import model_folder
from mtloop.cli.flags import check_counts
from mtloop.config.inputs import DataConfig
from mtloop.config.settings import Config
from mtloop.errors import UserError, renamed
from mtloop.languages import match_language

if TYPE_CHECKING:
    from datasets import Dataset

    from mtloop.evaluation.test_sets import ScoredModel, TestSet
    from mtloop.runtime.ranks import Runtime

# What a model is asked in, as in train.py.
SETTINGS = ("source_lang", "target_lang", "source_column", "target_column", "source_prefix")


def add_test_set_flags(parser: argparse.ArgumentParser, *, without: str, max_samples: int | None = None) -> None:
    """Add what a model is scored on; `without` says on what where no --test_set is given."""
    add = parser.add_argument
    add("--test_set", action="append", default=[], metavar="[NAME=]FILE[,FILE]", help="rows (.jsonl, .csv, .tsv, "
        ".parquet), or two aligned text files, source first; may be given several times "
        f"(none: {without})")  # fmt: skip
    for name in SETTINGS:
        add(f"--{name}", metavar="TEXT", help="as in train.py (none: as the run of the model was trained)")
    add("--max_samples", type=int, default=max_samples, metavar="N",
        help=f"the first N rows of each test set ({max_samples or 'none: all'})")  # fmt: skip


def check_test_sets(given: argparse.Namespace) -> None:
    """Refuse what the flags of test sets and model cannot mean.

    Raises:
        UserError: naming the flag.
    """
    check_counts(given, "num_beams", "max_tokens_per_batch", "max_samples")
    names = [_named(text)[0] for text in given.test_set]
    if len(set(names)) < len(names):
        raise UserError(f"--test_set: two of the same name ({', '.join(names)}); call them NAME=FILE")


def _named(text: str) -> tuple[str, list[str]]:
    """Split NAME=FILE,FILE; without a name it is that of the first file."""
    name, equals, files = text.partition("=")
    if not equals or "/" in name:
        name, files = "", text
    paths = files.split(",")
    return name or Path(paths[0]).name.split(".")[0], paths


def fill_settings(given: argparse.Namespace, trained: Config | None) -> None:
    """Take languages and columns that are not given from the run's own configuration.

    The prefix of its sources stands in the model's config. Of several pairs the first stands for the moment: each test
    set of the run's own brings its languages along.
    """
    given.is_one_pair = bool(given.source_lang and given.target_lang)
    if trained is None or (trained.data.pairs and given.test_set):
        return
    source_lang, target_lang = trained.data.languages[0]
    own = {"source_lang": source_lang, "target_lang": target_lang}
    own |= {name: getattr(trained.data, name) for name in ("source_column", "target_column")}
    for name, value in own.items():
        if getattr(given, name) is None:
            setattr(given, name, value)


def load_run_rows_or_test_sets(given: argparse.Namespace, trained: Config | None) -> list[TestSet]:
    """Load what --test_set names, else the validation and test rows of the run of --model.

    Raises:
        UserError: there is neither, or a file cannot be read.
    """
    if given.test_set:
        return load_test_sets(given)
    if trained is None:
        raise UserError(f"--model {given.model}: no run folder, so --test_set says on what it is scored")
    return load_own_rows(given, trained, "valid", "test")


def load_own_rows(given: argparse.Namespace, trained: Config, *splits: str) -> list[TestSet]:
    """Load the rows that a run was scored on: those of its splits that there are, of each of its pairs."""
    from mtloop.data.load import load_corpus

    test_sets = []
    for data in trained.data.of_pairs():
        if given.is_one_pair and trained.data.pairs and not _is_asked(given, data):
            continue
        corpus = load_corpus(data)
        rows = {split: rows for split in splits if (rows := getattr(corpus, split)) is not None}
        for test_set in _as_test_sets(given, rows):
            if trained.data.pairs:
                name = f"{test_set.name} {data.source_lang}-{data.target_lang}"
                source_lang, target_lang = data.source_lang, data.target_lang
                test_set = replace(test_set, name=name, source_lang=source_lang, target_lang=target_lang)
            test_sets.append(test_set)
    if not test_sets:
        raise UserError(
            f"--source_lang {given.source_lang} --target_lang {given.target_lang}: no pair of the run, which has "
            f"{trained.data.pairs}"
        )
    return test_sets


def _is_asked(given: argparse.Namespace, data: DataConfig) -> bool:
    pairs = ((given.source_lang, data.source_lang), (given.target_lang, data.target_lang))
    return all(match_language(str(asked), [str(there)]) for asked, there in pairs)


def load_test_sets(given: argparse.Namespace) -> list[TestSet]:
    """Load each --test_set."""
    from mtloop.data.load import load_test_set
    from mtloop.data.rows import Columns

    columns = Columns(given.source_lang, given.target_lang, given.source_column, given.target_column)
    named = map(_named, given.test_set)
    return _as_test_sets(given, {name: load_test_set("--test_set", files, columns)[0] for name, files in named})


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
    """Load a model to be scored as the flags say. Collective.

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
        opened = open_engine(model_folder(model), asked, runtime, engine=engine)
    except UserError as error:
        raise renamed(error, flag) from error
    ratio = None if trained is None else trained.evaluation.max_length_ratio
    if ratio is not None and not isinstance(opened, TransformersEngine):
        runtime.say(
            f"{flag} {model}: translates without the run's --max_length_ratio {ratio}, which CTranslate2 has not"
        )
        ratio = None
    return ScoredModel(engine=opened, runtime=runtime, max_tokens=given.max_tokens_per_batch, max_length_ratio=ratio)
