"""The embedded corpus: deterministic English-French interface strings from a grammar, for demos and tests.

Owns the two splits. Must not know files, tokenizers or models: standard library only. Every English string has exactly
one French translation, so a small model can learn the mapping from `NUM_TRAIN` pairs. The French has a plain space
before `:` and `?` and inside « », and three full stops: SentencePiece's normalisation would turn a no-break space and
an ellipsis into these, and a hypothesis could then never equal its reference.
"""

from __future__ import annotations

import re
from functools import lru_cache
from random import Random

from mtloop.data.demo.grammar import draw_pair

NUM_TRAIN = 12_000
NUM_VALID = 1_000

# sha256 of the JSON of each split's pairs: a run whose rows are cached need not draw 13,168 pairs to find them.
PAIRS_SHA256 = {
    "train": "2b873a109ec23dbb694a3d1088de2be04898bb30a8677a33257f90da6d63a35d",
    "validation": "67589bec6afc057874aef50871618990d37fa53576a50dab31f07b68b7518a49",
}

_SEED = 20_240
_MIN_SOURCE_WORDS, _MAX_SOURCE_WORDS = 4, 20
_NOT_CONTENT = re.compile(r"[^a-z0-9%]+")


def demo_pairs(split: str) -> list[tuple[str, str]]:
    """Return the pairs of a split; the same on every machine and Python version.

    Args:
        split: "train" (`NUM_TRAIN` pairs) or "validation" (`NUM_VALID` pairs). No source occurs twice, in one split
            or in both, not even with other case, spacing or punctuation.

    Returns:
        (English, French) pairs; the list is the caller's own.

    Raises:
        ValueError: for another split.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split of the demo corpus is {split!r}; use 'train' or 'validation'")
    every = (NUM_TRAIN + NUM_VALID) // NUM_VALID
    is_valid_split = split == "validation"
    return [pair for index, pair in enumerate(_all_pairs()) if (index % every == 0) == is_valid_split]


@lru_cache(maxsize=1)
def _all_pairs() -> tuple[tuple[str, str], ...]:
    rng = Random(_SEED)
    pairs: dict[str, tuple[str, str]] = {}
    while len(pairs) < NUM_TRAIN + NUM_VALID:
        english, french = draw_pair(rng)
        if _MIN_SOURCE_WORDS <= len(english.split()) <= _MAX_SOURCE_WORDS:
            pairs.setdefault(_NOT_CONTENT.sub(" ", english.lower()).strip(), (english, french))
    return tuple(pairs.values())
