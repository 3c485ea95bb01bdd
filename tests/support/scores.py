"""Scores of plain lists of texts."""

from __future__ import annotations

from collections.abc import Sequence

from mtloop.evaluation.scores import QUICK_METRICS, Scores, scores_of, tally
from mtloop.evaluation.significance import NUM_RESAMPLES, Interval, resample


def score(hypotheses: Sequence[str], references: Sequence[str], target_lang: str | None = None) -> Scores:
    """Return BLEU and chrF."""
    return scores_of(tally(hypotheses, references, target_lang))


def score_ter(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Return TER and its signature."""
    counted = tally(hypotheses, references, names=("TER",))
    return counted.total("TER").score, counted.signature("TER")


def score_with_intervals(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str | None = None,
    *,
    baseline: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[dict[str, Interval], dict[str, Interval] | None]:
    """Return BLEU, chrF and TER with their intervals, and those of a baseline."""
    names = (*QUICK_METRICS, "TER")
    system = tally(hypotheses, references, target_lang, names=names)
    other = None if baseline is None else tally(baseline, references, target_lang, names=names)
    return resample(system, other, num_resamples=num_resamples)
