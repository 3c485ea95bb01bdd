"""The Run bundle, train() and train_step(): the loop on one screen.

Knows what happens when, and leaves how to the modules below. Shape letters: B sentences, S source tokens, T target
tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.checkpoint import choose_checkpoint
from mtloop.checkpoint.save import Checkpointer
from mtloop.checkpoint.weights import load_weights
from mtloop.config import Config, RunFailed, UserError
from mtloop.evaluate import EvaluationSet, Report, choose_samples, evaluate
from mtloop.hub import Publisher
from mtloop.loader import Batch, TrainLoader, Update
from mtloop.loss import token_loss_sum
from mtloop.model import shift_right
from mtloop.run_folder import RunFolder
from mtloop.runtime import Interrupted, Runtime, attempt
from mtloop.state import TrainState
from mtloop.tracking import Stopwatch, Tracker

T = TypeVar("T")
# An fp16 update is repeated with a halved scale this often: 2^10 is far beyond what a sound model needs.
MAX_OVERFLOW_REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class UpdateStats:
    """What one optimizer step did.

    Attributes:
        loss_sum: This rank's sum over its target tokens, a scalar on the device.
        grad_norm: Before clipping, of the whole update: the same on every rank; a scalar on the device.
        learning_rate: The rate the step was taken with.
        target_tokens: Of the whole update, all ranks.
        is_skipped: Whether the weights were left as they were, for a non-finite gradient norm.
    """

    loss_sum: Tensor
    grad_norm: Tensor
    learning_rate: float
    target_tokens: int
    is_skipped: bool = False


@dataclass(kw_only=True)
class Run:
    """All that a run is made of, built by build.build_run.

    data_report is what data.json holds or will hold; different is what --allow_changed let through.
    """

    config: Config
    runtime: Runtime
    folder: RunFolder
    model: PreTrainedModel
    wrapped_model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    loader: TrainLoader
    train_rows: Dataset
    valid: EvaluationSet
    test: EvaluationSet | None
    checkpointer: Checkpointer
    tracker: Tracker
    total_steps: int
    publisher: Publisher | None = None
    data_report: dict[str, Any] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)
    state: TrainState = field(default_factory=TrainState)
    watch: Stopwatch = field(default_factory=Stopwatch)
    tokens_since_log: int = 0
    seconds_since_log: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.state.step >= self.total_steps

    @property
    def is_out_of_patience(self) -> bool:
        patience = self.config.evaluation.early_stopping_patience
        return patience is not None and self.state.num_evaluations_without_gain >= patience

    @property
    def is_evaluation_pending(self) -> bool:
        """Whether the evaluation of this step is still to be made: the first of all, or one that a signal cut short."""
        if self.state.step == 0:
            return bool(self.config.evaluation.eval_on_start) and self.state.evaluated_step < 0
        return self.due("evaluate") and self.state.evaluated_step != self.state.step

    @property
    def ending(self) -> str:
        """What a reader should know of the end: an early stop, and which step final/ holds."""
        evaluation, state = self.config.evaluation, self.state
        text = ""
        if evaluation.load_best_model_at_end and state.best_score is not None:
            text += f", that of step {state.best_step:,} ({evaluation.metric_for_best_model} {state.best_score:.4g})"
        if self.is_out_of_patience and not self.is_done:
            text += f"; stopped early after {state.num_evaluations_without_gain} evaluation(s) without a gain"
        return text

    def due(self, event: str) -> bool:
        """Whether `event` (log, evaluate, save) falls on the step just made."""
        step = self.state.step
        if event == "log":
            return step == 1 or step % self.config.output.logging_steps == 0 or self.is_done
        if event == "evaluate":
            every = self.config.evaluation.eval_steps
            return self.is_done or (self.state.is_epoch_end if every is None else step % every == 0)
        assert event == "save"
        every = self.config.output.save_steps
        is_new_best = self.state.best_step == step
        return self.is_done or self.state.is_epoch_end or is_new_best or (every is not None and step % every == 0)


def train(run: Run) -> int | None:
    """Train to the end, or until a signal, from the newest checkpoint or the start.

    Collective.

    Returns:
        The signal that stopped the run after its checkpoint was saved, None when the run is done.

    Raises:
        RunFailed: on every rank, when the run cannot go on.
    """
    restore(run)
    stop_signal = None
    try:
        if run.is_evaluation_pending:
            evaluate_and_record(run)
            save(run)  # training may never beat the first one: then it is the best model, and final/ is made of it
        run.tracker.open_bar(run.state.step)
        run.watch.skip()
        updates = run.loader.updates(epoch=run.state.epoch, cursor=run.state.cursor)
        while not (run.is_done or run.is_out_of_patience or stop_signal):
            update = next(updates)
            stats = train_step(run, update)
            count(run, update, stats)
            if run.due("log"):
                log(run, stats)
            if run.due("evaluate"):
                evaluate_and_record(run)
            stop_signal = run.runtime.agree_on_signal(run.state.step)
            if run.due("save") or run.is_out_of_patience or stop_signal:
                save(run)
                stop_signal = stop_signal or run.runtime.agree_on_signal()  # one that came during the save
        run.tracker.close_bar()
        if stop_signal is None:
            finish(run)
    except Interrupted as stop:  # in an evaluation, on every rank: it is abandoned, and made again after the resume
        run.tracker.close_bar()
        stop_signal = stop.number
        if not run.runtime.on_main(lambda: run.checkpointer.is_saved):
            save(run)
    return stop_signal


def train_step(run: Run, update: Update) -> UpdateStats:
    """Take one optimizer step.

    Collective: every rank calls it with equally many micro-batches. An fp16 update whose gradients overflow is repeated
    with a lower scale, so that no sentence is lost.
    """
    for _ in range(MAX_OVERFLOW_REPEATS + 1):
        loss_sum = accumulate_gradients(run, update)
        max_norm = run.config.optimizer.max_grad_norm or math.inf
        grad_norm = torch.as_tensor(run.runtime.accelerator.clip_grad_norm_(run.wrapped_model.parameters(), max_norm))
        is_finite = math.isfinite(grad_norm.item())  # host sync; the norm is the same on every rank, so is the verdict
        scaler = run.runtime.accelerator.scaler
        if is_finite or scaler is None:
            break
        run.optimizer.step()  # the scaler skips the step and lowers the scale
        run.optimizer.zero_grad()
    learning_rate = float(run.scheduler.get_last_lr()[0])
    if is_finite:
        run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad()
    return UpdateStats(
        loss_sum=loss_sum,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        target_tokens=update.target_tokens,
        is_skipped=not is_finite,
    )


def accumulate_gradients(run: Run, update: Update) -> Tensor:
    """Run forward and backward over this rank's micro-batches; the gradient is that of the whole update's mean.

    Returns:
        fp32 scalar, the sum of this rank's token losses, detached.
    """
    run.runtime.reseed(run.state.step)
    loss_sum = torch.zeros((), device=run.runtime.device)
    for micro_batch, is_last in mark_last(update.micro_batches):
        with run.runtime.gradient_sync(run.wrapped_model, enabled=is_last):
            micro_loss_sum = forward_loss_sum(run, micro_batch)
            # Data parallelism takes the mean over ranks: undone by num_ranks. target_tokens is the whole update's.
            run.runtime.accelerator.backward(micro_loss_sum * run.runtime.num_ranks / update.target_tokens)
        loss_sum += micro_loss_sum.detach()
    return loss_sum


def forward_loss_sum(run: Run, batch: Batch) -> Tensor:
    """Sum the token losses of input_ids, attention_mask [B, S] and labels [B, T]."""
    logits = run.wrapped_model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=shift_right(run.model, batch["labels"]),
        use_cache=False,
    ).logits
    return token_loss_sum(logits, batch["labels"], label_smoothing=run.config.optimizer.label_smoothing_factor)


def mark_last(items: list[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item and whether it is the last."""
    for number, item in enumerate(items, start=1):
        yield item, number == len(items)


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


