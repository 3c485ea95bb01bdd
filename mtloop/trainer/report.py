"""What is counted, logged and evaluated along the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mtloop.atomic import read_json_lines
from mtloop.batching.loader import Update
from mtloop.config.settings import is_from_scratch
from mtloop.errors import RunFailed
from mtloop.evaluation.evaluate import EvaluationSet, Report, choose_samples, count_pairs, evaluate
from mtloop.evaluation.scores import Tally
from mtloop.evaluation.significance import resample
from mtloop.runtime import attempt
from mtloop.trainer.eval_engine import compare_engines, eval_engine
from mtloop.trainer.nonfinite import MAX_UNREAD, NUM_NAMED_ROWS, Unread
from mtloop.trainer.run import Run
from mtloop.trainer.step import UpdateStats


def count(run: Run, update: Update, stats: UpdateStats) -> None:
    """Advance the counters by one update; where its norm is known at once, refuse one that is no number.

    Raises:
        RunFailed: as report_nonfinite does.
    """
    run.guard.unread.append(
        Unread(
            step=run.state.step + 1,
            first_ids=update.sentence_ids[:NUM_NAMED_ROWS],
            num_rows=len(update.sentence_ids),
            grad_norm=stats.grad_norm,
        )
    )
    if run.reads_every_norm or len(run.guard.unread) >= MAX_UNREAD:
        report_nonfinite(run)
    seconds = run.watch.lap()
    run.state.advance(target_tokens=stats.target_tokens, updates_in_epoch=update.updates_in_epoch, time_s=seconds)
    run.seconds_since_log += seconds
    run.tokens_since_log += stats.target_tokens
    run.tracker.advance()


def report_nonfinite(run: Run) -> None:
    """Read the norms that the host does not know yet; refuse more non-finite ones than --skip_nonfinite. A host sync.

    The same on every rank, at the same step: the norms are.

    Raises:
        RunFailed: naming the step and the rows.
    """
    unread = run.guard.take()
    norms = run.runtime.read([update.grad_norm for update in unread])
    if unread:  # what the device had left to do
        waited_s = run.watch.lap()
        run.seconds_since_log += waited_s
        run.state.train_time_s += waited_s
    for update, grad_norm in zip(unread, norms, strict=True):
        if math.isfinite(grad_norm):
            continue
        run.state.num_nonfinite += 1
        rows = ", ".join(str(row) for row in run.train_rows[update.first_ids]["index"])
        message = (
            f"step {update.step}: the gradient norm is {grad_norm}, the weights are left as they were; "
            f"{update.num_rows} rows of the training data, the first: {rows}"
        )
        if run.state.num_nonfinite > run.config.optimizer.skip_nonfinite:
            raise RunFailed(f"{message}; lower --learning_rate, or tolerate more with --skip_nonfinite")
        run.runtime.say(message)


def log(run: Run, stats: UpdateStats) -> None:
    """Record the update just made. Collective, and a host sync: the only copy of losses to the host."""
    report_nonfinite(run)
    (loss_sum,) = run.runtime.sum_over_ranks(stats.loss_sum)
    run.seconds_since_log += run.watch.lap()  # what the device had left to do
    record = {
        "step": run.state.step,
        "epoch": epoch_of(run),
        "loss": loss_sum / stats.target_tokens,
        "grad_norm": stats.grad_norm.item(),
        "learning_rate": stats.learning_rate,
        "target_tokens": stats.target_tokens,
        "tokens_per_s": run.tokens_since_log / run.seconds_since_log,
    }
    if run.runtime.is_xla:
        record["num_compilations"] = run.runtime.num_compilations

    def write() -> None:
        run.checkpointer.check()
        run.tracker.log_update(record)

    together(run, write)
    run.tokens_since_log, run.seconds_since_log = 0, 0.0


def together(run: Run, work: Callable[[], None]) -> None:
    """Do what main alone may fail in (its disk): every rank raises then, and none is left waiting. Collective."""
    run.runtime.raise_together(attempt(work)[1])


def epoch_of(run: Run) -> float:
    """Epochs done, the current one as a fraction."""
    return round(run.state.epoch + run.state.cursor / run.loader.updates_per_epoch, 4)


def evaluate_and_record(run: Run) -> Report:
    """Evaluate on the validation rows, record, and update the best score. Collective."""
    report_nonfinite(run)
    report = evaluate_on(run, run.valid)
    metric = run.config.evaluation.metric_for_best_model
    run.state.record_score(report.score_of(metric), is_greater_better=metric != "eval_loss")
    return report


def evaluate_on(run: Run, data: EvaluationSet) -> Report:
    """Evaluate on `data`, print, and write metrics and hypotheses. Collective."""
    num_before = run.runtime.num_compilations
    report = evaluate_rows(run, data)
    if run.runtime.is_xla:
        num_own = run.runtime.num_compilations - num_before
        run.runtime.say(f"XLA: {num_before} programs compiled before this evaluation, {num_own} in it")
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
        )


def record_evaluation(run: Run, data: EvaluationSet, report: Report) -> None:
    """Write and print what an evaluation found. Main writes; elsewhere nothing happens."""
    if not run.runtime.is_main:
        return
    step = run.state.step
    rows = list(zip(data.rows["index"][:], data.rows["source"][:], data.rows["target"][:], strict=True))
    record = {"step": step, "epoch": epoch_of(run), "train_time_s": run.state.train_time_s}
    record |= {**report.metrics(), **chance(run, data, rows, report)}
    run.tracker.log_evaluation(data.name, record, epoch=epoch_of(run), pairs=list(report.pair_scores))
    pairs = [part.name for part in data.parts for _ in range(part.rows.start, part.rows.stop)]
    run.tracker.write_hypotheses(step, rows, report.hypotheses, name=data.name, pairs=pairs)
    chosen = choose_samples(len(rows), seed=run.config.hardware.seed)
    run.tracker.print_samples([(rows[i][1], rows[i][2], report.hypotheses[i]) for i in chosen])


def chance(run: Run, data: EvaluationSet, rows: list[tuple[int, str, str]], report: Report) -> dict[str, Any]:
    """Say what chance makes of BLEU and chrF: half of the 95 % confidence interval, by bootstrap.

    And, on the validation rows of a pretrained model that was evaluated before training, the difference from that and
    its p-value. Of several pairs, each pair's own. The same numbers after a resume: all is computed from the run folder
    and the report.
    """
    start = counted_at_start(run, data, rows) if data.name != "test" and run.state.step > 0 else {}
    record: dict[str, Any] = {}
    for pair, counted in report.counted.items():
        found, before = resample(counted, start.get(pair))
        for metric, name in (("bleu", "BLEU"), ("chrf", "chrF2")):
            key = f"{metric}_{pair}" if pair else metric
            record[f"{key}_ci"] = found[name].half_width
            if before is not None:
                record[f"{key}_gain"] = found[name].score - before[name].score
                record[f"{key}_p_value"] = found[name].p_value
    return record


def counted_at_start(run: Run, data: EvaluationSet, rows: list[tuple[int, str, str]]) -> dict[str, Tally]:
    """Count what the pretrained model made of the same rows before training; {} where it was not asked."""
    if not run.counted_at_start and not is_from_scratch(run.config):
        stored = read_json_lines(run.folder.hypotheses_dir / "step_0.jsonl")
        if [(line.get("index"), line.get("source"), line.get("reference")) for line in stored] == rows:
            hypotheses = [line["hypothesis"] for line in stored]
            run.counted_at_start = count_pairs(data, hypotheses, run.config.data.target_lang)
    return run.counted_at_start
