"""Convert a model for a faster engine, and compare the two.

The comparison on a test set reports identical outputs, BLEU, chrF and sentences/s of both.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mtloop.atomic import hold, partial_name, publish, sweep_partials, sync_tree
from mtloop.checkpoint.listing import final_record, model_folder
from mtloop.checkpoint.manifest import CorruptCheckpoint
from mtloop.cli.flags import (
    add_model_flags,
    add_test_set_flags,
    check_test_sets,
    fill_settings,
    load_run_rows_or_test_sets,
    open_model,
    start_runtime,
)
from mtloop.cli.status import writing
from mtloop.errors import UserError, behind_link, check_folder
from mtloop.evaluation.metrics import Metric, metrics_of, with_column
from mtloop.evaluation.selection import choose_metrics
from mtloop.evaluation.significance import recorded_text
from mtloop.generation import RECORD_NAME
from mtloop.run_folder import run_above, step_named, stored_config
from mtloop.tables import aligned

if TYPE_CHECKING:
    from mtloop.config.settings import Config
    from mtloop.evaluation.evaluate import Report
    from mtloop.evaluation.test_sets import ScoredModel, TestSet
    from mtloop.generation.ctranslate2 import Record
    from mtloop.runtime.ranks import Runtime

# CTranslate2's own names (ctranslate2.specs.model_spec.ACCEPTED_MODEL_TYPES), here without the package.
QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")
MAX_SAMPLES, NUM_WARM_UP, MAX_SHOWN = 500, 32, 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="a run folder, a checkpoint, any folder, or a Hub name[@revision]")
    add("-o", "--output", required=True, metavar="DIR", help="the export: a new folder, or an export to replace")
    add("--format", required=True, choices=("ctranslate2",), help="what to write")
    add("--quantization", choices=QUANTIZATIONS, help="of the weights (none: as they are)")
    add("--no_parity", action="store_true", help="convert only")
    add_test_set_flags(parser, without="the run's own validation and test rows", max_samples=MAX_SAMPLES)
    add_model_flags(parser)


def _check(given: argparse.Namespace) -> None:
    check_test_sets(given)
    if given.no_parity and given.test_set:
        raise UserError("--no_parity, --test_set: they exclude each other. Give one of them.")
    target = Path(given.output)
    check_folder("-o", target)
    if target.is_dir() and any(target.iterdir()) and not (target / RECORD_NAME).is_file():
        raise UserError(f"-o: the folder exists and is not an export (got {target}). Give a new folder.")


def run(given: argparse.Namespace) -> None:
    """Run the command. Collective: every process of a launch calls it."""
    _check(given)
    from mtloop.generation.ctranslate2 import import_ctranslate2

    import_ctranslate2("--format ctranslate2")
    runtime = start_runtime(given)
    try:
        trained = stored_config(given.model)
        fill_settings(given, trained)
        test_sets: list[TestSet] = []
        if not given.no_parity and (given.test_set or trained is not None):
            test_sets = runtime.one_first(lambda: load_run_rows_or_test_sets(given, trained))
        _write(given, test_sets, trained, runtime)
        if not test_sets and not given.no_parity:
            runtime.say(
                f"not compared: {given.model} is not a run folder. Give rows to compare on with --test_set FILE."
            )
    finally:
        runtime.close()


def _write(given: argparse.Namespace, test_sets: list[TestSet], trained: Config | None, runtime: Runtime) -> None:
    """Write the export under a hidden name, and publish it after the comparison. Collective."""
    target = behind_link(Path(given.output))
    partial = runtime.on_main(lambda: _new_folder(target))
    try:
        record, generated = _convert(given, test_sets, trained, partial, runtime)
        if test_sets:
            reports = _compare(given, test_sets, trained, generated, partial, runtime)
            runtime.on_main(lambda: _save(replace(record, parity=reports), target, partial))
        runtime.on_main(lambda: _publish(partial, target))
    finally:
        if runtime.is_main:
            shutil.rmtree(partial.parent, ignore_errors=True)


def _convert(
    given: argparse.Namespace, test_sets: list[TestSet], trained: Config | None, partial: Path, runtime: Runtime
) -> tuple[Record, list[Report]]:
    """Translate the test sets with the model, and convert it; its memory is freed on return. Collective."""
    from mtloop.generation.conversion import convert, differences
    from mtloop.generation.engine import TransformersEngine

    scored = open_model("--model", given.model, given, runtime, trained=trained, engine="transformers")
    engine = cast(TransformersEngine, scored.engine)
    runtime.say(*(f"warning: generation_config {line}" for line in differences(engine.network)))
    runtime.say(*(f"generate: translating {len(each.rows):,} rows of {each.name} ..." for each in test_sets))
    metrics = run_metrics(trained)
    generated = [evaluate_warm(scored, each, metrics) for each in test_sets]

    def convert_and_save() -> Record:
        origin = _origin(Path(model_folder(given.model)))
        with writing(given.output):
            record = convert(
                engine.network,
                engine.tokenizer,
                given.model,
                partial,
                quantization=given.quantization,
                origin=origin,
            )
            record.save(partial)
        return record

    return runtime.on_main(convert_and_save), generated


def _compare(
    given: argparse.Namespace,
    test_sets: list[TestSet],
    trained: Config | None,
    generated: list[Report],
    partial: Path,
    runtime: Runtime,
) -> list[dict[str, Any]]:
    """Translate with the export, print a table for each test set, and return the reports. Collective."""
    exported = open_model("--model", str(partial), given, runtime, trained=trained, engine="ctranslate2")
    how = {
        "num_beams": exported.engine.num_beams,
        "num_processes": runtime.num_ranks,
        "num_threads": runtime.num_threads,
        "device": runtime.device.type,
    }
    reports = []
    for test_set, ours in zip(test_sets, generated, strict=True):
        theirs = evaluate_warm(exported, test_set, run_metrics(trained))
        report = runtime.on_main(partial_of(compare, test_set, ours, theirs))
        runtime.say(
            f"parity on {report['num_sentences']:,} rows of {test_set.name}, {exported.engine.num_beams} beams, on "
            f"{runtime.device.type} with {runtime.num_threads} thread(s) in {runtime.num_ranks} process(es), "
            f"{given.quantization or 'unquantised'}:",
            *parity_table(report),
        )
        reports.append({**report, **how})
    return reports


def _save(record: Record, target: Path, folder: Path) -> None:
    with writing(target):
        record.save(folder)


def _new_folder(target: Path) -> Path:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_partials(target)
        partial = partial_name(target)
        partial.mkdir()
        hold(partial)  # until this process ends
    return partial / target.name  # the converter creates it


def _publish(partial: Path, target: Path) -> None:
    with writing(target):
        sync_tree(partial)
        size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        publish(partial, target)
    print(f"{target}: {size / 2**20:,.1f} MiB; to use it: mtloop translate FILE -o OUT --model {target}")


def run_metrics(trained: Config | None) -> tuple[Metric, ...]:
    """Return the default metrics, with the run's tokenizer of BLEU."""
    return choose_metrics(None, bleu_tokenizer=None if trained is None else trained.evaluation.bleu_tokenizer)


