"""Updates whose gradient norm is no number: left out on the device, reported when the host next looks.

To know a norm the host must wait for the device. So the device itself leaves such an update out, and all that follow
once there were more than --skip_nonfinite: nothing is lost by learning of it later, and nothing is saved before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from numpy.typing import NDArray
from torch import Tensor

# Norms that the host has not seen are read at this many at the latest: --logging_steps may be huge.
MAX_UNREAD = 100
NUM_NAMED_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Unread:
    """An update whose norm the host does not know yet: its step, from 1, its first rows and how many it had."""

    step: int
    first_ids: NDArray
    num_rows: int
    grad_norm: Tensor


@dataclass(kw_only=True)
class NonfiniteGuard:
    """Counts norms that are no number where they are computed.

    Attributes:
        max_skipped: How many are tolerated: --skip_nonfinite.
        unread: The updates since the host last looked.
    """

    max_skipped: int
    unread: list[Unread] = field(default_factory=list)
    _num_skipped: Tensor | None = None

    def verdict(self, grad_norm: Tensor, *, num_before: int) -> Tensor:
        """Count one norm, and say whether its update is to be left out.

        Args:
            grad_norm: A scalar on the device.
            num_before: How many were left out in the life of the run, when the first is counted here.

        Returns:
            fp32 scalar on the device, 1 to leave the weights as they are and else 0: what optimizers call found_inf.
        """
        if self._num_skipped is None:
            # A vector made on the host, for XLA: it makes a constant of the program of anything else that is 0.
            self._num_skipped = torch.tensor([float(num_before)]).to(grad_norm.device)
        is_bad = ~torch.isfinite(grad_norm.detach())
        self._num_skipped = self._num_skipped + is_bad
        return (is_bad | (self._num_skipped > self.max_skipped)).float().reshape(())

    def take(self) -> list[Unread]:
        """Hand over the updates since the last call, whose norms are then to be read."""
        taken, self.unread = self.unread, []
        return taken
