"""Take one optimizer step. Must not know what happens between steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from mtloop.batching.loader import Update
from mtloop.model.loss import Projection, batch_loss_sum
from mtloop.trainer.recovery import agree_on_memory, finite_learning_rate, step_if_finite, with_recovery
from mtloop.trainer.run import Run

T = TypeVar("T")


@dataclass(frozen=True)
class UpdateStats:
    """Numbers of one optimizer step.

    Attributes:
        loss_sum: Sum over this rank's target tokens, in nats; float32 [1] on the device.
        grad_norm: Norm of the whole update's gradient before clipping, the same on every rank; a scalar on the device.
        learning_rate: Learning rate of the step.
        target_tokens: Target tokens of the whole update, all ranks.
        is_skipped: 1 if the weights were left unchanged because grad_norm is not finite, else 0; on the device.
    """

    loss_sum: Tensor
    grad_norm: Tensor
    learning_rate: float
    target_tokens: int
    is_skipped: Tensor


@with_recovery  # an fp16 overflow or a lack of memory repeats the update
def train_step(run: Run, update: Update) -> UpdateStats:
    """Take one optimizer step on the mean over the update's target tokens. Collective; raises RunFailed."""
    runtime, model = run.runtime, run.wrapped_model
    smoothing = run.config.optimizer.label_smoothing_factor
    runtime.seed_update(run.state.step)
    loss_sum, projection = runtime.on_device(0.0), Projection(num_forwards=len(update.micro_batches))
    with runtime.autocast():  # around the whole update: each weight is cast once
        for batch, is_last in mark_last(update.micro_batches):
            with runtime.accumulate(model, is_last=is_last):
                batch_loss = batch_loss_sum(run.model, batch, model, label_smoothing=smoothing, projection=projection)
                agree_on_memory(run, is_last=is_last)
                # Data parallelism takes the mean over ranks: undone by num_ranks.
                runtime.accelerator.backward(batch_loss * runtime.num_ranks / update.target_tokens)
                loss_sum += batch_loss.detach()
    grad_norm = runtime.clip_gradients(model, run.config.optimizer.max_grad_norm)
    learning_rate = finite_learning_rate(run)
    is_skipped = step_if_finite(run, grad_norm)
    run.scheduler.step()
    runtime.clear_gradients(run.optimizer)
    return UpdateStats(loss_sum, grad_norm, learning_rate, update.target_tokens, is_skipped)


def mark_last(items: list[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item and whether it is the last."""
    for number, item in enumerate(items, start=1):
        yield item, number == len(items)
