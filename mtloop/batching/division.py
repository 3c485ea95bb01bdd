"""Divide an update over ranks and micro-batches, and the rows of an evaluation into batches.

Shape letters: N sentences, n of an update, B of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mtloop.batching.plan import Ids, Lengths
from mtloop.batching.shapes import Shape, choose_evaluation_shapes, first_fit

# Rows of a rank up to which every cut is tried; of more, about one in STRIDE.
EXACT_ROWS, STRIDE = 256, 16


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward.

    Attributes:
        sentence_ids: int64 [B].
        num_real: How many of them count, the first; the rest are copies that keep the ranks in step or fill a shape.
        shape: Shape that the rows are padded to, None for the longest row.
    """

    sentence_ids: Ids
    num_real: int
    shape: Shape | None = None

    @property
    def is_filler(self) -> bool:
        return self.num_real == 0


def divide_update(
    sentence_ids: Ids,
    source_lengths: Lengths,
    target_lengths: Lengths,
    *,
    max_tokens: int,
    overhead: int,
    rank: int,
    num_ranks: int,
) -> list[MicroBatch]:
    """Divide an update by length: the micro-batches of one rank, equally many on every rank.

    The sentences, longest first, are cut into passes at the least cost; in each pass every rank has a micro-batch. The
    ranks take turns at the sentences of a pass, the rank with the fewest padded tokens so far first.

    Args:
        sentence_ids: int64 [n], the update, from EpochPlan.sentence_ids.
        source_lengths: int32 [N] of the whole corpus.
        target_lengths: int32 [N] of the whole corpus.
        max_tokens: Padded tokens of a micro-batch at most; a longer row is a micro-batch by itself.
        overhead: Cost of a micro-batch beyond its padded tokens, in tokens.
        rank: This rank, from 0.
        num_ranks: How many ranks share the update.

    Returns:
        Micro-batches of this rank; a rank without a sentence in a pass gets a filler of one short row.
    """
    by_length = sort_by_length(sentence_ids, source_lengths, target_lengths)
    sources, targets = (side[by_length].astype(np.int64) for side in (source_lengths, target_lengths))
    # The sentences that the ranks hold as one row each, as long as the longest of them.
    groups = np.arange(0, len(by_length), num_ranks)
    bounds = cut_at_least_cost(
        np.maximum.reduceat(sources, groups), targets[groups], max_tokens=max_tokens, overhead=overhead
    )
    loads = np.zeros(num_ranks, dtype=np.int64)
    micro_batches = []
    for start, end in pairwise(np.minimum(bounds * num_ranks, len(by_length))):
        for turn, taker in enumerate(np.argsort(loads, kind="stable")):
            own = slice(start + turn, end, num_ranks)
            ids = by_length[own]
            if taker == rank:
                micro_batches.append(MicroBatch(sentence_ids=ids if len(ids) else by_length[-1:], num_real=len(ids)))
            if len(ids):
                loads[taker] += len(ids) * (sources[own].max() + targets[own].max())
    return micro_batches


