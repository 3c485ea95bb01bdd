"""The only caller of model.generate, and what stands in for it where every shape is compiled: layer 2."""

from mtloop.generation.generate import (
    NOTHING,
    Answer,
    Hypothesis,
    Planned,
    deal_batches,
    gather_n_best,
    generate_rows,
    share_batches,
)
from mtloop.generation.greedy import Rules, greedy_search, rules_of

__all__ = [
    "NOTHING",
    "Answer",
    "Hypothesis",
    "Planned",
    "Rules",
    "deal_batches",
    "gather_n_best",
    "generate_rows",
    "greedy_search",
    "rules_of",
    "share_batches",
]