def evaluate_warm(scored: ScoredModel, test_set: TestSet, metrics: Sequence[Metric]) -> Report:
    """Evaluate on a test set, after a few of its rows to warm up. Collective."""
    scored.evaluate(test_set, few=NUM_WARM_UP, metrics=())
    return scored.evaluate(test_set, metrics=metrics)


def compare(test_set: TestSet, generate: Report, exported: Report) -> dict[str, Any]:
    """Return a report of JSON values on the two engines' translations of one test set. Main only."""
    pairs = list(zip(test_set.sources, generate.hypotheses, exported.hypotheses, strict=True))
    differing = [
        {"index": index, "source": source, "generate": one, "ctranslate2": other}
        for index, (source, one, other) in enumerate(pairs)
        if one != other
    ]

    def of_engine(report: Report) -> dict[str, float]:
        scores = {name: score.value for name, score in report.scores.items()}
        return {**scores, "sentences_per_s": report.sentences_per_s}

    return {
        "test_set": test_set.name,
        "num_sentences": len(pairs),
        "num_identical": len(pairs) - len(differing),
        "share_identical": 1 - len(differing) / len(pairs),
        "generate": of_engine(generate),
        "ctranslate2": of_engine(exported),
        "factor": exported.sentences_per_s / generate.sentences_per_s,
        **{f"{name}_signature": score.signature for name, score in exported.scores.items()},
        "differing": differing[:MAX_SHOWN],
    }


def parity_table(report: dict[str, Any]) -> list[str]:
    """Format a report as a table, and a summary below it."""
    metrics = with_column(metrics_of(report["generate"]))
    rows = [["", *(metric.title for metric in metrics), "sentences/s"]]
    for name in ("generate", "ctranslate2"):
        found = report[name]
        rows.append([name, *(recorded_text(found, metric) for metric in metrics), f"{found['sentences_per_s']:.1f}"])
    same, whole, factor = report["num_identical"], report["num_sentences"], report["factor"]
    return [
        *aligned(rows),
        f"{same:,} of {whole:,} outputs identical ({100 * report['share_identical']:.1f} %); ctranslate2 is "
        f"{factor:.1f} times as fast as generate",
    ]


def _origin(folder: Path) -> tuple[str | None, int | None]:
    """Return the run id and the step of a model in a run folder; None for each that is unknown."""
    folder = folder.resolve()
    run = run_above(folder)
    if run is None:
        return None, None
    step = step_named(folder.name)
    with contextlib.suppress(CorruptCheckpoint):
        step = final_record(run).get("step") if step is None else step
    return run.run_record["run_id"] or None, step
