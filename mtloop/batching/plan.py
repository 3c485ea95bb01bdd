"""Which sentences each update holds: a pure function of (lengths, budget, seed, epoch).

Shape letters: N sentences, U updates in an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Lengths = NDArray[np.int32]

# Sentences are sorted by length within pools of this many: large enough that an update's rows are of one length, small
# enough that the sort, not the shuffle, is local. A constant: it decides which sentences share an update.
POOL_SIZE = 32_768
# Length fields of the sort key: 20 bits each, 22 for the pool (4 million pools of 32,768 sentences).
LENGTH_BITS = 20


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much one update holds, over all ranks: about `tokens` target tokens, or exactly `sentences` sentences.

    Raises:
        ValueError: unless exactly one of the two is given and positive.
    """

    tokens: int | None = None
    sentences: int | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.sentences is None):
            raise ValueError("an update is counted in tokens or in sentences: give exactly one of the two")
        if (self.tokens or self.sentences or 0) < 1:
            raise ValueError(f"an update holds at least one: {self}")


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The updates of one epoch: update u is `order[bounds[u]:bounds[u + 1]]`, target lengths descending.

    Attributes:
        order: int64 [N], every sentence id exactly once.
        bounds: int64 [U + 1], ascending from 0 to N.
    """

    order: Ids
    bounds: Ids

    @property
    def num_updates(self) -> int:
        return len(self.bounds) - 1

    def sentence_ids(self, update: int) -> Ids:
        """Sentence ids of update `update` (0-based in the epoch), int64, at least one."""
        return self.order[self.bounds[update] : self.bounds[update + 1]]


def count_updates(target_lengths: Lengths, budget: Budget) -> int:
    """Count the updates of an epoch: the same for every epoch and seed.

    Under a token budget, floor(total / T) with T no smaller than the longest target: then every update gets at least
    one sentence whatever the order, and none is much above T.
    """
    if budget.sentences is not None:
        return -(-len(target_lengths) // budget.sentences)
    assert budget.tokens is not None
    total = int(target_lengths.sum(dtype=np.int64))
    return max(1, total // max(budget.tokens, int(target_lengths.max())))


def plan_epoch(source_lengths: Lengths, target_lengths: Lengths, budget: Budget, *, seed: int, epoch: int) -> EpochPlan:
    """Plan one epoch from lengths alone: shuffle, pool, sort within a pool, cut into updates, shuffle the updates.

    Args:
        source_lengths: int32 [N], tokens of each source, special tokens included.
        target_lengths: int32 [N], tokens of each target, special tokens included: what the loss counts.
        budget: What one update holds, over all ranks.
        seed: The run's seed.
        epoch: 0-based; each epoch has its own order.

    Returns:
        The plan; it does not depend on ranks or micro-batches, which only divide an update.

    Raises:
        ValueError: without sentences, or with lengths that do not pair up.
    """
    num_sentences = len(target_lengths)
    if num_sentences == 0 or len(source_lengths) != num_sentences:
        raise ValueError(f"cannot plan {len(source_lengths)} sources and {num_sentences} targets")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(num_sentences)
    order = order[np.argsort(_sort_keys(source_lengths, target_lengths, order), kind="stable")]
    num_updates = count_updates(target_lengths, budget)
    if budget.sentences is not None:
        starts = np.arange(num_updates, dtype=np.int64) * budget.sentences
    else:
        starts = _equal_token_starts(target_lengths[order], num_updates)
    ends = np.append(starts[1:], num_sentences)
    shuffled = rng.permutation(num_updates)
    sizes = (ends - starts)[shuffled]
    bounds = np.concatenate(([0], np.cumsum(sizes)))
    # Position p of the new order reads position p + (where its update stood - where it stands now) of the sorted one.
    order = order[np.arange(num_sentences) + np.repeat(starts[shuffled] - bounds[:-1], sizes)]
    return EpochPlan(order=order, bounds=bounds)


def _sort_keys(source_lengths: Lengths, target_lengths: Lengths, order: Ids) -> Ids:
    """Return one int64 key a position: pool, then target length, then source length; every other pool runs backwards.

    Running backwards makes neighbours of two pools alike in length, so that an update across the border pads no more.
    """
    top = (1 << LENGTH_BITS) - 1
    lengths = np.minimum(target_lengths[order], top).astype(np.int64) << LENGTH_BITS
    lengths |= np.minimum(source_lengths[order], top)
    pool = np.arange(len(order), dtype=np.int64) // POOL_SIZE
    is_backwards = (pool & 1).astype(bool)
    np.subtract((1 << 2 * LENGTH_BITS) - 1, lengths, out=lengths, where=is_backwards)
    return (pool << 2 * LENGTH_BITS) | lengths


def _equal_token_starts(sorted_target_lengths: Lengths, num_updates: int) -> Ids:
    """Cut where the running token count passes each equal share of the total; int64 [num_updates], none empty."""
    tokens_before = np.cumsum(sorted_target_lengths, dtype=np.int64)
    total = int(tokens_before[-1])
    tokens_before -= sorted_target_lengths
    # A share is at least the longest target (count_updates), so each holds the start of some sentence.
    shares = (np.arange(num_updates, dtype=np.int64) * total + num_updates - 1) // num_updates
    return np.searchsorted(tokens_before, shares, side="left").astype(np.int64)
