"""How many tokens go through the model at once: found by trying, where that is asked for, halved where memory gave out.

Neither changes an update: its sentences are divided into more forwards or fewer.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from mtloop.batching.loader import Batch, collate
from mtloop.config.fields import AUTO
from mtloop.errors import RunFailed
from mtloop.model import batch_loss_sum
from mtloop.runtime import attempt, free_memory, is_out_of_memory, is_sharded
from mtloop.trainer.run import Run

# Two forwards and backwards tell what a token costs and what all of them cost together.
PROBE_TOKENS = (1_024, 4_096)
SHARE_OF_MEMORY = 0.9
# What the backward holds at its highest, over what the forward has saved for it, on a CPU: measured 1.2 to 1.4.
BACKWARD_ON_CPU = 1.5
# Larger forwards are no faster: beyond what the caches hold on a CPU, beyond what fills it on a GPU.
MAX_TOKENS_ON_CPU, MAX_TOKENS = 8_192, 131_072


def settle_micro_batches(run: Run) -> None:
    """Take the budget that this hardware was found to have room for before, or look for it. Collective.

    Before a checkpoint is read: what a micro-batch holds is part of what a bitwise resume needs.
    """
    asked = run.config.batch.max_tokens_per_micro_batch
    hardware = run.checkpointer.identity["hardware"]
    found: dict[str, Any] = run.runtime.on_main(lambda: run.folder.run_record.get("micro_batch", {}))
    known = found.get("max_tokens") if found.get("hardware") == hardware else None
    if asked == AUTO:
        tokens = known or min(run.runtime.gather_objects([probe(run)]))
        run.runtime.say(f"--max_tokens_per_micro_batch {AUTO}: {tokens:,} tokens of both sides in a forward")
        _use(run, tokens, is_limit=False)
    elif known is not None and found["is_limit"]:
        while run.loader.max_tokens_per_micro_batch > known and run.loader.halve():
            pass
        _use(run, run.loader.max_tokens_per_micro_batch, is_limit=True)


def halve(run: Run) -> None:
    """Go on with half the budget. Collective, after MemoryShort.

    Raises:
        RunFailed: when a micro-batch is a single row already.
    """
    run.optimizer.zero_grad()
    if run.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    if run.runtime.num_ranks > 1:
        _finish_exchange(run)
    before = run.loader.max_tokens_per_micro_batch
    if not run.loader.halve():
        raise RunFailed(
            f"step {run.state.step + 1}: out of memory with one row at a time; lower --max_source_length and "
            "--max_target_length, or take a smaller model"
        )
    tokens = run.loader.max_tokens_per_micro_batch
    run.runtime.say(
        f"step {run.state.step + 1}: out of memory; --max_tokens_per_micro_batch is {tokens:,} from here on, not "
        f"{before:,}; the updates are the same"
    )
    _use(run, tokens, is_limit=True)


def _finish_exchange(run: Run) -> None:
    """Give data parallelism the backward that it still expects: it would take the next one, of whatever, for that."""
    loader = run.loader
    shortest = int((loader.source_lengths.astype(np.int64) + loader.target_lengths).argmin())
    forward_and_backward(run, collate(loader.encoded, [shortest], pad_id=loader.pad_id), with_exchange=True)
    run.optimizer.zero_grad()


def forward_and_backward(run: Run, batch: Batch, *, with_exchange: bool) -> None:
    """Compute the gradient of a batch that is no part of an update; with_exchange adds it up over the ranks."""
    placed = {name: tensor.to(run.runtime.device) for name, tensor in batch.items()}
    with run.runtime.autocast(), run.runtime.gradient_sync(run.wrapped_model, enabled=with_exchange):
        run.runtime.accelerator.backward(batch_loss_sum(run.model, placed, wrapped_model=run.wrapped_model))


def note_limit(run: Run) -> None:
    """Leave half the budget to the next start: memory gave out where the ranks cannot agree on it. Not collective."""
    limit = {
        "max_tokens": max(1, run.loader.max_tokens_per_micro_batch // 2),
        "hardware": run.checkpointer.identity["hardware"],
        "is_limit": True,
    }
    with contextlib.suppress(OSError, RunFailed):
        run.folder.update_record(micro_batch=limit)


def _use(run: Run, tokens: int, *, is_limit: bool) -> None:
    run.loader.max_tokens_per_micro_batch = tokens
    run.checkpointer.identity["max_tokens_per_micro_batch"] = tokens
    run.num_tried = 0
    entry = {"max_tokens": tokens, "hardware": run.checkpointer.identity["hardware"], "is_limit": is_limit}
    run.runtime.on_main(lambda: run.folder.update_record(micro_batch=entry))


def probe(run: Run) -> int:
    """Find the largest budget that this rank's device has room for, by two forwards and backwards of its longest row.

    Leaves neither weights nor gradients changed. Collective where the model is sharded.
    """
    loader, is_cpu = run.loader, run.runtime.device.type == "cpu"
    lengths = loader.source_lengths.astype(np.int64) + loader.target_lengths
    row = int(lengths.argmax())
    counts = [max(number, tokens // int(lengths[row])) for number, tokens in enumerate(PROBE_TOKENS, start=1)]
    most = MAX_TOKENS_ON_CPU if is_cpu else MAX_TOKENS
    smallest = counts[0] * int(lengths[row])
    used = []
    for count in counts:
        batch = collate(loader.encoded, [row] * count, pad_id=loader.pad_id)
        found, error = attempt(lambda batch=batch: _bytes_of(run, batch))  # type: ignore[misc]
        run.optimizer.zero_grad()
        if error is not None and not is_out_of_memory(error):
            raise error
        if found is None:
            return smallest
        used.append(found)
    a_token = (used[1] - used[0]) / ((counts[1] - counts[0]) * int(lengths[row]))
    fixed = max(0.0, used[0] - a_token * smallest)
    if not run.optimizer.state_dict()["state"]:  # AdamW's two moments come with the first step
        fixed += sum(8 * p.numel() for p in run.model.parameters() if p.requires_grad)
    room = SHARE_OF_MEMORY * free_memory(run.runtime.device) - fixed
    return int(min(most, max(smallest, room / max(a_token, 1.0))))


def _bytes_of(run: Run, batch: Batch) -> float:
    """Measure the memory that a forward and backward take beyond what is held before them."""
    device = run.runtime.device
    with_exchange = is_sharded(run.model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward_and_backward(run, batch, with_exchange=with_exchange)
        return float(torch.cuda.max_memory_allocated(device) - before)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward_and_backward(run, batch, with_exchange=with_exchange)
    own = {parameter.untyped_storage().data_ptr() for parameter in run.model.parameters()}
    return BACKWARD_ON_CPU * sum(size for pointer, size in saved.items() if pointer not in own)
