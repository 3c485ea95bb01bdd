"""Report on a corpus before training, or show its pairs with --grep.

The report has rows, lengths, duplicates, irregular rows, and rows shared by training and validation, with the split
that train.py would make.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.atomic import partial_name, sweep_partials, write_json, write_json_lines
from mtloop.checkpoint.listing import open_folder
from mtloop.cli.flags import SWITCH, add_model_flags, number_type, own_places, start_runtime
from mtloop.cli.status import writing
from mtloop.config.fields import help_text, kind_of
from mtloop.config.inputs import DataConfig
from mtloop.config.settings import FIELDS, Config
from mtloop.errors import UserError, check_folder, install_line, rename_flag
from mtloop.run_folder import RunFolder, stored_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtloop.data.load import Corpus

# Flags of train.py that select the rows and their lengths.
DATA_FLAGS = (
    "dataset_name", "dataset_config_name", "validation_file", "test_file", "source_lang", "target_lang", "source_key",
    "target_key", "source_column", "target_column", "quoting", "delimiter", "no_header", "keep_fuzzy", "source_prefix",
    "max_source_length", "max_target_length", "validation_split", "split_by", "split_seed", "preprocessing_num_workers",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Subject:
    """The rows and the tokenizer to report on.

    Attributes:
        data: Selects the rows.
        tokenizer: A folder or name; None for none.
        flag: The flag that named the tokenizer, for messages.
    """

    data: DataConfig
    tokenizer: str | None
    flag: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("files", metavar="FILE", nargs="*", help="as --train_file of train.py: rows (.json, .jsonl, .csv, .tsv, "
        ".parquet, .po, .tmx, .xliff), or two aligned text files, source first; or a run folder")  # fmt: skip
    add("--run", metavar="RUN", help="a run folder: the rows that it trains on, and its tokenizer")
    for name in DATA_FLAGS:
        kind = kind_of(FIELDS[name])
        values: dict[str, Any] = (
            {"nargs": "+"} if kind is list else {"type": number_type(name) if kind in (int, float) else kind}
        )
        values = SWITCH if kind is bool else {"metavar": {int: "N", float: "X"}.get(kind, "TEXT"), **values}
        add(f"--{name}", help=help_text(FIELDS[name]), **values)
    add("--tokenizer", metavar="NAME", help="count tokens too: a folder, a run folder, or a Hub name[@revision]")
    add("--model", metavar="M", help="count the tokens of this model; with --grep, its translations")
    add("--grep", metavar="PATTERN", help="instead of the report, show the pairs in which the source or the target "
        "matches this regular expression (case is ignored)")  # fmt: skip
    add(
        "--max_shown",
        type=number_type("max_shown"),
        default=10,
        metavar="N",
        help="pairs that --grep shows, at most (10)",
    )
    add("-o", "--output", metavar="DIR", help="a folder for report.json and lengths.png (needs matplotlib), or with "
        "--grep for grep.jsonl")  # fmt: skip
    add_model_flags(parser)


def run(given: argparse.Namespace) -> None:
    """Run the command. Collective: every process of a launch calls it."""
    pattern = _pattern(given.grep)
    subject = _subject(given)
    if given.output is not None:
        check_folder("-o", Path(given.output))
        with writing(given.output):
            Path(given.output).mkdir(parents=True, exist_ok=True)
    if pattern is not None and given.model is not None:
        _grep_and_translate(given, pattern, subject)
    elif os.environ.get("RANK", "0") == "0":  # under a launcher one process is enough, and the others are done
        if pattern is not None:
            _grep(given, pattern, _load(subject.data))
        else:
            _report(given, subject)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text, re.IGNORECASE)
    except re.error as error:
        remedy = "Put a backslash before a character that is meant literally."
        raise UserError(f"--grep: invalid regular expression, {error} (got {text!r}). {remedy}") from error


def _subject(given: argparse.Namespace) -> Subject:
    """Return the rows and the tokenizer that the flags select.

    Raises:
        UserError: naming the flag.
    """
    files, run = given.files, given.run
    if len(files) == 1 and RunFolder(Path(files[0])).config_path.is_file():
        run, files = run or files[0], [] if run is None else files
    named = {"FILE": bool(files), "--dataset_name": bool(given.dataset_name), "--run": bool(run)}
    if sum(named.values()) > 1:
        raise UserError(
            f"{', '.join(name for name, is_given in named.items() if is_given)}: they exclude each other. Give one."
        )
    if not any(named.values()):
        run = given.model if given.model and stored_config(given.model) else None
    flags = {name: value for name in DATA_FLAGS if (value := getattr(given, name)) is not None}
    config: Config | None = None
    if run is not None:
        config = stored_config(run)
        if config is None:
            raise UserError(
                f"--run: not a run folder, it has no config.yaml (got {run}). Give the --output_dir of a run."
            )
        data = _of_one_pair(run, config.data, given)
        data = dataclasses.replace(data, **{**own_places(given, data), **flags})
    elif any(named.values()):
        data = DataConfig(train_file=files or None, **flags)
    else:
        raise UserError("FILE: missing. Give FILE... (as --train_file of train.py), --dataset_name NAME, or --run RUN.")
    if given.tokenizer is not None:
        return Subject(data, given.tokenizer, "--tokenizer")
    if given.model is not None:
        return Subject(data, given.model, "--model")
    return Subject(data, None if config is None else _tokenizer_of_run(run, config), "--tokenizer")


def _of_one_pair(run: str, data: DataConfig, given: argparse.Namespace) -> DataConfig:
    """Select one pair of a run with several pairs by the flags."""
    if data.pairs and not (given.source_lang and given.target_lang):
        raise UserError(
            f"--run: the run has several pairs, {data.pairs} (got {run}). "
            "Select one with --source_lang and --target_lang."
        )
    return dataclasses.replace(data, pairs=None)


def _tokenizer_of_run(run: str, config: Config) -> str | None:
    is_there = RunFolder(Path(run)).tokenizer_dir.is_dir()
    if is_there or config.model.train_tokenizer:
        return run if is_there else None
    return config.model.tokenizer_name or config.model.model_name_or_path


def _load(data: DataConfig) -> Corpus:
    import datasets

    from mtloop.data.load import load_corpus

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as an error it raises as well
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return load_corpus(data)
    except UserError as error:
        raise UserError(re.sub("^--train_file:", "FILE:", str(error))) from error


def _splits(corpus: Corpus) -> dict[str, Any]:
    splits = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    return {name: rows for name, rows in splits.items() if rows is not None}


def _report(given: argparse.Namespace, subject: Subject) -> None:
    from mtloop.corpus_report.findings import ALL, inspect, ratio_band
    from mtloop.corpus_report.measure import count_tokens, measure
    from mtloop.corpus_report.show import draw, report_lines
    from mtloop.data.load import describe

    data, has_tokens = subject.data, subject.tokenizer is not None
    tokenizer = _load_tokenizer(subject, given) if has_tokens else None  # first: an error in it is reported at once
    corpus = _load(data)
    splits = _splits(corpus)
    tokens = {name: count_tokens(rows, tokenizer, data) for name, rows in splits.items()} if tokenizer else {}
    measures = measure(splits, tokens)
    limits = {"max_source_length": data.max_source_length, "max_target_length": data.max_target_length}
    report: dict[str, Any] = {
        "sources": corpus.report["sources"],
        "counts": corpus.report["counts"],
        "fingerprint": corpus.report["fingerprint"],
        "num_rows": {**{name: len(rows) for name, rows in splits.items()}, ALL: len(measures)},
        "tokenizer": subject.tokenizer,
        "limits": limits,
        **inspect(measures, splits, data, has_tokens=has_tokens),
    }
    print("\n".join([*describe(corpus.report), *_origin_lines(corpus), *report_lines(report)]))
    if given.output is None:
        return
    folder = Path(given.output)
    for name in ("report.json", "lengths.png"):
        sweep_partials(folder / name)
    write_json(folder / "report.json", report)
    partial = partial_name(folder / "lengths.png")
    if draw(partial, measures, ratio_band(measures), limits if has_tokens else None):
        os.replace(partial, folder / "lengths.png")
        print(f"\n{folder / 'report.json'}, {folder / 'lengths.png'}")
    else:
        print(f"\n{folder / 'report.json'}; no picture without matplotlib: {install_line('matplotlib', 'plots')}")


def _origin_lines(corpus: Corpus) -> list[str]:
    cut = corpus.report["sources"].get("valid", [{}])[0]
    if "cut_from" not in cut:
        return []
    by = f" --split_by {' '.join(cut['split_by'])}" if "split_by" in cut else ""
    return [
        f"valid is cut from train (--validation_split {cut['validation_split']} --split_seed {cut['split_seed']}{by})"
    ]


def _load_tokenizer(subject: Subject, given: argparse.Namespace) -> PreTrainedTokenizerBase:
    from mtloop.tokenization.loading import load_tokenizer

    assert subject.tokenizer is not None
    folder = RunFolder(Path(subject.tokenizer)).tokenizer_dir
    try:
        return load_tokenizer(
            str(folder) if folder.is_dir() else open_folder(subject.tokenizer, no_verify=given.no_verify),
            source_lang=subject.data.source_lang,
            target_lang=subject.data.target_lang,
            trust_remote_code=given.trust_remote_code,
        )
    except UserError as error:
        raise rename_flag(error, subject.flag) from error


def _grep(given: argparse.Namespace, pattern: re.Pattern[str], corpus: Corpus, translator: Any = None) -> None:
    """Show the pairs that match. Collective where a translator is given."""
    from mtloop.corpus_report.show import match_lines, matches

    splits = _splits(corpus)
    num_found, rows = matches(splits, pattern, max_shown=given.max_shown)
    if translator is not None and rows:
        for row, hypothesis in zip(rows, translator([row["source"] for row in rows]), strict=True):
            row["hypothesis"] = hypothesis

    def show() -> None:
        print("\n".join(match_lines(rows, pattern, num_found, num_rows=sum(map(len, splits.values())))))
        if given.output is not None:
            write_json_lines(Path(given.output) / "grep.jsonl", rows)

    if translator is None:
        show()
    else:
        translator.runtime.on_main(show)


def _grep_and_translate(given: argparse.Namespace, pattern: re.Pattern[str], subject: Subject) -> None:
    from mtloop.translate.translator import Translator

    runtime = start_runtime(given)
    data = subject.data
    try:
        corpus = runtime.one_first(lambda: _load(data))
        languages = {name: getattr(data, name) for name in ("source_lang", "target_lang", "source_prefix")}
        asked = argparse.Namespace(**{**vars(given), **languages})
        names = (*languages, "num_beams", "max_tokens_per_batch", "trust_remote_code", "no_verify")
        translator = Translator(given.model, **{name: getattr(asked, name) for name in names}, runtime=runtime)
        _grep(given, pattern, corpus, translator)
    finally:
        runtime.close()
