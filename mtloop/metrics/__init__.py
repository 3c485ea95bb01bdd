"""Strings in, scores out: corpus BLEU, chrF and TER of sacreBLEU, each with its signature.

Must not know a model's tokenizer, ranks or files. Shape letter: N segments. A score is computed once over the whole
corpus, never averaged over batches.
"""

from mtloop.metrics.chance import NUM_RESAMPLES, Interval, resample, score_with_intervals
from mtloop.metrics.scores import (
    QUICK_METRICS,
    Scores,
    Tally,
    mean_scores,
    score,
    score_ter,
    scores_of,
    sentence_chrf,
    tally,
)

__all__ = [
    "NUM_RESAMPLES",
    "QUICK_METRICS",
    "Interval",
    "Scores",
    "Tally",
    "mean_scores",
    "resample",
    "score",
    "score_ter",
    "score_with_intervals",
    "scores_of",
    "sentence_chrf",
    "tally",
]
