"""Count what a score is computed from: statistics of each sentence, whose sums give the score of any selection.

Must not know which metrics there are. N sentences, K statistics of each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Texts:
    """N translations to score.

    Attributes:
        sources: N texts.
        hypotheses: Their translations.
        references: The raw references.
        target_lang: Its script selects BLEU's tokenizer; that of the references if it is None or has no known one.
        is_unseen: bool [N], the rows that are scored apart as well; None for none.
    """

    sources: Sequence[str]
    hypotheses: Sequence[str]
    references: Sequence[str]
    target_lang: str | None = None
    is_unseen: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        check_counts(self.hypotheses, self.references)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of N sentences: their sums give the score of any selection of the sentences.

    Attributes:
        rows: [N, K].
        score: Computes a score from sums [K].
        signature: Describes how the score was computed; takes the number of bootstrap resamples, None for none.
    """

    rows: NDArray[Any]
    score: Callable[[Any], float]
    signature: Callable[[int | None], str]

    def sentence_scores(self) -> list[float]:
        """Return the score of each sentence."""
        return [self.score(row) for row in self.rows.tolist()]


def sacrebleu_statistics(build: Callable[[Texts], Any]) -> Callable[[Texts], Statistics]:
    """Count with a metric of sacreBLEU, which `build` returns.

    Source: sacreBLEU 2.0 to 2.6 computes its scores and tests from these sentence statistics; they have no public name.
    """

    def count(texts: Texts) -> Statistics:
        metric = build(texts)

        def signature(num_resamples: int | None) -> str:
            found = metric.get_signature()
            if num_resamples is not None:
                found.update("bs", num_resamples)
                found.update("seed", seed_text())
            return str(found)

        return Statistics(
            rows=np.array(metric._extract_corpus_statistics(list(texts.hypotheses), [list(texts.references)])),
            score=lambda sums: metric._compute_score_from_stats(sums).score,
            signature=signature,
        )

    return count


def mean_statistics(values: Callable[[Texts], Sequence[float]], *, signature: str) -> Callable[[Texts], Statistics]:
    """Count with a function that returns the value of each sentence; the score is their mean."""

    def count(texts: Texts) -> Statistics:
        column = np.array(values(texts), dtype=np.float64)
        return mean_of(np.stack([column, np.ones_like(column)], axis=1), signature)

    return count


def mean_of(rows: NDArray[np.float64], signature: str) -> Statistics:
    """Return the statistics of a mean of N values, each with how often it counts: [N, 2]; NaN where none counts."""
    return Statistics(
        rows=rows,
        score=lambda sums: sums[0] / sums[1] if sums[1] else math.nan,
        signature=lambda number: signature if number is None else f"{signature}|bs:{number}|seed:{seed_text()}",
    )


def of_rows(statistics: Statistics, is_counted: NDArray[np.bool_]) -> Statistics:
    """Return the statistics of some of N rows, bool [N]; the score is NaN where none of them was drawn."""
    return Statistics(
        rows=statistics.rows * is_counted[:, np.newaxis],
        score=lambda sums: statistics.score(sums) if any(sums) else math.nan,
        signature=lambda number: f"{statistics.signature(number)}|rows:{int(is_counted.sum())}",
    )


def seed_text() -> str:
    """Return sacreBLEU's seed: a number, or "none" for a random one."""
    return os.environ.get("SACREBLEU_SEED", "12345").lower()


def check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses for {len(references)} references. Give one hypothesis for each reference."
        )
    if not hypotheses:
        raise ValueError("no hypotheses to score. Give at least one.")
