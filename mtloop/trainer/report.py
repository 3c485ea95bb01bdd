"""Count, log and evaluate along the way; evaluate with the live model or a copy converted to CTranslate2."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mtloop.batching.loader import Update
from mtloop.config.settings import Config, is_from_scratch
from mtloop.errors import UserError, missing_package, rename_flag, unwritable
from mtloop.evaluation.evaluate import EvaluationSet, Report, count_pairs, evaluate
from mtloop.evaluation.metrics import Counted
from mtloop.evaluation.significance import resample
from mtloop.generation.engine import CTRANSLATE2, Engine, EngineOptions, TransformersEngine
from mtloop.model.adapters import merged_weights
from mtloop.model.loading import load_model
from mtloop.runtime.collectives import attempt
from mtloop.runtime.sharding import gathered
from mtloop.trainer.recovery import note_norm, report_nonfinite
from mtloop.trainer.run import Run
from mtloop.trainer.step import UpdateStats


def count(run: Run, update: Update, stats: UpdateStats) -> None:
    """Advance the counters by one update.

    Raises:
        RunFailed: as report_nonfinite.
    """
    for observe in run.observers:
        observe(run, update, stats)
    note_norm(run, update, stats.grad_norm)
    seconds = run.watch.lap()
    run.state.advance(target_tokens=stats.target_tokens, updates_in_epoch=update.updates_in_epoch, time_s=seconds)
    run.seconds_since_log += seconds
    run.tokens_since_log += stats.target_tokens
    run.display.advance()


def log(run: Run, stats: UpdateStats) -> None:
    """Record the update just made. Collective, and a host sync: the only copy of losses to the host."""
    report_nonfinite(run)
    (loss_sum,) = run.runtime.sum_over_ranks(stats.loss_sum)
    run.seconds_since_log += run.watch.lap()  # the device's remaining work
    record = {
        "step": run.state.step,
        "epoch": epoch_of(run),
        "loss": loss_sum / stats.target_tokens,
        "grad_norm": stats.grad_norm.item(),
        "learning_rate": stats.learning_rate,
        "target_tokens": stats.target_tokens,
        "tokens_per_s": run.tokens_since_log / run.seconds_since_log,
    }
    record |= run.runtime.compilations()

    def write() -> None:
        run.checkpointer.check()
        run.display.update(record)
        run.tracker.log_update(record)

    together(run, write)
    run.tokens_since_log, run.seconds_since_log = 0, 0.0


def together(run: Run, work: Callable[[], None]) -> None:
    """Do work in which main alone may fail (its disk); every rank raises then. Collective."""
    run.runtime.raise_together(attempt(work)[1])


def epoch_of(run: Run) -> float:
    """Epochs done, the current one as a fraction."""
    return round(run.state.epoch + run.state.cursor / run.loader.updates_per_epoch, 4)


def evaluate_and_record(run: Run) -> Report:
    """Evaluate on the validation rows, record, and update the best score. Collective."""
    report_nonfinite(run)
    report = evaluate_on(run, run.valid)
    config = run.config.evaluation
    score, is_greater_better = report.best_score(config.metric_for_best_model)
    is_eligible = report.has_survival(config.min_survival)
    run.state.record_score(score, is_greater_better=is_greater_better, is_eligible=is_eligible)
    return report


def evaluate_on(run: Run, data: EvaluationSet) -> Report:
    """Evaluate on `data`, and write and print the results. Collective."""
    with run.runtime.reporting_compilations():
        report = evaluate_rows(run, data)
    together(run, lambda: record_evaluation(run, data, report))
    run.watch.skip()
    return report


def evaluate_rows(run: Run, data: EvaluationSet) -> Report:
    """Evaluate on `data` with the run's settings, and nothing else. Collective."""
    config = run.config.evaluation
    with eval_engine(run) as engine:
        compare_engines(run, engine, data)
        return evaluate(
            engine,
            data,
            run.runtime,
            model=run.model,
            max_tokens=config.eval_max_tokens,
            max_length_ratio=config.max_length_ratio,
            target_lang=run.config.data.target_lang,
            metrics=run.metrics,
        )


def record_evaluation(run: Run, data: EvaluationSet, report: Report) -> None:
    """Write and print the results of an evaluation on main."""
    if not run.runtime.is_main:
        return
    step = run.state.step
    rows = list(zip(data.rows["index"][:], data.rows["source"][:], data.rows["target"][:], strict=True))
    record = {"step": step, "epoch": epoch_of(run), "train_time_s": run.state.train_time_s}
    record |= {**report.metrics(), **significance(run, data, rows, report)}
    pairs = [part.name for part in data.parts for _ in range(part.rows.start, part.rows.stop)]
    run.tracker.write_hypotheses(step, rows, report.hypotheses, name=data.name, pairs=pairs)
    run.tracker.log_evaluation(data.name, record)
    chosen = choose_samples(len(rows), run.config.output.num_samples, seed=run.config.hardware.seed)
    run.display.evaluation(
        data.name,
        record,
        pairs=list(report.pair_scores),
        samples=[(rows[i][1], rows[i][2], report.hypotheses[i]) for i in chosen],
        is_best=data is run.valid and is_new_best(run, report),
    )


def is_new_best(run: Run, report: Report) -> bool:
    """Return True if an evaluation of the validation rows, not recorded yet, is the best so far."""
    config = run.config.evaluation
    score, is_greater_better = report.best_score(config.metric_for_best_model)
    return report.has_survival(config.min_survival) and run.state.is_best(score, is_greater_better=is_greater_better)


