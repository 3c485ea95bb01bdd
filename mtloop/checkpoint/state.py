"""The state of a run: its counters, and the copy in memory that a save writes while training continues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(kw_only=True)
class TrainState:
    """Counters of a run.

    Attributes:
        step: Optimizer updates done.
        epoch: Epochs completed; the current one is number epoch + 1 to a reader.
        cursor: Updates of the current epoch that are done.
        target_tokens: Real target tokens trained on, all ranks.
        train_time_s: Seconds spent in updates, evaluation and saving excluded.
        best_score: The best value of the metric so far, None before the first evaluation.
        best_step: The step it was reached at.
        num_evaluations_without_gain: Consecutive evaluations that did not beat best_score.
        num_nonfinite: Updates skipped for a non-finite gradient norm.
        evaluated_step: The last step that was evaluated, -1 before the first evaluation.
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
        """Count one update; the end of the epoch moves on to the next."""
        self.step += 1
        self.cursor += 1
        self.target_tokens += target_tokens
        self.train_time_s += time_s
        if self.cursor == updates_in_epoch:
            self.epoch += 1
            self.cursor = 0

    @property
    def is_epoch_end(self) -> bool:
        """Whether the last update ended an epoch."""
        return self.step > 0 and self.cursor == 0

    def record_score(self, score: float, *, is_greater_better: bool) -> bool:
        """Note an evaluation's score; return whether it is the best so far. A NaN never is."""
        is_first = self.best_score is None and score == score
        is_best = is_first or (
            self.best_score is not None and (score > self.best_score if is_greater_better else score < self.best_score)
        )
        self.evaluated_step = self.step
        if is_best:
            self.best_score, self.best_step, self.num_evaluations_without_gain = score, self.step, 0
        else:
            self.num_evaluations_without_gain += 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over stored counters.

        Raises:
            ValueError: for a counter that this version does not know.
        """
        known = {field.name for field in fields(self)}
        if unknown := set(state) - known:
            raise ValueError(f"stored training state has unknown entries {sorted(unknown)}: written by a newer mtloop")
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What main writes for one step.

    Attributes:
        path: Where the checkpoint is to appear.
        weights: The model's state dict, whole.
        optimizer_state: The optimizer's state dict, whole.
        scaler_state: The fp16 scaler's state dict, None without one.
        state: The counters, as TrainState.state_dict gives them.
    """

    path: Path
    weights: dict[str, Tensor]
    optimizer_state: dict[str, Any]
    scaler_state: dict[str, Any] | None
    state: dict[str, Any]


def num_bytes_of(weights: dict[str, Tensor], optimizer_state: dict[str, Any]) -> int:
    """Count the bytes of a model's and its optimizer's tensors, those that are tied once."""
    states = [tensor for entry in optimizer_state["state"].values() for tensor in entry.values()]
    tensors = {t.data_ptr(): t.nbytes for t in (*weights.values(), *states) if isinstance(t, Tensor)}
    return sum(tensors.values())


class Buffers:
    """Memory of the host that snapshots are copied into, kept from one to the next: fresh memory costs more than that.

    A snapshot must be written before the next is begun.
    """

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._num_used = 0

    @property
    def num_bytes(self) -> int:
        """Held."""
        return sum(tensor.nbytes for tensor in self._held)

    def begin(self) -> None:
        """Begin a snapshot: all memory is free again."""
        self._num_used = 0

    @torch.no_grad()
    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor of any device."""
        number = self._num_used
        held = self._held[number] if number < len(self._held) else None
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._held[number : number + 1] = [held]
        self._num_used += 1
        return held.copy_(tensor)


class BackgroundWriter:
    """Does work in a thread that the process waits for at its end; what goes wrong there is raised at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin work and return; the work before it must be finished."""
        assert self._thread is None

        def do() -> None:
            try:
                work()
            except Exception as error:  # raised where the loop asks
                self._error = error

        # No daemon: Python's exit would cut it off in the middle.
        self._thread = threading.Thread(target=do, name="mtloop-checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait for the work under way; raise what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what the work has failed with, once; wait for nothing."""
        error, self._error = self._error, None
        if error is not None:
            raise error
