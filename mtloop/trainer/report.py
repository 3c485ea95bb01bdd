"""What is counted, logged and evaluated along the way."""

from __future__ import annotations

from collections.abc import Callable

from mtloop.config import RunFailed
from mtloop.evaluate import EvaluationSet, Report, choose_samples, evaluate
from mtloop.loader import Update
from mtloop.runtime import attempt
from mtloop.trainer.run import Run
from mtloop.trainer.step import UpdateStats


def count(run: Run, update: Update, stats: UpdateStats) -> None:
    """Advance the counters by one update; refuse more non-finite ones than --skip_nonfinite.

    Raises:
        RunFailed: naming the step and the rows.
    """
    if stats.is_skipped:
        run.state.num_nonfinite += 1
        rows = ", ".join(str(row) for row in run.train_rows[update.sentence_ids[:10]]["index"])
        message = (
            f"step {run.state.step + 1}: the gradient norm is {stats.grad_norm.item()}, the weights are left as they "
            f"were; {len(update.sentence_ids)} rows of the training data, the first: {rows}"
        )
        if run.state.num_nonfinite > run.config.optimizer.skip_nonfinite:
            raise RunFailed(f"{message}; lower --learning_rate, or tolerate more with --skip_nonfinite")
        run.runtime.say(message)
    seconds = run.watch.lap()
    run.state.advance(target_tokens=stats.target_tokens, updates_in_epoch=update.updates_in_epoch, time_s=seconds)
    run.seconds_since_log += seconds
    run.tokens_since_log += stats.target_tokens
    run.tracker.advance()


def log(run: Run, stats: UpdateStats) -> None:
    """Record the update just made. Collective, and a host sync: the only copy of losses to the host."""
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
    together(run, lambda: run.tracker.log_update(record))
    run.tokens_since_log, run.seconds_since_log = 0, 0.0


def together(run: Run, work: Callable[[], None]) -> None:
    """Do what main alone may fail in (its disk): every rank raises then, and none is left waiting. Collective."""
    run.runtime.raise_together(attempt(work)[1])


def epoch_of(run: Run) -> float:
    """Epochs done, the current one as a fraction."""
    return round(run.state.epoch + run.state.cursor / run.loader.updates_per_epoch, 4)


def evaluate_and_record(run: Run) -> Report:
    """Evaluate on the validation rows, record, and update the best score. Collective."""
    report = evaluate_on(run, run.valid)
    metric = run.config.evaluation.metric_for_best_model
    run.state.record_score(report.score_of(metric), is_greater_better=metric != "eval_loss")
    return report


def evaluate_on(run: Run, data: EvaluationSet) -> Report:
    """Evaluate on `data`, print, and write metrics and hypotheses. Collective."""
    report = evaluate(
        run.model,
        run.tokenizer,
        data,
        run.runtime,
        max_tokens=run.config.evaluation.eval_max_tokens,
        target_lang=run.config.data.target_lang,
    )
    together(run, lambda: record_evaluation(run, data, report))
    run.watch.skip()
    return report


def record_evaluation(run: Run, data: EvaluationSet, report: Report) -> None:
    """Write and print what an evaluation found. Main writes; elsewhere nothing happens."""
    step = run.state.step
    run.tracker.log_evaluation(
        data.name, {"step": step, "epoch": epoch_of(run), **report.metrics()}, epoch=epoch_of(run)
    )
    if run.runtime.is_main:
        rows = list(zip(data.rows["index"][:], data.rows["source"][:], data.rows["target"][:], strict=True))
        run.tracker.write_hypotheses(step, rows, report.hypotheses, name=data.name)
        chosen = choose_samples(len(rows), seed=run.config.hardware.seed)
        run.tracker.print_samples([(rows[i][1], rows[i][2], report.hypotheses[i]) for i in chosen])
