"""Exchange sums, rows, objects, errors and signals between ranks: a part of Runtime."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.nn import functional as F

from mtloop.errors import RunFailed, UserError, shared
from mtloop.runtime.signals import Interrupted, StopSignals

T = TypeVar("T")
# To agree on a stop signal is a host sync: free on a CPU, not on an accelerator.
STOP_CHECK_EVERY_ON_ACCELERATOR = 10


class Collectives:
    """The collective half of Runtime, which sets the attributes."""

    accelerator: Accelerator
    rank: int
    num_ranks: int
    is_main: bool
    device: torch.device
    signals: StopSignals

    @property
    def is_xla(self) -> bool:
        """Return True on XLA: each new shape costs a compilation, each number read a wait."""
        return self.device.type == "xla"

    @property
    def has_memory_errors(self) -> bool:
        """Return True if a lack of memory is raised where it occurs; XLA reports it when it is too late."""
        return not self.is_xla

    def read(self, scalars: list[Tensor]) -> list[float]:
        """Copy scalars of the device to the host. A host sync."""
        if self.is_xla:  # a stack of another number of them would be another program
            return [scalar.item() for scalar in scalars]
        return torch.stack(scalars).tolist() if scalars else []

    def sum_over_ranks(self, *values: float | Tensor) -> list[float]:
        """Add numbers over the ranks in float64; the same list on every rank. Collective, and a host sync."""
        # To the host first: MPS has no float64 to convert to.
        stacked = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if self.num_ranks > 1:
            # XLA and MPS have no float64: the sum travels as objects there, through the device elsewhere.
            if self.device.type in ("cpu", "cuda"):
                stacked = self.accelerator.reduce(stacked.to(self.device), reduction="sum").cpu()
            else:
                stacked = torch.tensor(self.gather_objects([stacked.tolist()]), dtype=torch.float64).sum(dim=0)
        return stacked.tolist()

    def gather_rows(self, rows: Tensor, *, pad_id: int) -> Tensor:
        """Gather rows of unequal width and number from all ranks.

        Collective, and a host sync.

        Args:
            rows: int64 [b, t] on this rank; b and t may differ between ranks, and b may be 0.
            pad_id: Fills what is missing in width and in rows.

        Returns:
            int64 [sum of the padded b, longest t] on every rank; padding rows are all pad_id.
        """
        if self.num_ranks == 1:
            return rows
        if self.is_xla:  # unequal shapes are for the host
            tables = exchange(self.accelerator, rows.cpu())
            width = max(table.shape[1] for table in tables)
            return torch.cat([F.pad(table, (0, width - table.shape[1]), value=pad_id) for table in tables])
        padded = self.accelerator.pad_across_processes(rows, dim=1, pad_index=pad_id)
        padded = self.accelerator.pad_across_processes(padded, dim=0, pad_index=pad_id)
        return self.accelerator.gather(padded)

    def gather_objects(self, items: list[T]) -> list[T]:
        """Concatenate the ranks' lists, in rank order, on every rank. Collective."""
        if self.num_ranks == 1:
            return items
        if self.is_xla:  # accelerate's gather_object is not made for it
            return [item for theirs in exchange(self.accelerator, items) for item in theirs]
        return gather_object(items)

    def broadcast(self, value: T) -> T:
        """Return main's value on every rank. Collective."""
        if self.num_ranks == 1:
            return value
        if self.is_xla:
            return exchange(self.accelerator, value if self.is_main else None)[0]  # type: ignore[return-value]
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def raise_together(self, error: BaseException | None) -> None:
        """Raise on every rank if any rank has an error: a rank that fails alone would leave the others waiting.

        Collective.

        Raises:
            UserError, RunFailed: on the ranks without an error of their own, with the first failing rank's message.
        """
        if self.num_ranks > 1:
            mine = None if error is None else (isinstance(error, UserError), f"{type(error).__name__}: {error}")
            theirs = [verdict for verdict in self.gather_objects([mine]) if verdict is not None]
            if error is None and theirs:
                is_user_error, message = theirs[0]
                text = message.split(": ", 1)[1]
                error = UserError(text) if is_user_error else RunFailed(f"another rank failed: {message}")
            if isinstance(error, (UserError, RunFailed)):
                shared(error)
        if error is not None:
            raise error

    def on_main(self, work: Callable[[], T]) -> T:
        """Do work on the main process alone; return its result, or raise its error, on every rank. Collective."""
        result, error = attempt(work, when=self.is_main)
        self.raise_together(error)
        return self.broadcast(result)  # type: ignore[return-value]  # None only where work itself returns None

    def one_first(self, work: Callable[[], T]) -> T:
        """Do work on one process of each machine first, so that the others find its cached files. Collective."""
        is_first = self.accelerator.is_local_main_process
        result, error = attempt(work, when=is_first)
        self.raise_together(error)
        if not is_first:
            result, error = attempt(work)
        self.raise_together(error)
        return result  # type: ignore[return-value]

    def agree_on_signal(self, step: int | None = None) -> int | None:
        """Return the signal that any rank got, the same on every rank.

        Collective, at the same steps on all: waits for the other ranks at each step on CPUs, at every
        STOP_CHECK_EVERY_ON_ACCELERATOR-th elsewhere, and always where no step is given.
        """
        mine = self.signals.check()
        if self.num_ranks == 1:
            return mine
        if step is not None and self.device.type != "cpu" and step % STOP_CHECK_EVERY_ON_ACCELERATOR:
            return None
        numbers = torch.zeros(self.num_ranks, dtype=torch.int64, device=self.device)
        numbers[self.rank] = mine or 0
        return int(self.accelerator.reduce(numbers, reduction="sum").max()) or None  # host sync

    def is_any(self, mine: bool) -> bool:
        """Return True on every rank if `mine` is true on any. Collective, and a host sync."""
        if self.num_ranks == 1:
            return mine
        num_ranks = self.accelerator.reduce(torch.tensor(int(mine), device=self.device), reduction="sum")
        return int(num_ranks) > 0

    def stop_if_told(self) -> None:
        """Raise Interrupted on every rank if any rank got a stop signal. Collective.

        Raises:
            Interrupted: on every rank.
        """
        if (number := self.agree_on_signal()) is not None:
            raise Interrupted(number)


def exchange(accelerator: Accelerator, value: T) -> list[T]:
    """Return the values of all ranks, pickled into tensors of few shapes. Collective, and a host sync.

    Returns:
        The values in rank order.
    """
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(torch.int32)
    sizes = accelerator.gather(torch.tensor([len(data)]).to(accelerator.device)).tolist()
    width = 1 << (max(*sizes, 1_024) - 1).bit_length()
    padded = F.pad(data, (0, width - len(data))).to(accelerator.device)
    rows = accelerator.gather(padded[None]).cpu().to(torch.uint8)
    return [pickle.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]


def attempt(work: Callable[[], T], *, when: bool = True) -> tuple[T | None, Exception | None]:
    """Run work if `when`; hand back its result or its error, for raise_together."""
    try:
        return (work() if when else None), None
    except Exception as error:  # the ranks must agree before it is raised
        return None, error