def restore(run: Run) -> None:
    """Go on from the checkpoint that is asked for, else from the newest sound one, else from nothing. Collective."""
    asked = run.config.output.resume_from_checkpoint
    path = run.runtime.on_main(lambda: choose_checkpoint(run.folder, asked, run.runtime.say))
    if path is not None:
        check_origin(run, run.checkpointer.restore(path))
        run.runtime.say(f"resumed from {path}: step {run.state.step:,} of {run.total_steps:,}, epoch {epoch_of(run)}")

    def settle_folder() -> None:
        run.checkpointer.drop_later()
        run.folder.drop_after(run.state.step if path is not None else -1)
        if run.different:
            run.folder.record_changes(run.different, step=run.state.step)
            run.folder.write_data(run.data_report)
            run.folder.write_config(run.config)

    run.runtime.on_main(settle_folder)
    if run.different:
        run.runtime.say(f"goes on changed from step {run.state.step:,}: {'; '.join(run.different)}")


def check_origin(run: Run, record: dict[str, Any]) -> None:
    """Compare a checkpoint that was just read with the run that takes it over: its data and its plan.

    Raises:
        UserError: for one of another run on other data, without --allow_changed.
    """
    mine, theirs = run.checkpointer.identity, record.get("fingerprints", {})
    if record.get("run_id", mine["run_id"]) != mine["run_id"]:
        changed = [name for name in ("data", "tokenizer") if theirs[name] != mine["fingerprints"][name]]
        if changed and not run.config.output.allow_changed:
            raise UserError(
                f"--resume_from_checkpoint {run.config.output.resume_from_checkpoint}: it is of another run, with "
                f"other {' and '.join(changed)}; give the same, or --allow_changed"
            )
        run.runtime.say("the checkpoint is of another run")
    if theirs.get("plan", mine["fingerprints"]["plan"]) != mine["fingerprints"]["plan"] and run.state.cursor:
        run.runtime.say(f"the updates of an epoch have changed: epoch {run.state.epoch + 1} begins again")
        run.state.cursor = 0


def finish(run: Run) -> None:
    """Publish final/, evaluate it on the test rows where there are some, draw the curves. Collective."""
    if not run.runtime.on_main(lambda: run.checkpointer.is_saved):
        save(run)  # resumed from the end of a run in another folder
    source = run.checkpointer.publish_final(is_best=run.config.evaluation.load_best_model_at_end)
    if run.test is not None:
        load_weights(run.model, source)
        evaluate_on(run, run.test)
    run.tracker.draw_curves()
    if run.publisher is not None:
        run.publisher.push(run.folder.final_dir, "Training complete")


def save(run: Run) -> None:
    """Save the step, and queue it for the Hub where it ends an epoch and main was told to push. Collective."""
    run.checkpointer.save()
    if run.publisher is not None and run.state.is_epoch_end:
        run.publisher.push(run.checkpointer.path, f"Training in progress, epoch {run.state.epoch}")
    run.watch.skip()
