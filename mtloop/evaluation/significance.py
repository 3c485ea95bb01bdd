"""Compute confidence intervals and paired tests of scores, by bootstrap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.significance import estimate_ci

from mtloop.evaluation.scores import Tally, seed_text

NUM_RESAMPLES = 1000
# With fewer sentences a p-value says more of the bootstrap than of the systems.
MIN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with what chance makes of it.

    Attributes:
        score: Of the whole corpus.
        mean: Of the bootstrap resamples.
        half_width: Of their 95 % confidence interval, around the mean.
        signature: sacreBLEU's.
        p_value: Against the baseline, two-sided; None without one, and with fewer than MIN_ROWS sentences.
    """

    score: float
    mean: float
    half_width: float
    signature: str
    p_value: float | None = None


def score_text(
    score: float, half_width: float | None = None, *, gain: float | None = None, p_value: float | None = None
) -> str:
    """Write a score as everywhere: `52.90 ± 1.20 (+13.70, p = 0.001)`; what is None is left out.

    Args:
        score: Of the whole corpus.
        half_width: Of its 95 % confidence interval.
        gain: Its difference from a baseline.
        p_value: Of that; None where there are too few rows to tell.
    """
    text = f"{score:.2f}" if half_width is None else f"{score:.2f} ± {half_width:.2f}"
    if gain is None:
        return text
    return f"{text} ({gain:+.2f}, {'too few rows' if p_value is None else f'p = {p_value:.3f}'})"


def recorded_text(line: Mapping[str, Any], key: str) -> str:
    """Write a score of a line of metrics.jsonl, `not finite` for null."""
    if line[key] is None:
        return "not finite"
    return score_text(
        line[key], line.get(f"{key}_ci"), gain=line.get(f"{key}_gain"), p_value=line.get(f"{key}_p_value")
    )


def resample(
    system: Tally, baseline: Tally | None = None, *, num_resamples: int = NUM_RESAMPLES
) -> tuple[dict[str, Interval], dict[str, Interval] | None]:
    """Compute the confidence intervals of a system by bootstrap, and its paired test against a baseline.

    Args:
        system: Counted, as tally does.
        baseline: Of the same sentences, for a paired test; None without.
        num_resamples: Bootstrap resamples.

    The same numbers as sacreBLEU's PairedTest, which holds a copy of the statistics for each resample: with BLEU and
    chrF of 7,000 sentences 500 MiB, and some 15 s where this takes less than one.

    Returns:
        The system's intervals by the metric's name (BLEU, chrF2, TER), and the baseline's; None without one.

    Source: bootstrap resampling and its paired test of Koehn 2004, as sacreBLEU computes them (`--paired-bs`), with its
    seed, 12345 or SACREBLEU_SEED.
    """
    systems = [one for one in (system, baseline) if one is not None]
    found: list[dict[str, Interval]] = [{} for _ in systems]
    resampled = _resampled_scores(systems, num_resamples)
    for name in system.metrics:
        totals = [one.total(name).score for one in systems]
        p_value = None
        if baseline is not None and len(system.statistics[name]) >= MIN_ROWS:
            p_value = _p_value(resampled[0][name] - resampled[1][name], totals[0] - totals[1])
        for number, (one, scores) in enumerate(zip(systems, resampled, strict=True)):
            mean, half_width = estimate_ci(scores[name])
            found[number][name] = Interval(
                score=totals[number],
                mean=float(mean),  # float32 otherwise
                half_width=float(half_width),
                signature=one.signature(name, num_resamples=num_resamples),
                p_value=p_value if number == 0 else None,
            )
    return found[0], found[1] if baseline is not None else None


def _resampled_scores(systems: Sequence[Tally], num_resamples: int) -> list[dict[str, NDArray[Any]]]:
    """Score each resample, the same ones of every system: [num_resamples] by metric."""
    parts = [(number, name) for number, one in enumerate(systems) for name in one.metrics]
    statistics = [systems[number].statistics[name] for number, name in parts]
    # Sums of whole numbers: exact in float64, in whatever order. sacreBLEU computes the scores of them in float32.
    joined = np.concatenate(statistics, axis=1).astype(np.float64)
    sums = np.stack([times @ joined for times in _resamples(len(joined), num_resamples)]).astype(np.float32)
    ends = np.cumsum([one.shape[1] for one in statistics])
    found: list[dict[str, NDArray[Any]]] = [{} for _ in systems]
    for (number, name), rows in zip(parts, np.split(sums, ends[:-1], axis=1), strict=True):
        metric = systems[number].metrics[name]
        found[number][name] = np.array([metric._compute_score_from_stats(row).score for row in rows])
    return found


def _resamples(num_sentences: int, num_resamples: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each sentence is drawn, for each resample: the draws of sacreBLEU, with its seed."""
    seed = seed_text()
    rng = np.random.default_rng(None if seed == "none" else int(seed))
    for _ in range(num_resamples):
        drawn = rng.choice(num_sentences, size=num_sentences, replace=True)
        yield np.bincount(drawn, minlength=num_sentences).astype(np.float64)


def _p_value(differences: NDArray[Any], measured: float) -> float:
    """How often chance alone differs by more than was measured, two-sided; 1 for two equal scores.

    Source: sacrebleu.significance 2.6, which gives two equal scores the smallest value of all: no resample of a system
    against itself differs by more than 0.
    """
    if measured == 0:
        return 1.0
    sizes = np.abs(differences)
    return (int(np.sum(sizes - sizes.mean() > abs(measured))) + 1) / (len(sizes) + 1)
