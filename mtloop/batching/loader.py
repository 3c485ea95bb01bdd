"""Turn a plan and encoded rows into tensors: collation, prefetch, placement.

Must not know texts, tokenizers or how the plan is made. Shape letters: B sentences, S source tokens, T target
tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtloop.batching.division import MicroBatch, divide_into_shapes, divide_update
from mtloop.batching.plan import Budget, EpochPlan, count_updates, plan_epoch
from mtloop.batching.shapes import Shape
from mtloop.errors import first_line

Batch = dict[str, Tensor]
IGNORE_INDEX = -100  # a label that the loss ignores


@dataclass(frozen=True, kw_only=True)
class Update:
    """Sentences of one optimizer step.

    Attributes:
        sentence_ids: int64 [n], the whole update, the same on every rank.
        target_tokens: Real target tokens of the whole update, all ranks.
        updates_in_epoch: How many updates this epoch has.
        micro_batches: This rank's share, as collate makes them, on the device.
    """

    sentence_ids: NDArray[np.int64]
    target_tokens: int
    updates_in_epoch: int
    micro_batches: list[Batch]


def pad_column(column: pa.ChunkedArray, *, pad_value: int, width: int | None = None) -> Tensor:
    """Pad a column of integer lists to its longest row, or to `width`, no shorter: int64 [B, longest].

    Reads Arrow's values and offsets as they lie, without a Python object per token.
    """
    lists = column.combine_chunks()
    offsets = lists.offsets.to_numpy()
    lengths = np.diff(offsets)
    padded = np.full((len(lengths), width or int(lengths.max())), pad_value, dtype=np.int64)
    is_real = np.arange(padded.shape[1]) < lengths[:, None]
    padded[is_real] = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    return torch.from_numpy(padded)


def collate(
    encoded: Dataset,
    row_ids: Sequence[int] | NDArray[np.int64],
    *,
    pad_id: int,
    shape: Shape | None = None,
    num_real: int | None = None,
) -> Batch:
    """Read rows of an encoded data set into one padded batch.

    Args:
        encoded: Columns input_ids and labels.
        row_ids: int64 [B].
        pad_id: The tokenizer's padding id.
        shape: Lengths to pad to; None, or a length of 0, for that of the longest row.
        num_real: Of the rows beyond this number no label counts; None for none.

    Returns:
        input_ids and attention_mask int64 [B, S]; labels int64 [B, T], IGNORE_INDEX in the padding; target_positions
        int64 [N]: indices of the N real ones in the flattened labels; to find them on the device would be a host
        sync.
    """
    table = encoded.with_format("arrow")[row_ids]
    source, target = (shape.source, shape.target) if shape is not None else (None, None)
    input_ids = pad_column(table["input_ids"], pad_value=-1, width=source)
    is_real = input_ids >= 0
    labels = pad_column(table["labels"], pad_value=IGNORE_INDEX, width=target)
    labels[len(labels) if num_real is None else num_real :] = IGNORE_INDEX
    return {
        "input_ids": input_ids.masked_fill(~is_real, pad_id),
        "attention_mask": is_real.long(),
        "labels": labels,
        "target_positions": (labels.flatten() != IGNORE_INDEX).nonzero().flatten(),
    }


@dataclass(kw_only=True)
class _Updates(TorchDataset[list[Batch]]):
    """One rank's micro-batches of the updates of an epoch, by update number; computed by a loader worker."""

    encoded: Dataset
    plan: EpochPlan
    divide: Callable[[NDArray[np.int64]], list[MicroBatch]]
    pad_id: int

    def __getitem__(self, update: int) -> list[Batch]:
        batches = []
        for part in self.divide(self.plan.sentence_ids(update)):
            ids, shape, num_real = part.sentence_ids, part.shape, part.num_real
            batches.append(collate(self.encoded, ids, pad_id=self.pad_id, shape=shape, num_real=num_real))
        return batches


