"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtloop.batching.loader import Update
from mtloop.model import batch_loss_sum
from mtloop.model.loss import Projection
from mtloop.runtime import is_out_of_memory, whole
from mtloop.trainer.run import Run

T = TypeVar("T")
# An fp16 update is repeated with a halved scale this often: 2^10 is far beyond what a sound model needs.
MAX_OVERFLOW_REPEATS = 10
# On an accelerator the ranks ask one another for memory errors, a host sync, in the first updates with a budget alone:
# what fits then, as a rule fits later.
NUM_CHECKED_ON_ACCELERATOR = 50


class MemoryShort(Exception):
    """An update had no room on some rank, and all of them know it: no weight was changed, its gradients are void."""


@dataclass(frozen=True, kw_only=True)
class UpdateStats:
    """What one optimizer step did.

    Attributes:
        loss_sum: This rank's sum over its target tokens, a scalar on the device.
        grad_norm: Before clipping, of the whole update: the same on every rank; a scalar on the device.
        learning_rate: The rate the step was taken with.
        target_tokens: Of the whole update, all ranks.
        is_skipped: Whether the weights were left as they were, for a non-finite gradient norm: not 0, a scalar on the
            device.
    """

    loss_sum: Tensor
    grad_norm: Tensor
    learning_rate: float
    target_tokens: int
    is_skipped: Tensor


def train_step(run: Run, update: Update) -> UpdateStats:
    """Take one optimizer step.

    Collective: every rank calls it with equally many micro-batches. An fp16 update whose gradients overflow is repeated
    with a lower scale, so that no sentence is lost.

    Raises:
        MemoryShort: on every rank, when one had no room for its part.
    """
    for _ in range(MAX_OVERFLOW_REPEATS + 1):
        loss_sum = accumulate_gradients(run, update)
        max_norm = run.config.optimizer.max_grad_norm or math.inf
        norm = run.runtime.accelerator.clip_grad_norm_(run.wrapped_model.parameters(), max_norm)
        grad_norm = whole(torch.as_tensor(norm))
        scaler = run.runtime.accelerator.scaler
        if scaler is None or math.isfinite(grad_norm.item()):  # host sync; the same norm, so one verdict, on every rank
            break
        # Without optimizer.step(), in which the scaler would judge for itself: of a sharded model by its shard alone.
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        run.optimizer.zero_grad()
    learning_rate = float(run.scheduler.get_last_lr()[0])
    is_skipped = run.guard.verdict(grad_norm, num_before=run.state.num_nonfinite)
    step_unless(run, is_skipped)
    run.scheduler.step()
    # On XLA gradients stay: a first forward that makes them would be another program than those that add to them.
    run.optimizer.zero_grad(set_to_none=not run.runtime.is_xla)
    run.runtime.end_program()
    run.num_tried += 1
    return UpdateStats(
        loss_sum=loss_sum,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        target_tokens=update.target_tokens,
        is_skipped=is_skipped,
    )


def step_unless(run: Run, is_skipped: Tensor) -> None:
    """Take the optimizer's step unless is_skipped, fp32 scalar, is 1: where the optimizer can, without asking it."""
    if run.leaves_out_on_device:
        inner = getattr(run.optimizer, "optimizer", run.optimizer)
        inner.found_inf = is_skipped  # type: ignore[union-attr]  # read by AdamW, declared nowhere
        run.optimizer.step()
    elif not is_skipped.item():  # host sync
        run.optimizer.step()


def accumulate_gradients(run: Run, update: Update) -> Tensor:
    """Run forward and backward over this rank's micro-batches; the gradient is that of the whole update's mean.

    Returns:
        fp32 scalar, the sum of this rank's token losses, detached.

    Raises:
        MemoryShort: as train_step.
    """
    room = _Room(run)
    run.runtime.reseed(run.state.step)
    projection = Projection(num_forwards=len(update.micro_batches))
    # A vector made on the host, for XLA: its first forward would else add to a constant, and be another program.
    loss_sum = torch.zeros(1).to(run.runtime.device)
    with run.runtime.autocast():  # around the whole update: each weight is cast once
        for micro_batch, is_last in mark_last(update.micro_batches):
            with run.runtime.gradient_sync(run.wrapped_model, enabled=is_last):
                micro_loss_sum = room.run(
                    batch_loss_sum,
                    run.model,
                    micro_batch,
                    wrapped_model=run.wrapped_model,
                    label_smoothing=run.config.optimizer.label_smoothing_factor,
                    projection=projection,
                )
                if is_last:
                    room.agree()
                if micro_loss_sum is not None:
                    # Data parallelism takes the mean over ranks: undone by num_ranks. target_tokens is the update's.
                    scaled = micro_loss_sum * run.runtime.num_ranks / update.target_tokens
                    backward = run.runtime.accelerator.backward
                    # An exchange between ranks cannot be taken back: what fails in it ends the run.
                    backward(scaled) if is_last and run.runtime.num_ranks > 1 else room.run(backward, scaled)
                    loss_sum += micro_loss_sum.detach()
            run.runtime.end_program()
    room.agree_alone()
    return loss_sum.sum()


class _Room:
    """Does an update's work until memory gives out on this rank, and then waits for what the ranks agree on."""

    def __init__(self, run: Run) -> None:
        runtime = run.runtime
        self._runtime = runtime
        self._is_short = False
        # A sharded model's forward is collective already; XLA learns of it when it is too late.
        can_agree = runtime.num_ranks == 1 or runtime.sharding is None
        is_asked = runtime.num_ranks == 1 or runtime.device.type == "cpu" or run.num_tried < NUM_CHECKED_ON_ACCELERATOR
        self._is_guarded = can_agree and is_asked and not runtime.is_xla

    def run(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        """Do work; None once memory has given out."""
        if self._is_short:
            return None
        try:
            return work(*arguments, **options)
        except RuntimeError as error:
            if not self._is_guarded or not is_out_of_memory(error):
                raise
            self._is_short = True
            return None

    def agree(self) -> None:
        """Go on if no rank is short. Collective, and a host sync, where the ranks still ask one another."""
        if self._is_guarded and self._runtime.is_any(self._is_short):
            raise MemoryShort

    def agree_alone(self) -> None:
        """Go on if this process, the only one, is not short."""
        if self._is_short:
            raise MemoryShort


def mark_last(items: list[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item and whether it is the last."""
    for number, item in enumerate(items, start=1):
        yield item, number == len(items)
