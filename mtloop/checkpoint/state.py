"""The state of a run: its counters, and the copy in memory that a save writes while training continues."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtloop.model.loading import nonfinite
from mtloop.runtime.sharding import local


@dataclass(kw_only=True)
class TrainState:
    """The counters of a run: plain numbers, the same on every rank.

    Attributes:
        step: Completed updates.
        epoch: Completed epochs.
        cursor: Completed updates of the current epoch.
        target_tokens: Target tokens trained on, without padding, over all ranks.
        train_time_s: Seconds spent in updates, without evaluation and saving.
        best_score: The best score so far, None before the first evaluation.
        best_step: The step of best_score.
        num_evaluations_without_gain: Consecutive evaluations without a new best score.
        num_nonfinite: Updates skipped for a non-finite gradient norm.
        evaluated_step: The last evaluated step, -1 before the first evaluation.
    """

    step: int = 0
    epoch: int = 0
    cursor: int = 0
    target_tokens: int = 0
    train_time_s: float = 0.0
    best_score: float | None = None
    best_step: int = -1
    num_evaluations_without_gain: int = 0
    num_nonfinite: int = 0
    evaluated_step: int = -1

    def advance(self, *, target_tokens: int, updates_in_epoch: int, time_s: float) -> None:
        """Count one update; the last one of an epoch starts the next."""
        self.step += 1
        self.cursor += 1
        self.target_tokens += target_tokens
        self.train_time_s += time_s
        if self.cursor == updates_in_epoch:
            self.epoch += 1
            self.cursor = 0

    @property
    def is_epoch_end(self) -> bool:
        """Return True if the last update ended an epoch."""
        return self.step > 0 and self.cursor == 0

    def is_best(self, score: float, *, is_greater_better: bool) -> bool:
        """Return True if a score is better than all that were recorded. NaN never is."""
        if self.best_score is None:
            return not math.isnan(score)
        return score > self.best_score if is_greater_better else score < self.best_score

    def record_score(self, score: float, *, is_greater_better: bool, is_eligible: bool = True) -> bool:
        """Record the score of an evaluation; return True if it is the best so far.

        One that is not eligible is never the best, and counts as without gain only after the first best one.
        """
        is_best = is_eligible and self.is_best(score, is_greater_better=is_greater_better)
        self.evaluated_step = self.step
        if is_best:
            self.best_score, self.best_step, self.num_evaluations_without_gain = score, self.step, 0
        elif is_eligible or self.best_score is not None:
            self.num_evaluations_without_gain += 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore stored counters.

        Raises:
            ValueError: for an unknown counter.
        """
        known = {field.name for field in fields(self)}
        if unknown := set(state) - known:
            raise ValueError(f"unknown counters {sorted(unknown)}, written by a newer version of mtloop")
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The content of a checkpoint at one step, written by main.

    Attributes:
        path: The path of the checkpoint.
        weights: The state dict of the model, whole.
        optimizer_state: The state dict of the optimizer, whole.
        scaler_state: The state dict of the fp16 scaler, None without one.
        state: TrainState.state_dict().
    """

    path: Path
    weights: dict[str, Tensor]
    optimizer_state: dict[str, Any]
    scaler_state: dict[str, Any] | None
    state: dict[str, Any]


def num_bytes_of(weights: dict[str, Tensor], optimizer_state: dict[str, Any]) -> int:
    """Count the bytes of the tensors of a model and its optimizer; tied ones count once."""
    states = [tensor for entry in optimizer_state["state"].values() for tensor in entry.values()]
    tensors = {t.data_ptr(): t.nbytes for t in (*weights.values(), *states) if isinstance(t, Tensor)}
    return sum(tensors.values())


@torch.no_grad()
def find_nonfinite(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Name a trained weight, or a state of the optimizer, with a value that is not finite; "" if there is none.

    Not collective: of sharded weights this rank's part is read. A host sync, once unless a value is found.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[name] = parameter.detach()
            for kind, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim:  # not the number of steps
                    tensors[f"{kind} of {name}"] = value
    return next(iter(nonfinite({name: local(tensor) for name, tensor in tensors.items()})), "")


class Buffers:
    """Host memory for snapshots, reused for each one: a new allocation costs more.

    A snapshot must be written before the next one begins.
    """

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._num_used = 0

    @property
    def num_bytes(self) -> int:
        """The allocated bytes."""
        return sum(tensor.nbytes for tensor in self._held)

    def begin(self) -> None:
        """Begin a snapshot: all buffers are free again."""
        self._num_used = 0

    @torch.no_grad()
    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from any device into a buffer."""
        number = self._num_used
        held = self._held[number] if number < len(self._held) else None
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._held[number : number + 1] = [held]
        self._num_used += 1
        return held.copy_(tensor)


class BackgroundWriter:
    """Run work in a thread; its error is raised by the next call. The process waits for the thread at its end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start work and return; the previous work must be finished."""
        assert self._thread is None

        def do() -> None:
            try:
                work()
            except Exception as error:  # raised by check()
                self._error = error

        # Not a daemon thread, which the exit of Python would kill.
        self._thread = threading.Thread(target=do, name="mtloop-checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait for the current work; raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of the work, once, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error
