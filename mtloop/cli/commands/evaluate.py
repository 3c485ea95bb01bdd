"""Score models on test sets, with confidence intervals.

Translate test sets and score them: BLEU, chrF, TER and others, with 95 % confidence intervals by bootstrap, and the
difference from a baseline with its p-value.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.atomic import sweep_partials, write_json, write_json_lines, write_text
from mtloop.cli.flags import (
    add_metrics_flag,
    add_model_flags,
    add_test_set_flags,
    check_test_sets,
    chosen_metrics,
    fill_settings,
    load_own_rows,
    load_run_rows_or_test_sets,
    number_type,
    open_model,
    start_runtime,
)
from mtloop.cli.status import writing
from mtloop.config.settings import Config, flat
from mtloop.errors import UserError, check_file, check_folder
from mtloop.evaluation.metrics import with_column
from mtloop.evaluation.significance import NUM_RESAMPLES, resample
from mtloop.run_folder import stored_config
from mtloop.tables import aligned

if TYPE_CHECKING:
    from mtloop.evaluation.evaluate import Report
    from mtloop.evaluation.selection import Functions
    from mtloop.evaluation.significance import Interval
    from mtloop.evaluation.test_sets import TestSet, Verdict
    from mtloop.runtime.ranks import Runtime


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="M",
        help="a run folder, a checkpoint, an export, any folder, or a Hub name[@revision]",
    )
    add("--baseline", metavar="M", help="another model, to compare with")
    add_test_set_flags(parser, without="the run's own validation and test rows")
    add_metrics_flag(parser, "bleu", "chrf", "ter", "survival")
    add(
        "--num_resamples",
        type=number_type("num_resamples"),
        default=NUM_RESAMPLES,
        metavar="N",
        help=f"of the bootstrap ({NUM_RESAMPLES})",
    )
    add("-o", "--output", metavar="DIR", help="a folder for report.json and the hypotheses of each test set")
    add("--compare", metavar="FILE.html", help="a page with every sentence, its translations and chrF, in one "
        "file that needs no network; with --baseline, by gain and loss")  # fmt: skip
    add_model_flags(parser)


def _check(given: argparse.Namespace) -> None:
    check_test_sets(given)
    if given.output is not None:
        check_folder("-o", Path(given.output))
    if given.compare is not None:  # checked before anything is translated
        path = Path(given.compare)
        if path.suffix.lower() not in (".html", ".htm"):
            raise UserError(
                f"--compare: expected the page to write, FILE.html (got {path}). Give the other model with --baseline."
            )
        check_file("--compare", path)
        with writing(path, flag="--compare"):
            path.parent.mkdir(parents=True, exist_ok=True)  # may be the folder of -o
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"--compare {path}: no file can be written there. Give another path.")


def run(given: argparse.Namespace) -> None:
    """Run the command. Collective: every process of a launch calls it."""
    trained = stored_config(given.model)
    _check(given)
    fill_settings(given, trained)
    _score(given, trained, lambda: load_run_rows_or_test_sets(given, trained))


def score_splits(config: Config, functions: Functions) -> None:
    """Score --model_name_or_path of a config of train.py on the splits that it names in `scored`. Collective.

    Beside the files of -o, --output_dir gets all_results.json and, of test rows, generated_predictions.txt, as from
    run_translation.py.
    """
    from mtloop.cli.main import Parser

    parser = Parser(allow_abbrev=False)
    add_flags(parser)
    given = parser.parse(["--model", str(config.model.model_name_or_path)])
    settings = flat(config)
    for name in vars(given).keys() & settings.keys():
        if settings[name] is not None:
            setattr(given, name, settings[name])
    given.functions = functions
    given.output = config.output.output_dir
    given.max_tokens_per_batch = config.evaluation.eval_max_tokens or given.max_tokens_per_batch
    given.is_one_pair = False
    if given.output is not None:
        check_folder("--output_dir", Path(given.output))
    verdicts = _score(given, config, lambda: load_own_rows(given, config, *config.scored))
    if verdicts and given.output:
        _write_as_run_translation(Path(given.output), verdicts)


def _write_as_run_translation(folder: Path, verdicts: list[Verdict]) -> None:
    """Write all_results.json and generated_predictions.txt. Main only."""
    results: dict[str, Any] = {}
    for verdict in verdicts:
        name = {"valid": "eval", "test": "predict"}[verdict.test_set.name.partition(" ")[0]]
        results |= {f"{name}_{metric}": round(interval.score, 4) for metric, interval in verdict.scores.items()}
        results[f"{name}_samples"] = len(verdict.hypotheses)
        if name == "predict":
            lines = [" ".join(hypothesis.splitlines()) for hypothesis in verdict.hypotheses]
            write_text(folder / "generated_predictions.txt", "\n".join(lines) + "\n")
    write_json(folder / "all_results.json", results)
    print(f"{folder}: all_results.json, report.json, and the translations")


def _score(given: argparse.Namespace, trained: Config | None, load: Callable[[], list[TestSet]]) -> list[Verdict]:
    """Score the models on the test sets that `load` returns; print and write the results.

    Collective. Returns the verdicts on main, none elsewhere.
    """
    given.metrics = chosen_metrics(given, trained)
    runtime = start_runtime(given)
    try:
        from mtloop.evaluation.test_sets import try_metrics

        test_sets = runtime.one_first(load)
        runtime.on_main(lambda: try_metrics(given.metrics, test_sets, runtime))
        of_model = _reports(given, "--model", given.model, test_sets, trained, runtime)
        of_baseline: list[Report] | list[None] = [None] * len(test_sets)
        if given.baseline is not None:
            of_baseline = _reports(given, "--baseline", given.baseline, test_sets, trained, runtime)
        verdicts: list[Verdict] = []
        runtime.on_main(lambda: verdicts.extend(_conclude(given, test_sets, of_model, of_baseline)))
        return verdicts
    finally:
        runtime.close()


def _reports(
    given: argparse.Namespace,
    flag: str,
    model: str,
    test_sets: list[TestSet],
    trained: Config | None,
    runtime: Runtime,
) -> list[Report]:
    """Score a model on each test set; it leaves the memory with this function. Collective."""
    is_by_flags = trained is not None and bool(trained.scored)
    flag, of_model = ("--model_name_or_path", trained) if is_by_flags else (flag, stored_config(model) or trained)
    scored = open_model(flag, model, given, runtime, trained=of_model)
    reports = []
    for test_set in test_sets:
        runtime.say(f"translating {len(test_set.rows):,} rows of {test_set.name} with {model} ...")
        reports.append(scored.evaluate(test_set, metrics=given.metrics))
    return reports


def _conclude(
    given: argparse.Namespace,
    test_sets: list[TestSet],
    of_model: list[Report],
    of_baseline: list[Report] | list[None],
) -> list[Verdict]:
    """Compare, print and write; return the verdicts. Main only."""
    from mtloop.evaluation.test_sets import Verdict

    verdicts = []
    for test_set, report, other in zip(test_sets, of_model, of_baseline, strict=True):
        baseline = None if other is None else other.counted[""]
        scores, baseline_scores = resample(report.counted[""], baseline, num_resamples=given.num_resamples)
        verdicts.append(
            Verdict(
                test_set=test_set,
                hypotheses=report.hypotheses,
                scores=scores,
                baseline_hypotheses=None if other is None else other.hypotheses,
                baseline_scores=baseline_scores,
                counted=report.counted[""],
                baseline_counted=baseline or {},
            )
        )
    print("\n".join(verdict_table(verdicts, has_baseline=given.baseline is not None)))
    if given.output:
        _write(Path(given.output), given, verdicts)
    if given.compare:
        _write_page(Path(given.compare), given, verdicts)
    return verdicts


def verdict_table(verdicts: list[Verdict], *, has_baseline: bool) -> list[str]:
    """Write the scores as a table, the metrics that another one counts too in a second, and the signatures below."""
    found = {name: one.metric for verdict in verdicts for name, one in verdict.scores.items()}
    metrics = with_column(found.values())
    rows = [["test set", "rows", *(metric.title for metric in metrics)]]
    for verdict in verdicts:
        cells = [verdict.text(metric.name) for metric in metrics]
        rows.append([verdict.test_set.name, f"{len(verdict.hypotheses):,}", *cells])
    parts = [["", *(verdict.test_set.name for verdict in verdicts)]]
    parts += [
        [metric.title, *(_with_rows(verdict, name) for verdict in verdicts)]
        for name, metric in found.items()
        if metric not in metrics
    ]
    what = "score ± half of the 95 % confidence interval"
    what += " (difference from the baseline, p-value of the paired bootstrap)" if has_baseline else ""
    scores = {name: one for verdict in reversed(verdicts) for name, one in verdict.scores.items()}
    intervals = [scores[metric.name] for metric in metrics if scores[metric.name].signature]
    signatures = [f"{one.metric.label or one.metric.title}: {one.signature}" for one in intervals]
    of_parts = ["", *aligned(parts, left=1)] if len(parts) > 1 else []
    return ["", *aligned(rows), *of_parts, "", what, *signatures]


def _with_rows(verdict: Verdict, name: str) -> str:
    """Format a score with the part of its signature that differs from the metric's beside it: the rows that count."""
    signature = verdict.scores[name].signature if name in verdict.scores else ""
    return f"{verdict.text(name)} {signature.partition('|')[0]}".rstrip()