def significance(run: Run, data: EvaluationSet, rows: list[tuple[int, str, str]], report: Report) -> dict[str, Any]:
    """Compute half of the 95 % confidence interval of each metric that can be resampled, by bootstrap.

    On the validation rows of a pretrained model that was evaluated before training, also the difference from that
    evaluation and its p-value. With several pairs, for each pair. The numbers are the same after a resume: they are
    computed from the run folder and the report.
    """
    start = counted_at_start(run, data, rows) if data.name != "test" and run.state.step > 0 else {}
    record: dict[str, Any] = {}
    for pair, counted in report.counted.items():
        found, before = resample(counted, start.get(pair))
        for name, interval in found.items():
            if interval.half_width is None:
                continue
            key = f"{name}_{pair}" if pair else name
            record[f"{key}_ci"] = interval.half_width
            if before is not None:
                record[f"{key}_gain"] = interval.score - before[name].score
                record[f"{key}_p_value"] = interval.p_value
    return record


def counted_at_start(run: Run, data: EvaluationSet, rows: list[tuple[int, str, str]]) -> dict[str, dict[str, Counted]]:
    """Count the statistics of the pretrained model's translations before training; {} if it was not evaluated."""
    if not run.counted_at_start and not is_from_scratch(run.config):
        stored = run.folder.hypotheses("step_0")
        if [(line.get("index"), line.get("source"), line.get("reference")) for line in stored] == rows:
            hypotheses = [line["hypothesis"] for line in stored]
            metrics = [metric for metric in run.metrics if metric.count is not None]
            run.counted_at_start = count_pairs(data, hypotheses, run.config.data.target_lang, metrics=metrics)
    return run.counted_at_start


def choose_samples(num_rows: int, num_samples: int, *, seed: int) -> list[int]:
    """Choose up to `num_samples` row numbers, ascending: the same at every evaluation of a run."""
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(num_rows, size=min(num_samples, num_rows), replace=False).tolist())


NUM_COMPARED = 200
FLAG = "--eval_engine ctranslate2"


def check_eval_engine(config: Config, model_config: Any) -> None:
    """Refuse an engine that is not installed or does not take the model, before anything is trained.

    Raises:
        UserError: naming --eval_engine and the remedy.
    """
    if config.evaluation.eval_engine != CTRANSLATE2:
        return
    try:
        from mtloop.generation.conversion import refusal
    except ImportError as error:
        raise missing_package(FLAG, "ctranslate2", "ctranslate2", error=error) from error
    if reason := refusal(model_config):
        raise UserError(f"{FLAG}: {reason}. Leave out --eval_engine.")


def live_engine(run: Run) -> TransformersEngine:
    """Return generate() on the model in training."""
    data = run.config.data
    return TransformersEngine(
        run.model,
        run.tokenizer,
        asked=EngineOptions(source_lang=data.source_lang, target_lang=data.target_lang),
        max_source_length=data.max_source_length,
        source_prefix=data.source_prefix,
    )


@contextmanager
def eval_engine(run: Run) -> Iterator[Engine]:
    """Provide the engine of --eval_engine for one evaluation, with the weights as they are now. Collective."""
    if run.config.evaluation.eval_engine != CTRANSLATE2:
        yield live_engine(run)
        return
    from mtloop.generation.ctranslate2 import CTranslate2Engine

    folder = run.folder.path / ".tmp-eval-engine"  # swept at the next start if this process dies
    data = run.config.data
    # The rows are encoded already, behind the prefix of their pair.
    asked = EngineOptions(source_prefix=data.source_prefix or "", max_source_length=data.max_source_length)
    weights = gathered(run.model.state_dict(keep_vars=True), is_kept=run.runtime.is_main)
    try:
        try:
            run.runtime.on_main(partial(_convert, run, weights, folder))
            engine = CTranslate2Engine(str(folder / "converted"), asked, run.runtime)
        except UserError as error:
            raise rename_flag(error, FLAG) from error
        yield engine
    finally:  # not collective: one rank alone may have failed
        if run.runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _convert(run: Run, weights: dict[str, Tensor], folder: Path) -> None:
    """Convert a copy of the weights, made on the host as for a checkpoint; the model is unchanged."""
    from mtloop.generation.conversion import convert

    shutil.rmtree(folder, ignore_errors=True)
    trust = run.config.model.trust_remote_code
    try:
        run.model.save_pretrained(folder / "copy", state_dict=merged_weights(run.model, weights))
        copy = load_model(str(folder / "copy"), run.tokenizer, dropout=None, attention="eager", trust_remote_code=trust)
        convert(copy, run.tokenizer, str(run.folder.path), folder / "converted", quantization=None).save(
            folder / "converted"
        )
        shutil.rmtree(folder / "copy")
    except OSError as error:
        raise unwritable(folder, error) from error


def compare_engines(run: Run, engine: Engine, data: EvaluationSet) -> None:
    """Print how many of a few rows another engine translates as generate() does, once a run. Collective."""
    if run.has_compared_engines or run.config.evaluation.eval_engine != CTRANSLATE2:
        return
    run.has_compared_engines = True
    few = data.first(NUM_COMPARED)
    max_tokens, target_lang = run.config.evaluation.eval_max_tokens, run.config.data.target_lang
    found, expected = (
        evaluate(one, few, run.runtime, max_tokens=max_tokens, target_lang=target_lang, metrics=()).hypotheses
        for one in (engine, live_engine(run))
    )
    num_same = sum(one == other for one, other in zip(found, expected, strict=True))
    run.runtime.say(
        f"{FLAG}: {num_same:,} of {len(few.rows):,} hypotheses are those of generate() "
        f"({100 * num_same / len(few.rows):.1f} %)"
    )
