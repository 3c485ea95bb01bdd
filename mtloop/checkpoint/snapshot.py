"""What a checkpoint is made of, as it was at one step, so that it can be written while training goes on."""

from __future__ import annotations

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
