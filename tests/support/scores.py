"""Scores of plain lists of texts."""

from __future__ import annotations

from collections.abc import Sequence

from mtloop.evaluation.metrics import Counted, Score, Texts, scores_of, tally
from mtloop.evaluation.selection import choose_metrics
from mtloop.evaluation.significance import NUM_RESAMPLES, Interval, resample


def counted(
    hypotheses: Sequence[str], references: Sequence[str], target_lang: str | None = None, *, names: str = "bleu chrf"
) -> dict[str, Counted]:
    """Apply the metrics of these names to hypotheses whose sources do not matter."""
    texts = Texts(sources=references, hypotheses=hypotheses, references=references, target_lang=target_lang)
    return tally(texts, choose_metrics(names.split()))


def score(
    hypotheses: Sequence[str], references: Sequence[str], target_lang: str | None = None, *, names: str = "bleu chrf"
) -> dict[str, Score]:
    """Return the scores by name."""
    return scores_of(counted(hypotheses, references, target_lang, names=names))


def bleu_sums(
    hypotheses: Sequence[str], references: Sequence[str], target_lang: str | None = None
) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of hypotheses and references, and the matching and all n-grams, n = 1..4."""
    statistics = counted(hypotheses, references, target_lang)["bleu"].statistics
    assert statistics is not None
    sys_len, ref_len, *counts = statistics.rows.sum(axis=0).tolist()
    return sys_len, ref_len, tuple(counts[:4]), tuple(counts[4:])


def score_with_intervals(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str | None = None,
    *,
    baseline: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[dict[str, Interval], dict[str, Interval] | None]:
    """Return BLEU, chrF and TER with their intervals, and those of a baseline."""
    system = counted(hypotheses, references, target_lang, names="bleu chrf ter")
    other = None if baseline is None else counted(baseline, references, target_lang, names="bleu chrf ter")
    return resample(system, other, num_resamples=num_resamples)
