"""`python -m mtloop evaluate --model M [--baseline B] [--test_set NAME=FILE ...]`: scores, intervals, differences."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.config import Config, UserError
from mtloop.run_folder import RunFolder, write_atomically
from mtloop.translate.shell import Parser, add_model_flags, check_counts, reported, start_runtime

if TYPE_CHECKING:
    from mtloop.metrics import Interval
    from mtloop.runtime import Runtime

DATA_FLAGS = ("source_lang", "target_lang", "source_column", "target_column", "source_prefix")


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Rows to score on.

    Attributes:
        name: As the user calls it, or valid and test of a run.
        sources: N texts.
        references: N texts.
    """

    __test__ = False  # no test of pytest's

    name: str
    sources: list[str]
    references: list[str]


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
    add_test_set_flags(parser)
    add("--max_samples", type=int, metavar="N", help="the first N rows of each test set")
    add("--num_resamples", type=int, default=1000, metavar="N", help="of the bootstrap (1000)")
    add("-o", "--output", metavar="DIR", help="a folder for report.json and the hypotheses of each test set")
    add_model_flags(parser)
    return parser


def add_test_set_flags(parser: argparse.ArgumentParser) -> None:
    """Add where the rows stand that a model is scored on."""
    add = parser.add_argument
    add("--test_set", action="append", default=[], metavar="[NAME=]FILE[,FILE]", help="rows (.jsonl, .csv, .tsv, "
        ".parquet), or two aligned text files, source first; may be given several times (none: the run's own "
        "validation and test rows)")  # fmt: skip
    for name in DATA_FLAGS:
        add(f"--{name}", metavar="TEXT", help="as in train.py (none: as the run of --model was trained)")


def check_test_sets(given: argparse.Namespace) -> None:
    """Refuse two test sets of one name.

    Raises:
        UserError: naming the flag.
    """
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
    check_counts(given, "num_beams", "max_tokens_per_batch", "max_samples", "num_resamples")
    check_test_sets(given)
    runtime = start_runtime(given)
    try:
        trained = stored_config(given.model)
        fill_in(given, trained)
        test_sets = runtime.one_first(lambda: load_test_sets(given, trained))
        verdicts = _judge(given, test_sets, runtime)
        runtime.say(*table(verdicts, has_baseline=given.baseline is not None))
        runtime.on_main(lambda: _write(Path(given.output), given, verdicts) if given.output else None)
    finally:
        runtime.close()


def fill_in(given: argparse.Namespace, trained: Config | None) -> None:
    """Take languages, columns and prefix from the run of --model where no flag gives them."""
    for name in DATA_FLAGS:
        if getattr(given, name) is None and trained is not None:
            setattr(given, name, getattr(trained.data, name))


def stored_config(model: str) -> Config | None:
    """The configuration that a model was trained with: of a run folder, or beside a checkpoint; None without one."""
    path = Path(model)
    for folder in (path, path.parent, path.parent.parent):  # RUN, RUN/final, RUN/checkpoints/step_N
        if path.is_dir() and (folder / "config.yaml").is_file():
            return RunFolder(folder).stored_config()
    return None


def load_test_sets(given: argparse.Namespace, trained: Config | None) -> list[TestSet]:
    """Load what --test_set names, else the validation and test rows of the run of --model.

    Raises:
        UserError: there is neither, or a file cannot be read.
    """
    from mtloop.corpus import Columns, load_corpus, load_test_set

    rows = {}
    if given.test_set:
        columns = Columns(given.source_lang, given.target_lang, given.source_column, given.target_column)
        for name, files in map(_named, given.test_set):
            rows[name] = load_test_set("--test_set", files, columns)[0]
    elif trained is not None:
        corpus = load_corpus(trained.data)
        rows = {"valid": corpus.valid, **({"test": corpus.test} if corpus.test is not None else {})}
    else:
        raise UserError(f"--model {given.model}: no run folder, so --test_set says on what it is scored")
    return [
        TestSet(
            name=name, sources=found["source"][: given.max_samples], references=found["target"][: given.max_samples]
        )
        for name, found in rows.items()
    ]


def _judge(given: argparse.Namespace, test_sets: list[TestSet], runtime: Runtime) -> list[Verdict]:
    """Translate with each model in turn, one in memory at a time, and score. Collective."""
    from mtloop.metrics import score_with_intervals
    from mtloop.translate.translator import Translator

    def translate(flag: str, model: str) -> list[list[str]]:
        try:
            translator = Translator(
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
        hypotheses = []
        for test_set in test_sets:
            runtime.say(f"{flag.removeprefix('--')}: translating {len(test_set.sources):,} rows of {test_set.name} ...")
            hypotheses.append(translator(test_set.sources))
        return hypotheses

    of_model = translate("--model", given.model)
    of_baseline = translate("--baseline", given.baseline) if given.baseline is not None else [None] * len(test_sets)

    def judge(test_set: TestSet, hypotheses: list[str], others: list[str] | None) -> Verdict:
        scores, baseline_scores = score_with_intervals(
            hypotheses,
            test_set.references,
            given.target_lang,
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