def _prepare_worker(worker: int) -> None:
    """Ignore stop signals, and send tensors by value.

    A loader worker that dies of TERM would end the trainer before it can save. Torch sends tensors in files of /dev/shm
    (64 MB in a container) and an open descriptor for each: where either is short, a batch is lost without an error.
    """
    ForkingPickler.register(Tensor, _by_value)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows has the first two
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _by_value(tensor: Tensor) -> tuple[Any, ...]:
    return torch.as_tensor, (tensor.numpy(),)


@dataclass(kw_only=True)
class TrainLoader:
    """The updates of a run in order, from any cursor.

    Attributes:
        encoded: Columns input_ids and labels, N rows.
        source_lengths: int32 [N].
        target_lengths: int32 [N].
        budget: Size of an update over all ranks.
        max_tokens_per_micro_batch: Padded tokens, source and target.
        micro_batch_overhead: Cost of a micro-batch beyond its padded tokens, in tokens.
        shapes: Shapes that micro-batches are padded to, from choose_shapes; [] for their longest row.
        pad_id: The tokenizer's padding id.
        seed: The run's seed.
        rank: This rank.
        num_ranks: How many share an update.
        num_workers: Loader processes; 0 collates in this one.
        worker_timeout: Seconds after which an update that the loader processes have not collated is an error.
        place: Moves a loader's tensors to the device (Runtime.place_batches).
    """

    encoded: Dataset
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]
    budget: Budget
    max_tokens_per_micro_batch: int
    micro_batch_overhead: int
    pad_id: int
    seed: int
    rank: int
    num_ranks: int
    num_workers: int = 0
    worker_timeout: float = 1_800.0
    place: Callable[[Any], Any] = field(default=lambda loader: loader)
    shapes: list[Shape] = field(default_factory=list)

    @property
    def updates_per_epoch(self) -> int:
        return count_updates(self.target_lengths, self.budget)

    def halve(self) -> bool:
        """Halve the limit of a micro-batch; return False, and change nothing, if it is a single row already.

        The updates stay as they are: an update is divided into more micro-batches.
        """
        longest = int((self.source_lengths.astype(np.int64) + self.target_lengths).max())
        can_be = max((shape.rows for shape in self.shapes), default=0) > 1 or (
            not self.shapes and self.max_tokens_per_micro_batch > longest
        )
        if can_be:
            self.max_tokens_per_micro_batch //= 2
            self.shapes = [replace(shape, rows=max(1, shape.rows // 2)) for shape in self.shapes]
        return can_be

    def divide(self, sentence_ids: NDArray[np.int64]) -> list[MicroBatch]:
        """Divide an update: this rank's micro-batches, equally many on every rank."""
        lengths = self.source_lengths, self.target_lengths
        if self.shapes:
            return divide_into_shapes(
                sentence_ids, *lengths, shapes=self.shapes, rank=self.rank, num_ranks=self.num_ranks
            )
        return divide_update(
            sentence_ids,
            *lengths,
            max_tokens=self.max_tokens_per_micro_batch,
            overhead=self.micro_batch_overhead,
            rank=self.rank,
            num_ranks=self.num_ranks,
        )

    def share_of_real_tokens(self) -> float:
        """Compute the part of this rank's padded tokens, of both sides, that are real, in the first updates."""
        real = padded = 0
        for micro_batch in (one for update in self.first_updates(256) for one in update):
            ids = micro_batch.sentence_ids[: micro_batch.num_real]
            real += int(self.source_lengths[ids].sum() + self.target_lengths[ids].sum())
            padded += self.padded_tokens(micro_batch)
        return real / padded

    def first_updates(self, num_updates: int) -> list[list[MicroBatch]]:
        """Divide the first updates of the run, at most so many: this rank's micro-batches of each."""
        plan = self._plan(0)
        return [self.divide(plan.sentence_ids(number)) for number in range(min(plan.num_updates, num_updates))]

    def padded_tokens(self, micro_batch: MicroBatch) -> int:
        """Count the tokens of both sides that a micro-batch computes."""
        ids, shape = micro_batch.sentence_ids, micro_batch.shape
        if shape is not None:
            return shape.num_tokens
        return len(ids) * int(self.source_lengths[ids].max() + self.target_lengths[ids].max())

    def updates(self, *, epoch: int, cursor: int) -> Generator[Update, None, None]:
        """Yield updates without end, from update `cursor` of epoch `epoch` (both 0-based) on.

        After halve() the next update is divided by the lower limit; prefetched updates are dropped.
        """
        while True:
            plan = self._plan(epoch)
            while cursor < plan.num_updates:
                limit = self.max_tokens_per_micro_batch
                with contextlib.closing(self._prefetched(plan, cursor, num_workers=self.num_workers)) as prefetched:
                    for update in prefetched:
                        yield update
                        cursor += 1
                        if self.max_tokens_per_micro_batch != limit:
                            break
            epoch, cursor = epoch + 1, 0

    def update_at(self, *, epoch: int, cursor: int) -> Update:
        """Return one update, divided by the present limit."""
        with contextlib.closing(self._prefetched(self._plan(epoch), cursor, num_workers=0)) as updates:
            return next(updates)

    def _plan(self, epoch: int) -> EpochPlan:
        return plan_epoch(self.target_lengths, self.budget, seed=self.seed, epoch=epoch)

    def _prefetched(self, plan: EpochPlan, cursor: int, *, num_workers: int) -> Generator[Update, None, None]:
        """Yield the updates of an epoch from `cursor` on, collated ahead by loader processes where there are some.

        Raises:
            RuntimeError: A loader process cannot be started, has died or does not answer ("DataLoader worker ...").
        """
        remaining = range(cursor, plan.num_updates)
        loader: DataLoader[list[Batch]] = DataLoader(
            _Updates(encoded=self.encoded, plan=plan, divide=self.divide, pad_id=self.pad_id),
            batch_size=1,
            sampler=remaining,
            collate_fn=_only,
            num_workers=num_workers,
            worker_init_fn=_prepare_worker,
            # Not with workers: the thread that pins would wait for ever for the rest of what a killed worker has sent.
            pin_memory=torch.cuda.is_available() and not num_workers,
        )
        others = set(multiprocessing.active_children())
        placed = self.place(loader)
        try:
            # Nothing else holds the iterator: dropped here, it ends its processes before those left over are killed.
            for index, micro_batches in zip(
                remaining, self._bounded(placed, others) if num_workers else placed, strict=True
            ):
                ids = plan.sentence_ids(index)
                yield Update(
                    sentence_ids=ids,
                    target_tokens=int(self.target_lengths[ids].sum(dtype=np.int64)),
                    updates_in_epoch=plan.num_updates,
                    micro_batches=micro_batches,
                )
        finally:
            _kill_all_but(others)

    def _bounded(self, batches: Iterable[list[Batch]], others: set[BaseProcess]) -> Iterator[list[Batch]]:
        """Yield what the loader processes have collated; kill them if one takes longer than worker_timeout.

        The timeout of torch's loader does not end a wait for the rest of a batch that a stopped process has begun to
        send; the death of a process does.
        """
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            _kill_all_but(others)

        iterator = itertools.chain.from_iterable([batches])  # the first next() starts the processes
        while True:
            timer = threading.Timer(self.worker_timeout, kill)
            timer.daemon = True
            timer.start()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except OSError as error:  # of a new process, its pipe or its locks
                _drop_silently(error)
                raise RuntimeError(f"DataLoader worker could not be started ({first_line(error)})") from error
            except RuntimeError as error:
                _kill_all_but(others)  # torch would wait for those that wait for the one that died
                if is_late.is_set():
                    raise RuntimeError(f"DataLoader worker did not answer within {self.worker_timeout} s") from error
                raise
            finally:
                timer.cancel()
            yield batch


def _kill_all_but(others: set[BaseProcess]) -> None:
    """Kill the loader processes.

    They ignore TERM, with which torch ends those that are left over; one that waits for a lock of a killed one would
    hold up the end of this process for ever.
    """
    for worker in set(multiprocessing.active_children()) - others:
        worker.kill()


def _drop_silently(error: OSError) -> None:
    """Drop the frames of an error, and torch's loader in them: half made, it prints a traceback (torch 2.13)."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    error.__traceback__ = None
    sys.unraisablehook = hook


def _only(updates: list[list[Batch]]) -> list[Batch]:
    """A loader's batch is one update, already collated."""
    return updates[0]