def _write(folder: Path, given: argparse.Namespace, verdicts: list[Verdict]) -> None:
    """Write report.json, and NAME.jsonl with index, source, reference, hypothesis, baseline and lost of each row."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", *(f"{verdict.test_set.name}.jsonl" for verdict in verdicts)):
            sweep_partials(folder / name)
    report: dict[str, Any] = {"model": given.model, "baseline": given.baseline, "test_sets": {}}
    for verdict in verdicts:
        test_set = verdict.test_set
        report["test_sets"][test_set.name] = {
            "num_sentences": len(verdict.hypotheses),
            "scores": _records(verdict.scores),
            "baseline_scores": _records(verdict.baseline_scores or {}),
        }
        others: Sequence[str | None] = verdict.baseline_hypotheses or [None] * len(verdict.hypotheses)
        rows = zip(test_set.sources, test_set.references, verdict.hypotheses, others, strict=True)
        written = []
        for index, (source, reference, hypothesis, other) in enumerate(rows):
            row = {"index": index, "source": source, "reference": reference, "hypothesis": hypothesis}
            written.append({**row, **({} if other is None else {"baseline": other})})
        for row, lost in zip(written, verdict.lost, strict=True):
            if lost:
                row["lost"] = [what for of_kind in lost.values() for what in of_kind]
        write_json_lines(folder / f"{test_set.name}.jsonl", written)
    write_json(folder / "report.json", report)


def _records(scores: Mapping[str, Interval]) -> dict[str, Any]:
    return {one.metric.label or one.metric.title: one.record() for one in scores.values()}


def _write_page(path: Path, given: argparse.Namespace, verdicts: list[Verdict]) -> None:
    from mtloop.evaluation.page import page

    target = check_file("--compare", path)
    sweep_partials(target)
    write_text(target, page(verdicts, model=given.model, baseline=given.baseline))
    print(
        f"{path}: every sentence, {'by gain and loss' if given.baseline else 'by chrF; --baseline compares two models'}"
    )
