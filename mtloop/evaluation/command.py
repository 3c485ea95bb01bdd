"""`python -m mtloop evaluate --model M [--baseline B] [--test_set NAME=FILE ...]`: scores, intervals, differences."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.config import Config, DataConfig, UserError
from mtloop.languages import match_language
from mtloop.run_folder import RunFolder, write_atomically
from mtloop.translate.shell import Parser, add_model_flags, check_counts, reported, start_runtime

if TYPE_CHECKING:
    from mtloop.metrics import Interval
    from mtloop.runtime import Runtime
    from mtloop.translate.translator import Translator

# What a model is asked in, as in train.py.
SETTINGS = ("source_lang", "target_lang", "source_column", "target_column", "source_prefix")


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Rows to score on.

    Attributes:
        name: As the user calls it, or valid and test of a run.
        sources: N texts.
        references: N texts.
        target_lang: Chooses BLEU's tokenizer.
        source_lang: Where the set is one of several pairs: what the model is to be asked for; else None.
    """

    __test__ = False  # no test of pytest's

    name: str
    sources: list[str]
    references: list[str]
    target_lang: str | None = None
    source_lang: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an evaluation of one test set found.

    Attributes:
        test_set: The rows.
        hypotheses: N translations of the model.
        scores: By metric: BLEU, chrF2, TER.
        baseline_hypotheses: Likewise of the baseline; None without one.
        baseline_scores: Likewise.
    """

    test_set: TestSet
    hypotheses: list[str]
    scores: dict[str, Interval]
    baseline_hypotheses: list[str] | None = None
    baseline_scores: dict[str, Interval] | None = None


def main(argv: Sequence[str]) -> int:
    """Run the command and return its status. Collective: every process of a launch calls it."""
    return reported(_evaluate, argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mtloop evaluate",
        description="Translate test sets and score them with sacreBLEU: BLEU, chrF and TER, 95 %% confidence intervals "
        "by bootstrap, and the difference from a baseline with its p-value.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="a run folder, a checkpoint, any folder, or a Hub name[@revision]")
    add("--baseline", metavar="M", help="another model, to compare with")
    add_test_set_flags(parser, without="the run's own validation and test rows")
    add("--num_resamples", type=int, default=1000, metavar="N", help="of the bootstrap (1000)")
    add("-o", "--output", metavar="DIR", help="a folder for report.json and the hypotheses of each test set")
    add("--compare", metavar="FILE.html", help="a page with every sentence, its translations and chrF, in one "
        "file that needs no network; with --baseline, by gain and loss")  # fmt: skip
    add_model_flags(parser)
    return parser


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


def _check(given: argparse.Namespace) -> None:
    check_counts(given, "num_resamples")
    check_test_sets(given)
    if given.compare is not None:  # told now, and not when all is translated
        path = Path(given.compare)
        if path.suffix.lower() not in (".html", ".htm"):
            raise UserError(
                f"--compare {path}: give the page to write, FILE.html; a model to compare with is --baseline"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # it may be that of -o
        except OSError as error:
            raise UserError(f"--compare {path}: {error.strerror or error}") from error
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"--compare {path}: no file can be written there; give another place")


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


def _evaluate(argv: Sequence[str]) -> None:
    given = _parser().parse_args(argv)
    _check(given)
    runtime = start_runtime(given)
    try:
        trained = stored_config(given.model)
        fill_settings(given, trained)
        test_sets = runtime.one_first(lambda: load_run_rows_or_test_sets(given, trained))
        verdicts = _judge(given, test_sets, runtime)
        runtime.say(*table(verdicts, has_baseline=given.baseline is not None))
        runtime.on_main(lambda: _write(Path(given.output), given, verdicts) if given.output else None)
        runtime.on_main(lambda: _write_page(Path(given.compare), given, verdicts) if given.compare else None)
    finally:
        runtime.close()


def stored_config(model: str) -> Config | None:
    """The configuration that a model was trained with: of a run folder, or beside a checkpoint; None without one."""
    path = Path(model)
    for folder in (path, path.parent, path.parent.parent):  # RUN, RUN/final, RUN/checkpoints/step_N
        if path.is_dir() and (folder / "config.yaml").is_file():
            return RunFolder(folder).stored_config()
    return None


def fill_settings(given: argparse.Namespace, trained: Config | None) -> None:
    """Take languages and columns that are not given from the run's own configuration.

    The prefix of its sources stands in the model's config. Of several pairs the first stands for the moment: each test
    set of the run's own brings its languages along.
    """
    if trained is None or (trained.data.pairs and given.test_set):
        return
    source_lang, target_lang = trained.data.languages[0]
    own = {"source_lang": source_lang, "target_lang": target_lang}
    own |= {name: getattr(trained.data, name) for name in ("source_column", "target_column")}
    given.is_one_pair = bool(given.source_lang and given.target_lang)
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
    from mtloop.corpus import load_corpus

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
    from mtloop.corpus import Columns, load_test_set

    columns = Columns(given.source_lang, given.target_lang, given.source_column, given.target_column)
    named = map(_named, given.test_set)
    return _as_test_sets(given, {name: load_test_set("--test_set", files, columns)[0] for name, files in named})


def _as_test_sets(given: argparse.Namespace, rows: dict[str, Any]) -> list[TestSet]:
    return [
        TestSet(
            name=name,
            sources=found["source"][: given.max_samples],
            references=found["target"][: given.max_samples],
            target_lang=given.target_lang,
        )
        for name, found in rows.items()
    ]


def translate(translator: Translator, test_set: TestSet) -> list[str]:
    """Translate the rows of a test set, into its own language. Collective."""
    if test_set.source_lang is not None:
        translator.set_languages(test_set.source_lang, test_set.target_lang)
    return translator(test_set.sources)


def open_translator(flag: str, model: str, given: argparse.Namespace, runtime: Runtime) -> Translator:
    """Load a model as the flags say; `flag` is where the user named it. Collective.

    Raises:
        UserError: naming the flag.
    """
    from mtloop.translate.translator import Translator

    try:
        return Translator(
            model,
            source_lang=given.source_lang,
            target_lang=given.target_lang,
            source_prefix=given.source_prefix,
            num_beams=given.num_beams,
            max_tokens_per_batch=given.max_tokens_per_batch,
            trust_remote_code=given.trust_remote_code,
            runtime=runtime,
        )
    except UserError as error:
        raise UserError(str(error).replace("--model", flag)) from error


def _judge(given: argparse.Namespace, test_sets: list[TestSet], runtime: Runtime) -> list[Verdict]:
    """Translate with each model in turn, one in memory at a time, and score. Collective."""
    from mtloop.metrics import score_with_intervals

    def translate_with(flag: str, model: str) -> list[list[str]]:
        translator = open_translator(flag, model, given, runtime)
        hypotheses = []
        for test_set in test_sets:
            runtime.say(f"{flag.removeprefix('--')}: translating {len(test_set.sources):,} rows of {test_set.name} ...")
            hypotheses.append(translate(translator, test_set))
        return hypotheses

    of_model = translate_with("--model", given.model)
    of_baseline = (
        translate_with("--baseline", given.baseline) if given.baseline is not None else [None] * len(test_sets)
    )

    def judge(test_set: TestSet, hypotheses: list[str], others: list[str] | None) -> Verdict:
        scores, baseline_scores = score_with_intervals(
            hypotheses,
            test_set.references,
            test_set.target_lang,
            baseline=others,
            num_resamples=given.num_resamples,
        )
        return Verdict(
            test_set=test_set,
            hypotheses=hypotheses,
            scores=scores,
            baseline_hypotheses=others,
            baseline_scores=baseline_scores,
        )

    return runtime.on_main(lambda: [judge(*each) for each in zip(test_sets, of_model, of_baseline, strict=True)])


def table(verdicts: list[Verdict], *, has_baseline: bool) -> list[str]:
    """Write the scores as a table, and the signatures below it."""
    rows = [["test set", "rows", "BLEU", "chrF", "TER"]]
    for verdict in verdicts:
        cells = [shown(verdict, metric, has_baseline=has_baseline) for metric in ("BLEU", "chrF2", "TER")]
        rows.append([verdict.test_set.name, f"{len(verdict.hypotheses):,}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    what = "score ± half of the 95 % confidence interval"
    what += " (difference from the baseline, p-value of the paired bootstrap)" if has_baseline else ""
    signatures = [f"{name}: {interval.signature}" for name, interval in verdicts[0].scores.items()]
    return ["", *lines, "", what, *signatures]


def shown(verdict: Verdict, metric: str, *, has_baseline: bool) -> str:
    """Show one score: `52.90 ± 1.20 (+13.70, p = 0.001)`."""
    found = verdict.scores[metric]
    text = f"{found.score:.2f} ± {found.half_width:.2f}"
    if not has_baseline or verdict.baseline_scores is None or found.p_value is None:
        return text
    difference = found.score - verdict.baseline_scores[metric].score
    return f"{text} ({difference:+.2f}, p = {found.p_value:.3f})"


def _write(folder: Path, given: argparse.Namespace, verdicts: list[Verdict]) -> None:
    """Write report.json, and NAME.jsonl with index, source, reference, hypothesis and baseline of each row."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: {error.strerror or error}") from error
    report: dict[str, Any] = {"model": given.model, "baseline": given.baseline, "test_sets": {}}
    for verdict in verdicts:
        test_set = verdict.test_set
        report["test_sets"][test_set.name] = {
            "num_sentences": len(verdict.hypotheses),
            "scores": {name: asdict(interval) for name, interval in verdict.scores.items()},
            "baseline_scores": {name: asdict(one) for name, one in (verdict.baseline_scores or {}).items()},
        }
        others: Sequence[str | None] = verdict.baseline_hypotheses or [None] * len(verdict.hypotheses)
        rows = zip(test_set.sources, test_set.references, verdict.hypotheses, others, strict=True)
        lines = []
        for index, (source, reference, hypothesis, other) in enumerate(rows):
            row = {"index": index, "source": source, "reference": reference, "hypothesis": hypothesis}
            lines.append(json.dumps({**row, **({} if other is None else {"baseline": other})}, ensure_ascii=False))
        write_atomically(folder / f"{test_set.name}.jsonl", "".join(line + "\n" for line in lines))
    write_atomically(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _write_page(path: Path, given: argparse.Namespace, verdicts: list[Verdict]) -> None:
    from mtloop.evaluation.page import page

    write_atomically(path, page(verdicts, model=given.model, baseline=given.baseline))
    print(
        f"{path}: every sentence, {'by gain and loss' if given.baseline else 'by chrF; --baseline compares two models'}"
    )
