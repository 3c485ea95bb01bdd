"""A plan and encoded rows -> tensors: collation, prefetch, placement.

Must not know texts, tokenizers or how the plan came to be. Shape letters: B sentences, S source tokens, T target
tokens.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtloop.batching import Budget, EpochPlan, count_updates, divide_update, plan_epoch
from mtloop.loss import IGNORE_INDEX

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer step trains on.

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


def pad_column(column: pa.ChunkedArray, *, pad_value: int) -> Tensor:
    """Pad a column of integer lists to its longest row: int64 [B, longest].

    Reads Arrow's values and offsets as they lie, without a Python object per token.
    """
    lists = column.combine_chunks()
    offsets = lists.offsets.to_numpy()
    lengths = np.diff(offsets)
    padded = np.full((len(lengths), int(lengths.max())), pad_value, dtype=np.int64)
    is_real = np.arange(padded.shape[1]) < lengths[:, None]
    padded[is_real] = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    return torch.from_numpy(padded)


def collate(encoded: Dataset, row_ids: Sequence[int] | NDArray[np.int64], *, pad_id: int) -> Batch:
    """Read rows of an encoded data set into one padded batch.

    Args:
        encoded: Columns input_ids and labels.
        row_ids: int64 [B].
        pad_id: The tokenizer's padding id.

    Returns:
        input_ids and attention_mask int64 [B, S]; labels int64 [B, T], IGNORE_INDEX in the padding; target_positions
        int64 [N]: where in the flattened labels the N real ones are, found here because a device would have to wait
        for its own answer.
    """
    table = encoded.with_format("arrow")[row_ids]
    input_ids = pad_column(table["input_ids"], pad_value=-1)
    is_real = input_ids >= 0
    labels = pad_column(table["labels"], pad_value=IGNORE_INDEX)
    return {
        "input_ids": input_ids.masked_fill(~is_real, pad_id),
        "attention_mask": is_real.long(),
        "labels": labels,
        "target_positions": (labels.flatten() != IGNORE_INDEX).nonzero().flatten(),
    }


@dataclass(kw_only=True)
class _Updates(TorchDataset[list[Batch]]):
    """One rank's micro-batches of the updates of an epoch, by update number: what a loader worker computes."""

    encoded: Dataset
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]
    plan: EpochPlan
    max_tokens: int
    pad_id: int
    rank: int
    num_ranks: int

    def __getitem__(self, update: int) -> list[Batch]:
        micro_batches = divide_update(
            self.plan.sentence_ids(update),
            self.source_lengths,
            self.target_lengths,
            max_tokens=self.max_tokens,
            rank=self.rank,
            num_ranks=self.num_ranks,
        )
        batches = []
        for micro_batch in micro_batches:
            batch = collate(self.encoded, micro_batch.sentence_ids, pad_id=self.pad_id)
            if micro_batch.is_filler:
                batch["labels"].fill_(IGNORE_INDEX)
                batch["target_positions"] = batch["target_positions"][:0]
            batches.append(batch)
        return batches


def _ignore_signals(worker: int) -> None:
    """Leave stopping to the trainer: a loader worker that dies of TERM takes the trainer with it before it can save."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows has the first two
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@dataclass(kw_only=True)
class TrainLoader:
    """The updates of a run in order, from any cursor.

    Attributes:
        encoded: Columns input_ids and labels, N rows.
        source_lengths: int32 [N].
        target_lengths: int32 [N].
        budget: What an update holds over all ranks.
        max_tokens_per_micro_batch: Padded tokens, source and target.
        pad_id: The tokenizer's padding id.
        seed: The run's seed.
        rank: This rank.
        num_ranks: How many share an update.
        num_workers: Loader processes; 0 collates in this one.
        place: Moves a loader's tensors to the device (Runtime.place_batches).
    """

    encoded: Dataset
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]
    budget: Budget
    max_tokens_per_micro_batch: int
    pad_id: int
    seed: int
    rank: int
    num_ranks: int
    num_workers: int = 0
    place: Callable[[Any], Any] = field(default=lambda loader: loader)

    @property
    def updates_per_epoch(self) -> int:
        return count_updates(self.target_lengths, self.budget)

    def updates(self, *, epoch: int, cursor: int) -> Generator[Update, None, None]:
        """Yield updates without end, from update `cursor` of epoch `epoch` (both 0-based) on."""
        while True:
            plan = plan_epoch(self.source_lengths, self.target_lengths, self.budget, seed=self.seed, epoch=epoch)
            yield from self._epoch(plan, cursor)
            epoch, cursor = epoch + 1, 0

    def _epoch(self, plan: EpochPlan, cursor: int) -> Generator[Update, None, None]:
        rows = _Updates(
            encoded=self.encoded,
            source_lengths=self.source_lengths,
            target_lengths=self.target_lengths,
            plan=plan,
            max_tokens=self.max_tokens_per_micro_batch,
            pad_id=self.pad_id,
            rank=self.rank,
            num_ranks=self.num_ranks,
        )
        remaining = range(cursor, plan.num_updates)
        loader: DataLoader[list[Batch]] = DataLoader(
            rows,
            batch_size=1,
            sampler=remaining,
            collate_fn=_only,
            num_workers=self.num_workers,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
        )
        others = set(multiprocessing.active_children())
        try:
            for index, micro_batches in zip(remaining, self.place(loader), strict=True):
                ids = plan.sentence_ids(index)
                yield Update(
                    sentence_ids=ids,
                    target_tokens=int(self.target_lengths[ids].sum(dtype=np.int64)),
                    updates_in_epoch=plan.num_updates,
                    micro_batches=micro_batches,
                )
        finally:
            # They ignore TERM, with which torch ends those that are left over; one that waits for a lock of a killed
            # one would hold up the end of this process for ever.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()


def _only(updates: list[list[Batch]]) -> list[Batch]:
    """A loader's batch is one update, already collated."""
    return updates[0]
