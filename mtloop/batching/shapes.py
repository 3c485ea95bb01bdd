"""A short list of shapes to pad micro-batches to, for devices that compile a program for every shape they meet.

A pure function of lengths and budgets, so every rank and every resume finds the same list. The shapes are a chain: each
is at least as long on both sides as the one before, so a sentence goes into the first that it fits.

Shape letters: N sentences, U updates, M candidates, B rows, S source tokens, T target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mtloop.batching.plan import Budget, Ids, Lengths, plan_epoch

# Each shape costs a compilation of seconds to minutes. Share of real tokens on KDE pairs, updates of 1,000 target
# tokens and of 32 pairs: with overhead 64 64 and 59 % in 6 shapes, 150 57 and 47 % in 5 and 4, 300 44 and 40 %.
MAX_SHAPES = 8
# Fewer shapes are taken where they cost at most this share of tokens more than the best list.
WORTH_A_SHAPE = 0.05
# An evaluation compiles several programs a shape (encoder, decoding, loss) and is a small part of a run.
MAX_EVALUATION_SHAPES = 3
# Cost of an evaluation batch beyond its tokens, in tokens: without it shapes of one row would be chosen.
EVALUATION_OVERHEAD = 64
# Lengths are multiples of this where the model allows: the rows of a TPU's tile. Multiples of 4 win one point.
LENGTH_STEP = 8
# The shapes are chosen on this many updates of one epoch: a sample of the corpus, 0.1 s of work.
NUM_SAMPLED_UPDATES = 256
SOURCE_QUANTILES = (0.5, 0.75, 0.9, 0.97, 1.0)
MAX_TARGET_CANDIDATES = 16
ROW_DIVISORS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True, order=True)
class Shape:
    """Shape that a micro-batch is padded to: rows, source tokens and target tokens of a row."""

    rows: int
    source: int
    target: int

    @property
    def num_tokens(self) -> int:
        """Padded tokens of both sides."""
        return self.rows * (self.source + self.target)

    def __str__(self) -> str:
        return f"{self.rows}x({self.source}+{self.target})"


def choose_shapes(
    source_lengths: Lengths,
    target_lengths: Lengths,
    budget: Budget,
    *,
    max_tokens: int,
    overhead: int,
    num_ranks: int,
    longest: tuple[int, int],
    max_shapes: int = MAX_SHAPES,
) -> list[Shape]:
    """Choose the shapes of a training run: those that pad a sample of its updates least.

    Args:
        source_lengths: int32 [N].
        target_lengths: int32 [N].
        budget: Size of an update over all ranks: an update of few rows must not be padded to many.
        max_tokens: Padded tokens of a micro-batch at most; a longer row is a micro-batch by itself.
        overhead: Cost of a micro-batch beyond its padded tokens, in tokens.
        num_ranks: How many ranks share each micro-batch's shape.
        longest: Source and target tokens that no row may be padded beyond: the model may have no more positions.
        max_shapes: How many at most; 1 gives one shape for all.

    Returns:
        Shapes, shortest first; every sentence fits the last.
    """
    # Not the run's seed: the list must not change with it, and any sample will do.
    plan = plan_epoch(target_lengths, budget, seed=0, epoch=0)
    num_updates = min(NUM_SAMPLED_UPDATES, plan.num_updates)
    bounds = plan.bounds[: num_updates + 1]
    return _best_chain(
        source_lengths, target_lengths, plan.order[: bounds[-1]], bounds,
        max_tokens=max_tokens, overhead=overhead, num_ranks=num_ranks, longest=longest, max_shapes=max_shapes,
    )  # fmt: skip


def choose_evaluation_shapes(source_lengths: Lengths, target_lengths: Lengths, *, max_tokens: int) -> list[Shape]:
    """Choose the shapes of an evaluation's batches; target lengths of 0 where none is padded.

    Args:
        source_lengths: int32 [N].
        target_lengths: int32 [N].
        max_tokens: Padded tokens of a batch at most, both sides together; a longer row is a batch by itself.
    """
    longest = int(source_lengths.max()), int(target_lengths.max())
    return _best_chain(
        source_lengths, target_lengths, np.arange(len(source_lengths)), np.array([0, len(source_lengths)]),
        max_tokens=max_tokens, overhead=EVALUATION_OVERHEAD, num_ranks=1, longest=longest,
        max_shapes=MAX_EVALUATION_SHAPES,
    )  # fmt: skip


def first_fit(shapes: list[Shape], source_lengths: Lengths, target_lengths: Lengths) -> Ids:
    """Return for each sentence the number of the first shape that it fits, int64 [N]."""
    by_source = np.searchsorted([shape.source for shape in shapes], source_lengths)
    by_target = np.searchsorted([shape.target for shape in shapes], target_lengths)
    return np.maximum(by_source, by_target)


def _best_chain(
    source_lengths: Lengths,
    target_lengths: Lengths,
    order: Ids,
    bounds: Ids,
    *,
    max_tokens: int,
    overhead: int,
    num_ranks: int,
    longest: tuple[int, int],
    max_shapes: int,
) -> list[Shape]:
    """Find the cheapest chain of at most max_shapes by dynamic programming over candidate (S, T).

    A sentence pays for the shape it goes into; a shape's rows are rounded up to whole micro-batches in each update.
    """
    sources, targets = source_lengths[order], target_lengths[order]
    top = _round_up(int(source_lengths.max()), longest[0]), _round_up(int(target_lengths.max()), longest[1])
    candidates = _candidates(sources, targets, top)
    updates = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    # [M + 1, U]: sentences of each update that fit a candidate; a first line of none.
    counts = np.zeros((len(candidates) + 1, len(bounds) - 1), dtype=np.int64)
    for number, (source, target) in enumerate(candidates, start=1):
        fits = (sources <= source) & (targets <= target)
        counts[number] = np.bincount(updates[fits], minlength=len(bounds) - 1)
    # best[j]: the cheapest chain that ends with candidate j, with the number of shapes so far.
    best: dict[int, tuple[int, list[Shape]]] = {0: (0, [])}
    found: list[tuple[int, list[Shape]]] = []
    steps = _steps(candidates, counts, max_tokens=max_tokens, overhead=overhead, num_ranks=num_ranks)
    for _ in range(max_shapes):
        longer: dict[int, tuple[int, list[Shape]]] = {}
        for (before, number), (cost, shape) in steps.items():
            if before in best and (number not in longer or best[before][0] + cost < longer[number][0]):
                longer[number] = best[before][0] + cost, [*best[before][1], shape]
        best = longer
        if len(candidates) in best:
            found.append(best[len(candidates)])
    least = min(cost for cost, _ in found)
    return next(chain for cost, chain in found if cost <= (1 + WORTH_A_SHAPE) * least)


def _round_up(length: int, limit: int) -> int:
    """Round up to a multiple of LENGTH_STEP, but not beyond the limit, or the length itself where that is beyond it."""
    return min(-(-length // LENGTH_STEP) * LENGTH_STEP, max(limit, length))


def _candidates(sources: Lengths, targets: Lengths, top: tuple[int, int]) -> list[tuple[int, int]]:
    """List (S, T) to choose from, ascending by T then S; the last is `top`, which everything fits."""
    # Even shares of the tokens, not of the sentences: long rows are few and dear.
    ascending = np.sort(targets)
    shares = np.arange(1, MAX_TARGET_CANDIDATES) * int(ascending.sum()) // MAX_TARGET_CANDIDATES
    cuts = ascending[np.searchsorted(np.cumsum(ascending), shares)]
    found = {top}
    for lower, upper in pairwise([-1, *sorted({_round_up(int(cut), top[1]) for cut in (*cuts, top[1])})]):
        near = sources[(targets > lower) & (targets <= upper)]
        if len(near):
            lengths = np.quantile(near, SOURCE_QUANTILES, method="higher")
            found |= {(_round_up(int(length), top[0]), upper) for length in lengths}
    return sorted(found, key=lambda one: (one[1], one[0]))


def _steps(
    candidates: list[tuple[int, int]], counts: NDArray[np.int64], *, max_tokens: int, overhead: int, num_ranks: int
) -> dict[tuple[int, int], tuple[int, Shape]]:
    """Price each step of a chain: (candidate before, candidate), from 1, 0 for none -> (cost in tokens, its shape)."""
    steps = {}
    for number, (source, target) in enumerate(candidates, start=1):
        for before in range(number):
            if before and candidates[before - 1][0] > source:
                continue
            rows = counts[number] - counts[before]
            if not rows.any() and number < len(candidates):
                continue
            most = min(max(1, max_tokens // (source + target)), max(1, -(-int(rows.max()) // num_ranks)))
            prices = []
            for divisor in ROW_DIVISORS:
                shape = Shape(-(-most // divisor), source, target)
                num_passes = int((-(-rows // (shape.rows * num_ranks))).sum())
                prices.append((num_passes * num_ranks * (shape.num_tokens + overhead), shape))
            steps[before, number] = min(prices, key=lambda one: one[0])
    return steps
