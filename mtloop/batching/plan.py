"""Draw the sentences of each update at random: a pure function of (target lengths, budget, seed, epoch).

Shape letters: N sentences, U updates in an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Lengths = NDArray[np.int32]

# Part of every checkpoint: raise it when the same lengths, budget and seed give other updates than before. 1 sorted the
# sentences by length within pools, so that the rows of an update were of one length: they taught less.
PLAN_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Size of an update over all ranks: about `tokens` target tokens, or exactly `sentences` sentences.

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
    """The updates of one epoch: update u is `order[bounds[u]:bounds[u + 1]]`.

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


def plan_epoch(target_lengths: Lengths, budget: Budget, *, seed: int, epoch: int) -> EpochPlan:
    """Plan one epoch: permute the sentences and cut the permutation into updates.

    Args:
        target_lengths: int32 [N], tokens of each target, special tokens included: what the loss counts.
        budget: Size of an update over all ranks.
        seed: The run's seed.
        epoch: 0-based; each epoch has its own order.

    Returns:
        The plan; it does not depend on ranks or micro-batches, which only divide an update.

    Raises:
        ValueError: without sentences.
    """
    num_sentences = len(target_lengths)
    if num_sentences == 0:
        raise ValueError("cannot plan an epoch of 0 sentences")
    order = np.random.default_rng([seed, epoch]).permutation(num_sentences)
    num_updates = count_updates(target_lengths, budget)
    if budget.sentences is not None:
        starts = np.arange(num_updates, dtype=np.int64) * budget.sentences
    else:
        starts = _equal_token_starts(target_lengths[order], num_updates)
    return EpochPlan(order=order, bounds=np.append(starts, num_sentences))


def _equal_token_starts(target_lengths: Lengths, num_updates: int) -> Ids:
    """Cut where the running token count passes each equal share of the total; int64 [num_updates], none empty."""
    tokens_before = np.cumsum(target_lengths, dtype=np.int64)
    total = int(tokens_before[-1])
    tokens_before -= target_lengths
    # A share is at least the longest target (count_updates), so each holds the start of some sentence.
    shares = (np.arange(num_updates, dtype=np.int64) * total + num_updates - 1) // num_updates
    return np.searchsorted(tokens_before, shares, side="left").astype(np.int64)