def cut_at_least_cost(sources: Ids, targets: Ids, *, max_tokens: int, overhead: int) -> Ids:
    """Cut rows into runs so that the sum of overhead + rows x (longest source + longest target) is least.

    Exact for up to EXACT_ROWS rows. Of more, cuts are made only where the target length changes and at every
    STRIDE-th row.

    Args:
        sources: int64 [n], lengths.
        targets: int64 [n], lengths, descending.
        max_tokens: Cap on a run's rows x (longest source + longest target); a longer row is a run by itself.
        overhead: Cost of a run beyond that, in tokens.

    Returns:
        int64 [number of runs + 1], ascending from 0 to n.
    """
    num_rows = len(targets)
    is_cut = np.ones(num_rows, dtype=bool)
    if num_rows > EXACT_ROWS:
        is_long = STRIDE * (sources + targets) > max_tokens  # cuts around these, so that no block is above max_tokens
        is_cut = (np.arange(num_rows) % STRIDE == 0) | (np.diff(targets, prepend=0) != 0) | is_long
        is_cut[1:] |= is_long[:-1]
    starts = np.flatnonzero(is_cut)
    positions = np.append(starts, num_rows)
    block_sources = np.maximum.reduceat(sources, starts)
    # costs[i]: the least for the rows before position i; previous[i]: where the last of its runs begins.
    costs = np.full(len(positions), np.iinfo(np.int64).max)
    costs[0] = 0
    previous = np.zeros(len(positions), dtype=np.int64)
    for i, start in enumerate(starts):
        last = int(np.searchsorted(positions, start + max(1, max_tokens // int(targets[start])), side="right"))
        ends = positions[i + 1 : last + 1]
        rows = ends - start
        padded = rows * (np.maximum.accumulate(block_sources[i : i + len(rows)]) + targets[start])
        num_fitting = max(1, int(np.searchsorted(padded, max_tokens, side="right")))
        found = costs[i] + overhead + padded[:num_fitting]
        ahead = slice(i + 1, i + 1 + num_fitting)
        is_better = found < costs[ahead]
        costs[ahead][is_better] = found[is_better]
        previous[ahead][is_better] = i
    bounds = [len(positions) - 1]
    while bounds[-1]:
        bounds.append(int(previous[bounds[-1]]))
    return positions[bounds[::-1]]


def sort_by_length(sentence_ids: Ids, source_lengths: Lengths, target_lengths: Lengths) -> Ids:
    """Sort ids, longest target first, then longest source."""
    return sentence_ids[np.lexsort((-source_lengths[sentence_ids], -target_lengths[sentence_ids]))]


def cut_by_tokens(sentence_ids: Ids, *lengths: Lengths, max_tokens: int) -> list[Ids]:
    """Cut ids into runs of at most `max_tokens` padded tokens: rows x the sum of each side's longest.

    Args:
        sentence_ids: int64 [n], in the order to keep.
        lengths: One int32 [N] a side (source alone, or source and target).
        max_tokens: Cap of a run; a longer row is a run by itself.
    """
    runs = []
    start = 0
    while start < len(sentence_ids):
        rest = sentence_ids[start : start + max_tokens]
        longest = sum(np.maximum.accumulate(side[rest].astype(np.int64)) for side in lengths)
        padded = longest * np.arange(1, len(rest) + 1)
        num_rows = max(1, int(np.searchsorted(padded, max_tokens, side="right")))
        runs.append(rest[:num_rows])
        start += num_rows
    return runs


def plan_evaluation(source_lengths: Lengths, *, max_tokens: int) -> list[Ids]:
    """Form the batches of an evaluation once, globally: longest source first, at most `max_tokens` source tokens each.

    Sorted from long to short, the largest batch comes first: memory that suffices for it suffices for all. The batches
    do not depend on ranks, so that at equal threads every rank count computes the same tensors.

    Args:
        source_lengths: int32 [N].
        max_tokens: Padded source tokens of a batch at most.

    Returns:
        Row indices int64 of each batch; every row exactly once.
    """
    by_length = np.argsort(-source_lengths.astype(np.int64), kind="stable")
    return cut_by_tokens(by_length, source_lengths, max_tokens=max_tokens)


def divide_into_shapes(
    sentence_ids: Ids,
    source_lengths: Lengths,
    target_lengths: Lengths,
    *,
    shapes: list[Shape],
    rank: int,
    num_ranks: int,
) -> list[MicroBatch]:
    """Divide an update into micro-batches of given shapes: the same shapes in the same order on every rank.

    Longest shape first; the rows that its last micro-batch has left take shorter sentences, so that a shorter shape may
    need one micro-batch less.

    Args:
        sentence_ids: int64 [n], the update.
        source_lengths: int32 [N] of the whole corpus.
        target_lengths: int32 [N] of the whole corpus.
        shapes: From choose_shapes.
        rank: This rank, from 0.
        num_ranks: How many ranks share the update.

    Returns:
        This rank's micro-batches, each of its shape's rows; copies of a sentence that it holds fill what is left.
    """
    left = sort_by_length(sentence_ids, source_lengths, target_lengths)
    micro_batches = []
    for number in reversed(range(len(shapes))):
        fit = first_fit(shapes, source_lengths[left], target_lengths[left])
        num_own = int((fit == number).sum())
        if num_own == 0:
            continue
        rows = shapes[number].rows * num_ranks
        # Stable: its own sentences first, then the longest of the others.
        ordered = left[np.argsort(fit != number, kind="stable")]
        num_taken = -(-num_own // rows) * rows
        taken, rest = ordered[:num_taken], ordered[num_taken:]
        left = sort_by_length(rest, source_lengths, target_lengths)
        for start in range(0, len(taken), rows):
            pass_ids = taken[start : start + rows]
            real = pass_ids[rank::num_ranks]
            ids = np.concatenate((real, np.repeat(pass_ids[-1:], shapes[number].rows - len(real))))
            micro_batches.append(MicroBatch(sentence_ids=ids, num_real=len(real), shape=shapes[number]))
    return micro_batches


def plan_static_evaluation(
    source_lengths: Lengths, target_lengths: Lengths | None, *, max_tokens: int
) -> list[MicroBatch]:
    """Form the batches of an evaluation as plan_evaluation does, in few shapes.

    Args:
        source_lengths: int32 [N].
        target_lengths: int32 [N]; None where no target is padded.
        max_tokens: Padded tokens of a batch at most, of both sides together.

    Returns:
        Longest shape first; every row exactly once among the first num_real of a batch.
    """
    if target_lengths is None:
        target_lengths = np.zeros_like(source_lengths)
    shapes = choose_evaluation_shapes(source_lengths, target_lengths, max_tokens=max_tokens)
    rows = np.arange(len(source_lengths))
    return divide_into_shapes(rows, source_lengths, target_lengths, shapes=shapes, rank=0, num_ranks=1)
