"""Compute confidence intervals and paired tests of scores, by bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.significance import estimate_ci

from mtloop.evaluation.metrics import Counted, Metric
from mtloop.evaluation.statistics import seed_text

NUM_RESAMPLES = 1000
# With fewer sentences a p-value depends more on the bootstrap than on the systems.
MIN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its confidence interval, if the metric can be resampled.

    Attributes:
        metric: Of the score.
        score: Of the whole corpus.
        mean: Of the bootstrap resamples.
        half_width: Of their 95 % confidence interval, around the mean.
        signature: Describes how the score was computed; "" for a user's function.
        p_value: Against the baseline, two-sided; None without one, and with fewer than MIN_ROWS sentences.
    """

    metric: Metric
    score: float
    mean: float | None = None
    half_width: float | None = None
    signature: str = ""
    p_value: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the entries of report.json."""
        record = {name: getattr(self, name) for name in ("score", "mean", "half_width", "signature", "p_value")}
        return record if math.isfinite(self.score) else {**record, "score": None}


def score_text(
    score: float,
    half_width: float | None = None,
    *,
    gain: float | None = None,
    p_value: float | None = None,
    decimals: int = 2,
) -> str:
    """Format a score as `52.90 ± 1.20 (+13.70, p = 0.001)`; what is None is left out.

    Args:
        score: Of the whole corpus.
        half_width: Of its 95 % confidence interval; None if the metric cannot be resampled.
        gain: Its difference from a baseline.
        p_value: Of the gain; None if there are too few rows.
        decimals: Digits after the point.
    """
    if not math.isfinite(score):
        return "not finite"
    text = f"{score:.{decimals}f}" if half_width is None else f"{score:.{decimals}f} ± {half_width:.{decimals}f}"
    if gain is None:
        return text
    return f"{text} ({', '.join([f'{gain:+.{decimals}f}', *p_value_texts(half_width, p_value, label='p = ')])})"


def p_value_texts(half_width: float | None, p_value: float | None, *, label: str = "") -> list[str]:
    """Format a p-value; [] if the metric cannot be resampled."""
    if half_width is None:
        return []
    return ["too few rows" if p_value is None else f"{label}{p_value:.3f}"]


def recorded_text(line: Mapping[str, Any], metric: Metric, *, pair: str = "", is_short: bool = False) -> str:
    """Format a score of a line of metrics.jsonl: `not finite` for null, "-" if it has none.

    Args:
        line: Holds the score.
        metric: Of the score.
        pair: The pair of languages; "" for all rows.
        is_short: Leave out the interval and the gain.
    """
    key = f"{metric.name}_{pair}" if pair else metric.name
    if key not in line:
        return "-"
    if line[key] is None:
        return "not finite"
    if is_short:
        return score_text(line[key], decimals=metric.decimals)
    return score_text(
        line[key],
        line.get(f"{key}_ci"),
        gain=line.get(f"{key}_gain"),
        p_value=line.get(f"{key}_p_value"),
        decimals=metric.decimals,
    )


def resample(
    system: Mapping[str, Counted],
    baseline: Mapping[str, Counted] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[dict[str, Interval], dict[str, Interval] | None]:
    """Compute the confidence intervals of a system by bootstrap, and its paired test against a baseline.

    The same numbers as sacreBLEU's PairedTest, which holds a copy of the statistics for each resample: with BLEU and
    chrF of 7,000 sentences 500 MiB, and about 15 s where this takes less than one.

    Args:
        system: Counted by `tally`.
        baseline: The same metrics on the same sentences, for a paired test; None without.
        num_resamples: Bootstrap resamples.

    Returns:
        The system's intervals by the metric's name, and the baseline's; None without one.

    Source: bootstrap resampling and its paired test of Koehn 2004, as sacreBLEU computes them (`--paired-bs`), with its
    seed, 12345 or SACREBLEU_SEED.
    """
    systems = [one for one in (system, baseline) if one is not None]
    resampled = _resampled_scores(systems, num_resamples)
    found: list[dict[str, Interval]] = [{} for _ in systems]
    for number, one in enumerate(systems):
        for name, counted in one.items():
            interval = Interval(metric=counted.metric, score=counted.score)
            if counted.statistics is not None:
                interval = replace(interval, signature=counted.statistics.signature(num_resamples))
                if len(scores := _drawn(resampled[number][name])):
                    mean, half_width = estimate_ci(scores)
                    interval = replace(interval, mean=float(mean), half_width=float(half_width))  # float32 otherwise
                num_counting = np.count_nonzero(counted.statistics.rows.any(axis=1))
                if number == 0 and baseline is not None and num_counting >= MIN_ROWS:
                    differences = _drawn(resampled[0][name] - resampled[1][name])
                    interval = replace(interval, p_value=_p_value(differences, counted.score - baseline[name].score))
            found[number][name] = interval
    return found[0], found[1] if baseline is not None else None


def _drawn(scores: NDArray[Any]) -> NDArray[Any]:
    """Return the scores of the resamples in which a row that counts was drawn."""
    return scores[~np.isnan(scores)]


def _resampled_scores(systems: Sequence[Mapping[str, Counted]], num_resamples: int) -> list[dict[str, NDArray[Any]]]:
    """Score each resample, the same ones for every system: [num_resamples] by metric."""
    found: list[dict[str, NDArray[Any]]] = [{} for _ in systems]
    parts = [
        (number, name, counted.statistics)
        for number, one in enumerate(systems)
        for name, counted in one.items()
        if counted.statistics is not None
    ]
    if not parts:
        return found
    # Sums of whole numbers: exact in float64, in whatever order. sacreBLEU computes the scores of them in float32.
    joined = np.concatenate([statistics.rows for _, _, statistics in parts], axis=1).astype(np.float64)
    sums = np.stack([times @ joined for times in _resamples(len(joined), num_resamples)]).astype(np.float32)
    ends = np.cumsum([statistics.rows.shape[1] for _, _, statistics in parts])
    for (number, name, statistics), rows in zip(parts, np.split(sums, ends[:-1], axis=1), strict=True):
        found[number][name] = np.array([statistics.score(row) for row in rows])
    return found


def _resamples(num_sentences: int, num_resamples: int) -> Iterator[NDArray[np.float64]]:
    """Yield the number of draws of each sentence, for each resample: those of sacreBLEU, with its seed."""
    seed = seed_text()
    rng = np.random.default_rng(None if seed == "none" else int(seed))
    for _ in range(num_resamples):
        drawn = rng.choice(num_sentences, size=num_sentences, replace=True)
        yield np.bincount(drawn, minlength=num_sentences).astype(np.float64)


def _p_value(differences: NDArray[Any], measured: float) -> float:
    """Return the share of resamples that differ by more than the measured difference, two-sided; 1 for equal scores.

    Source: sacrebleu.significance 2.6, which gives two equal scores the smallest value of all: no resample of a system
    against itself differs by more than 0.
    """
    if measured == 0:
        return 1.0
    sizes = np.abs(differences)
    return (int(np.sum(sizes - sizes.mean() > abs(measured))) + 1) / (len(sizes) + 1)
