"""What a checkpoint is made of, as it was at one step, so that it can be written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
