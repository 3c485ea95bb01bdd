"""Measure on this hardware, before training: which precision is faster, how many tokens fit into a micro-batch.

Neither changes an update: its sentences stay the same.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtloop.batching.loader import Batch, TrainLoader, collate
from mtloop.config.fields import AUTO
from mtloop.model.activations import keeping_two_layers
from mtloop.runtime.collectives import attempt
from mtloop.runtime.failures import is_out_of_memory
from mtloop.runtime.launch import free_memory
from mtloop.runtime.sharding import is_sharded
from mtloop.trainer.recovery import forward_and_backward, set_micro_batch_limit
from mtloop.trainer.run import Run

# bf16 is chosen from this gain on: at about the same speed fp32 is better.
MIN_GAIN = 1.1
# Limits of the measurement: seconds, and a share of the run. It takes at least five forwards and backwards, so a run of
# fewer than 250 is not measured.
MAX_SECONDS, MAX_SHARE, MIN_FORWARDS = 5.0, 0.02, 250
MAX_ROUNDS = 5
# Every PART_STEP-th row is tried first: where bf16 is computed in software, ten times as slowly, that is enough.
PART_STEP, HOPELESS = 8, 0.5
# A warm-up in bf16 longer than this, in seconds and relative to fp32, is not due to the creation of kernels.
SLOW_WARMUP_S, SLOW_WARMUP = 2.0, 5.0
# A typical micro-batch is looked for in so many updates.
NUM_UPDATES_READ = 16
# Two forwards and backwards give the memory of a token and the fixed part.
PROBE_TOKENS = (1_024, 4_096)
SHARE_OF_MEMORY = 0.9
# Peak memory of the backward over the tensors saved by the forward, on a CPU: measured 1.2 to 1.4.
BACKWARD_ON_CPU = 1.5
# Larger forwards are not faster: they exceed the caches of a CPU, and a GPU is busy already.
MAX_TOKENS_ON_CPU, MAX_TOKENS = 8_192, 131_072


def choose_precision(run: Run) -> None:
    """Choose fp32 or bf16 where the launch does not set it: main measures, and the run stores it. Collective.

    Called before a checkpoint is read: a bitwise resume needs the same precision.
    """
    runtime = run.runtime
    if not runtime.can_choose_precision:
        return
    found = runtime.on_main(lambda: run.folder.run_record.get("precision"))
    if found is None:
        gain = runtime.broadcast(measure_gain(run))
        found = {"name": "bf16" if (gain or 0.0) >= MIN_GAIN else "no", "bf16_gain": gain}
        runtime.on_main(lambda: run.folder.update_record(precision=found))
    runtime.precision = found["name"]
    runtime.say(describe(found["name"], found["bf16_gain"]))


def describe(name: str, gain: float | None) -> str:
    """Describe in one line the chosen precision and its gain."""
    if gain is None:
        return "precision fp32: the run is too short to try bf16"
    if name == "no":
        return f"precision fp32: bf16 is {gain:.2g} times as fast here"
    return f"precision bf16: {gain:.2g} times as fast as fp32 here"


def measure_gain(run: Run) -> float | None:
    """Return the seconds of a typical forward and backward in fp32 over those in bf16; None for a run too short to ask.

    Every rank measures, at the same time, as they will train. Weights and gradients stay as they are.
    """
    ids, num_forwards = typical_micro_batch(run.loader)
    num_forwards *= run.total_steps
    if num_forwards < MIN_FORWARDS:
        return None
    part = ids[::PART_STEP]
    gain, part_s = _compare(run, part, limit_s=0.0)
    if gain < HOPELESS:
        return gain
    # Two forwards and backwards of each precision must fit.
    num_rows = max(len(part), min(len(ids), int(MAX_SECONDS / 4 / part_s * len(part))))
    limit_s = min(MAX_SECONDS, MAX_SHARE * num_forwards * part_s * len(ids) / len(part))
    return _compare(run, ids[:num_rows], limit_s=limit_s)[0]


def typical_micro_batch(loader: TrainLoader) -> tuple[NDArray[np.int64], float]:
    """Return the rows of the micro-batch that holds the median padded token, and the micro-batches of an update."""
    updates = loader.first_updates(NUM_UPDATES_READ)
    by_size = sorted((one for update in updates for one in update), key=loader.padded_tokens)
    sums = np.cumsum([loader.padded_tokens(one) for one in by_size])
    return by_size[np.searchsorted(sums, sums[-1] / 2)].sentence_ids, len(by_size) / len(updates)


def _compare(run: Run, ids: NDArray[np.int64], *, limit_s: float) -> tuple[float, float]:
    """Time both precisions in turn, after a warm-up of each; return bf16's gain, and the seconds in fp32, at best."""
    batch = collate(run.loader.encoded, ids, pad_id=run.loader.pad_id)
    warmup = {"no": 0.0, "bf16": 0.0}
    best = {"no": float("inf"), "bf16": float("inf")}
    start = time.perf_counter()
    for number in range(MAX_ROUNDS + 1):
        for precision in best:
            run.runtime.precision = precision
            before = time.perf_counter()
            forward_and_backward(run, batch, with_exchange=False)
            seconds = time.perf_counter() - before
            if number:
                best[precision] = min(best[precision], seconds)
            else:
                warmup[precision] = seconds
            run.optimizer.zero_grad()
        if not number and warmup["bf16"] > max(SLOW_WARMUP_S, SLOW_WARMUP * warmup["no"]):
            return warmup["no"] / warmup["bf16"], warmup["no"]  # a second one would take as long
        if number and time.perf_counter() - start > limit_s:
            break
    return best["no"] / best["bf16"], best["no"]


def choose_micro_batches(run: Run) -> None:
    """Use the limit stored for this hardware, or under auto measure it. Collective.

    Called before a checkpoint is read: a bitwise resume needs the same limit.
    """
    asked = run.config.batch.max_tokens_per_micro_batch
    hardware = run.checkpointer.identity["hardware"]
    found: dict[str, Any] = run.runtime.on_main(lambda: run.folder.run_record.get("micro_batch", {}))
    known = found.get("max_tokens") if found.get("hardware") == hardware else None
    if asked == AUTO:
        tokens = known or min(run.runtime.gather_objects([probe(run)]))
        run.runtime.say(f"--max_tokens_per_micro_batch {AUTO}: {tokens:,} tokens of both sides in a forward")
        set_micro_batch_limit(run, tokens, is_limit=False)
    elif known is not None and found["is_limit"]:
        while run.loader.max_tokens_per_micro_batch > known and run.loader.halve():
            pass
        set_micro_batch_limit(run, run.loader.max_tokens_per_micro_batch, is_limit=True)


def probe(run: Run) -> int:
    """Find the largest limit that fits into this rank's memory, by two forwards and backwards of its longest row.

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
    available = SHARE_OF_MEMORY * free_memory(run.runtime.device) - fixed
    return int(min(most, max(smallest, available / max(a_token, 1.0))))


def _bytes_of(run: Run, batch: Batch) -> float:
    """Measure the additional memory of a forward and backward."""
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

    with keeping_two_layers(run.model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward_and_backward(run, batch, with_exchange=with_exchange)
    own = {parameter.untyped_storage().data_ptr() for parameter in run.model.parameters()}
    return BACKWARD_ON_CPU * sum(size for pointer, size in saved.items() if pointer not in own)
