"""Repeat or skip an update that failed: lack of memory, fp16 overflow, non-finite gradient norms or learning rates.

Lack of memory: the update is divided into smaller micro-batches and repeated; its sentences stay the same.
fp16 overflow: the update is repeated with a lower loss scale.
Non-finite norm: to read a norm the host waits for the device. So the device itself skips such an update, and all that
follow once more than --skip_nonfinite were skipped; the host reads the norms later, and before anything is saved.
A save checks the weights and the state of the optimizer as well (checkpoint/save.py).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mtloop.batching.loader import Batch, Update, collate
from mtloop.errors import RunFailed, shared
from mtloop.model.loss import batch_loss_sum
from mtloop.runtime.failures import is_out_of_memory
from mtloop.trainer.run import Run, UnreadNorm

T = TypeVar("T")
# An fp16 update is repeated with a halved scale at most this often: 2^10 is far beyond what a valid model needs.
MAX_OVERFLOW_REPEATS = 10
# On an accelerator the ranks ask one another for memory errors, a host sync, only in the first updates with a limit:
# what fits in these fits later.
NUM_CHECKED_ON_ACCELERATOR = 50
# Norms that the host has not seen are read at this many at the latest: --logging_steps may be huge.
MAX_UNREAD = 100
NUM_NAMED_ROWS = 10


class MemoryShortage(RuntimeError):
    """Raised on every rank when one ran out of memory; weights are unchanged, gradients must be discarded."""


class GradientOverflow(Exception):
    """Raised on every rank when fp16 gradients overflowed; weights are unchanged, the loss scale is lowered."""


def with_recovery(step: Callable[[Run, Update], T]) -> Callable[[Run, Update], T]:
    """Repeat an update that ran out of memory or overflowed: the same sentences, and the same random numbers."""

    @functools.wraps(step)
    def repeat(run: Run, update: Update) -> T:
        run.recovery.num_overflows = 0
        while True:
            run.recovery.can_repeat = can_repeat(run)
            try:
                stats = step(run, update)
                run.recovery.num_updates += 1
                return stats
            except GradientOverflow:
                run.recovery.num_overflows += 1
                run.optimizer.zero_grad()
                continue
            except MemoryShortage:
                is_own = False
            except RuntimeError as error:
                if not (run.recovery.can_repeat and is_out_of_memory(error)):
                    raise
                is_own = True
            # After the handler, whose traceback holds the tensors of the failed update.
            if is_own:
                run.runtime.is_any(True)  # the other ranks ask in agree_on_memory
            update = divide_again(run)

    return repeat


def can_repeat(run: Run) -> bool:
    """Return whether memory errors of this update can be caught, the same on every rank."""
    runtime = run.runtime
    if runtime.num_ranks == 1:
        return runtime.has_memory_errors
    # The forward of a sharded model is collective: the other ranks wait in it.
    is_asked = runtime.device.type == "cpu" or run.recovery.num_updates < NUM_CHECKED_ON_ACCELERATOR
    return runtime.sharding is None and is_asked and runtime.has_memory_errors


def agree_on_memory(run: Run, *, is_last: bool) -> None:
    """Check before the ranks exchange gradients that none ran out of memory. Collective, and a host sync then.

    Raises:
        MemoryShortage: on every rank.
    """
    if is_last and run.runtime.num_ranks > 1 and run.recovery.can_repeat:
        if run.runtime.is_any(False):
            raise MemoryShortage
        run.recovery.can_repeat = False  # an exchange cannot be undone


def divide_again(run: Run) -> Update:
    """Halve the limit of a micro-batch and return the same update, divided by it. Collective.

    Raises:
        RunFailed: when a micro-batch is a single row already.
    """
    run.optimizer.zero_grad()
    run.checkpointer.finish()  # loader processes are forked anew: its writing thread may hold locks
    if (scaler := run.runtime.accelerator.scaler) is not None:
        scaler.update(scaler.get_scale())  # forgets that gradients were unscaled
    if run.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    if run.runtime.num_ranks > 1:
        _finish_exchange(run)
    before = run.loader.max_tokens_per_micro_batch
    if not run.loader.halve():
        raise shared(
            RunFailed(
                f"step {run.state.step + 1}: out of memory with one row at a time. Lower --max_source_length and "
                "--max_target_length, or train a smaller model."
            )
        )
    tokens = run.loader.max_tokens_per_micro_batch
    run.runtime.say(
        f"step {run.state.step + 1}: out of memory; continuing with --max_tokens_per_micro_batch {tokens:,} (was "
        f"{before:,}); the updates stay the same"
    )
    set_micro_batch_limit(run, tokens, is_limit=True)
    return run.loader.update_at(epoch=run.state.epoch, cursor=run.state.cursor)


def _finish_exchange(run: Run) -> None:
    """Run the backward that data parallelism still expects: it would take the next one for it."""
    loader = run.loader
    shortest = int((loader.source_lengths.astype(np.int64) + loader.target_lengths).argmin())
    forward_and_backward(run, collate(loader.encoded, [shortest], pad_id=loader.pad_id), with_exchange=True)
    run.optimizer.zero_grad()


def forward_and_backward(run: Run, batch: Batch, *, with_exchange: bool) -> None:
    """Compute the gradient of a batch outside of an update; with_exchange adds it up over the ranks."""
    placed = {name: tensor.to(run.runtime.device) for name, tensor in batch.items()}
    with run.runtime.autocast(), run.runtime.accumulate(run.wrapped_model, is_last=with_exchange):
        run.runtime.accelerator.backward(batch_loss_sum(run.model, placed, run.wrapped_model))


def set_micro_batch_limit(run: Run, tokens: int, *, is_limit: bool) -> None:
    """Use a limit from now on and store it with the run; is_limit if memory ran out above it. Collective."""
    run.loader.max_tokens_per_micro_batch = tokens
    run.checkpointer.identity["max_tokens_per_micro_batch"] = tokens
    run.recovery.num_updates = 0
    run.runtime.on_main(lambda: _store_limit(run, tokens, is_limit=is_limit))


def lower_limit_of_next_start(run: Run) -> None:
    """Store half the limit after a lack of memory on which the ranks cannot agree. Not collective."""
    with contextlib.suppress(OSError, RunFailed):
        _store_limit(run, max(1, run.loader.max_tokens_per_micro_batch // 2), is_limit=True)


def _store_limit(run: Run, tokens: int, *, is_limit: bool) -> None:
    hardware = run.checkpointer.identity["hardware"]
    run.folder.update_record(micro_batch={"max_tokens": tokens, "hardware": hardware, "is_limit": is_limit})


def step_if_finite(run: Run, grad_norm: Tensor) -> Tensor:
    """Take the optimizer step, unless the gradient norm is not finite or too many were not.

    Args:
        run: With the gradients of an update.
        grad_norm: A scalar on the device, the same on every rank.

    Returns:
        fp32 scalar on the device, 1 if the weights were left unchanged, else 0.

    Raises:
        GradientOverflow: under fp16, while the update has repeats left.
    """
    scaler = run.runtime.accelerator.scaler
    if scaler is not None and not math.isfinite(grad_norm.item()):  # host sync
        # Without optimizer.step(), which lets the scaler decide: for a sharded model by its own shard.
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        if run.recovery.num_overflows < MAX_OVERFLOW_REPEATS:
            raise GradientOverflow
    run.recovery.can_repeat = False
    is_skipped = count_nonfinite(run, grad_norm)
    if run.skips_on_device:
        inner = getattr(run.optimizer, "optimizer", run.optimizer)
        inner.found_inf = is_skipped  # type: ignore[union-attr]  # read by AdamW, declared nowhere
        run.optimizer.step()
    elif not is_skipped.item():  # host sync
        run.optimizer.step()
    return is_skipped


def finite_learning_rate(run: Run) -> float:
    """Return the learning rate of the present update.

    Raises:
        RunFailed: on every rank, for one that is not finite; the weights are unchanged.
    """
    learning_rate = float(run.scheduler.get_last_lr()[0])
    if not math.isfinite(learning_rate):
        raise shared(
            RunFailed(
                f"step {run.state.step + 1}: the learning rate is {learning_rate}, the weights are unchanged. Change "
                "--lr_scheduler_type or --lr_scheduler_kwargs."
            )
        )
    return learning_rate


def count_nonfinite(run: Run, grad_norm: Tensor) -> Tensor:
    """Count a norm on the device; return 1 there if its update must be skipped, else 0: fp32 scalar."""
    recovery = run.recovery
    if recovery.num_skipped is None:
        recovery.num_skipped = run.runtime.on_device(float(run.state.num_nonfinite))
    is_bad = ~torch.isfinite(grad_norm.detach())
    recovery.num_skipped = recovery.num_skipped + is_bad
    return (is_bad | (recovery.num_skipped > run.config.optimizer.skip_nonfinite)).float().reshape(())


def note_norm(run: Run, update: Update, grad_norm: Tensor) -> None:
    """Keep the norm of the update just made; read it where that costs nothing, or where many are unread.

    Raises:
        RunFailed: as report_nonfinite.
    """
    unread = run.recovery.unread
    first_ids = update.sentence_ids[:NUM_NAMED_ROWS]
    step, num_rows = run.state.step + 1, len(update.sentence_ids)
    unread.append(UnreadNorm(step=step, first_ids=first_ids, num_rows=num_rows, grad_norm=grad_norm))
    if run.reads_every_norm or len(unread) >= MAX_UNREAD:
        report_nonfinite(run)


def report_nonfinite(run: Run) -> None:
    """Read the norms that the host has not seen; refuse more non-finite ones than --skip_nonfinite. A host sync.

    The same on every rank, at the same step: the norms are.

    Raises:
        RunFailed: naming the step and the rows.
    """
    unread, run.recovery.unread = run.recovery.unread, []
    norms = run.runtime.read([update.grad_norm for update in unread])
    if unread:  # the device's remaining work
        waited_s = run.watch.lap()
        run.seconds_since_log += waited_s
        run.state.train_time_s += waited_s
    for update, grad_norm in zip(unread, norms, strict=True):
        if math.isfinite(grad_norm):
            continue
        run.state.num_nonfinite += 1
        rows = ", ".join(str(row) for row in run.train_rows[update.first_ids]["index"])
        message = (
            f"step {update.step}: the gradient norm is {grad_norm}, the weights are unchanged; "
            f"{update.num_rows} rows of the training data, the first: {rows}"
        )
        if run.state.num_nonfinite > run.config.optimizer.skip_nonfinite:
            raise shared(RunFailed(f"{message}. Lower --learning_rate, or skip more updates with --skip_nonfinite."))
        run.runtime.say(message)
