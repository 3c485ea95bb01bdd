"""Strings in, scores out: corpus BLEU, chrF and TER of sacreBLEU, each with its signature.

Must not know a model's tokenizer, ranks or files. Shape letter: N segments. A score is computed once over the whole
corpus, never averaged over batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import estimate_ci

from mtloop.languages import base_code

NUM_RESAMPLES = 1000
QUICK_METRICS = ("BLEU", "chrF2")  # TER's search for shifts is by far slower: it is left to who asks for it
_DEFAULT_TOKENIZER = "13a"

# sacreBLEU's own choice for languages written without spaces, best first; "char" is its stand-in that needs no package.
_TOKENIZERS_BY_LANGUAGE = {
    "zh": ("zh",),
    "ja": ("ja-mecab", "char"),
    "ko": ("ko-mecab", "char"),
}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one set of hypotheses against one set of references.

    Attributes:
        bleu: Corpus BLEU, 0..100 as sacreBLEU prints it.
        bleu_signature: sacreBLEU's signature: tokenizer, smoothing, version.
        chrf: Corpus chrF (character order 6, no words), 0..100.
        chrf_signature: sacreBLEU's signature.
        counts: Matching n-grams, n = 1..4.
        totals: n-grams in the hypotheses, n = 1..4.
        precisions: Smoothed n-gram precisions in percent, n = 1..4.
        bp: Brevity penalty, 0..1.
        sys_len: Tokens in the hypotheses, as BLEU's tokenizer counts them.
        ref_len: Tokens in the references.
    """

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    counts: tuple[int, ...]
    totals: tuple[int, ...]
    precisions: tuple[float, ...]
    bp: float
    sys_len: int
    ref_len: int


def score(hypotheses: Sequence[str], references: Sequence[str], target_lang: str | None = None) -> Scores:
    """Score N hypotheses against their references with BLEU and chrF.

    Args:
        hypotheses: N detokenized translations.
        references: N raw reference texts, in the same order.
        target_lang: Language code of both; chooses BLEU's tokenizer for Chinese, Japanese and Korean.

    Raises:
        ValueError: Unequal counts, or nothing to score.

    Source: sacreBLEU (Post 2018, "A Call for Clarity in Reporting BLEU Scores"); chrF: Popovic 2015, equation 1.
    """
    return scores_of(tally(hypotheses, references, target_lang))


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the score of any selection of sentences is computed from: counted once, resampled at will.

    Attributes:
        metrics: sacreBLEU's, by name: BLEU, chrF2, TER.
        statistics: By name, [N, K]: the K matches and lengths of each sentence.
    """

    metrics: dict[str, Any]
    statistics: dict[str, NDArray[Any]]

    def total(self, name: str) -> Any:
        """sacreBLEU's score object of the whole corpus."""
        return self.metrics[name]._compute_score_from_stats(self.statistics[name].sum(axis=0).tolist())

    def signature(self, name: str, *, num_resamples: int | None = None) -> str:
        """sacreBLEU's signature; with `num_resamples`, that of an interval."""
        signature = self.metrics[name].get_signature()
        if num_resamples is not None:
            signature.update("bs", num_resamples)
            signature.update("seed", _seed_text())
        return str(signature)


def tally(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str | None = None,
    *,
    names: Sequence[str] = QUICK_METRICS,
) -> Tally:
    """Count the matches of each of N hypotheses with its reference, for the metrics of these names.

    Raises:
        ValueError: Unequal counts, or nothing to score.
    """
    _check_counts(hypotheses, references)
    made: dict[str, Callable[[], Any]] = {"BLEU": lambda: _bleu_metric(target_lang), "chrF2": CHRF, "TER": TER}
    metrics = {name: made[name]() for name in names}
    # sacreBLEU's own sentence statistics have no public name; its scores and tests are made of them in 2.0 to 2.6.
    return Tally(
        metrics=metrics,
        statistics={
            name: np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]))
            for name, metric in metrics.items()
        },
    )


def scores_of(counted: Tally) -> Scores:
    """Compute BLEU and chrF of a corpus whose sentences were counted."""
    bleu_score, chrf_score = counted.total("BLEU"), counted.total("chrF2")
    return Scores(
        bleu=bleu_score.score,
        bleu_signature=counted.signature("BLEU"),
        chrf=chrf_score.score,
        chrf_signature=counted.signature("chrF2"),
        counts=tuple(bleu_score.counts),
        totals=tuple(bleu_score.totals),
        precisions=tuple(bleu_score.precisions),
        bp=bleu_score.bp,
        sys_len=bleu_score.sys_len,
        ref_len=bleu_score.ref_len,
    )


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Return the mean of the scores of several pairs of languages; counts and lengths are added up.

    Raises:
        ValueError: nothing to take the mean of.
    """
    if not scores:
        raise ValueError("no scores: give at least one")
    number = len(scores)

    def signature(name: str) -> str:
        different = list(dict.fromkeys(getattr(one, name) for one in scores))
        return f"mean of {number}: {' and '.join(different)}"

    def columns(name: str) -> list[tuple[Any, ...]]:
        return list(zip(*(getattr(one, name) for one in scores), strict=True))

    return Scores(
        bleu=sum(one.bleu for one in scores) / number,
        bleu_signature=signature("bleu_signature"),
        chrf=sum(one.chrf for one in scores) / number,
        chrf_signature=signature("chrf_signature"),
        counts=tuple(map(sum, columns("counts"))),
        totals=tuple(map(sum, columns("totals"))),
        precisions=tuple(sum(column) / number for column in columns("precisions")),
        bp=sum(one.bp for one in scores) / number,
        sys_len=sum(one.sys_len for one in scores),
        ref_len=sum(one.ref_len for one in scores),
    )


def score_ter(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Return (TER, signature): edits per reference token in percent, lower is better, may exceed 100.

    Apart from `score` because its search for shifts is by far the slowest of the three metrics.

    Raises:
        ValueError: Unequal counts, or nothing to score.

    Source: Snover et al. 2006, as computed by sacreBLEU.
    """
    _check_counts(hypotheses, references)
    ter = TER()
    result = ter.corpus_score(list(hypotheses), [list(references)])
    return result.score, str(ter.get_signature())


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with what chance makes of it.

    Attributes:
        score: Of the whole corpus.
        mean: Of the bootstrap resamples.
        half_width: Of their 95 % confidence interval, around the mean.
        signature: sacreBLEU's.
        p_value: Against the baseline, two-sided; None without one.
    """

    score: float
    mean: float
    half_width: float
    signature: str
    p_value: float | None = None


def score_with_intervals(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str | None = None,
    *,
    baseline: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[dict[str, Interval], dict[str, Interval] | None]:
    """Score N hypotheses with BLEU, chrF and TER, their confidence intervals, and their difference from a baseline.

    Args:
        hypotheses: N detokenized translations.
        references: N raw reference texts, in the same order.
        target_lang: Language code of both; chooses BLEU's tokenizer for Chinese, Japanese and Korean.
        baseline: N translations of another system, for a paired test.
        num_resamples: Bootstrap resamples.

    Returns:
        The system's intervals by name (BLEU, chrF2, TER), and the baseline's; None without one.

    Raises:
        ValueError: Unequal counts, or nothing to score.

    Source: bootstrap resampling and its paired test of Koehn 2004, as sacreBLEU computes them (`--paired-bs`), with its
    seed, 12345 or SACREBLEU_SEED.
    """
    names = (*QUICK_METRICS, "TER")
    system = tally(hypotheses, references, target_lang, names=names)
    other = None if baseline is None else tally(baseline, references, target_lang, names=names)
    return resample(system, other, num_resamples=num_resamples)


def resample(
    system: Tally, baseline: Tally | None = None, *, num_resamples: int = NUM_RESAMPLES
) -> tuple[dict[str, Interval], dict[str, Interval] | None]:
    """Compute the confidence intervals of a system by bootstrap, and its paired test against a baseline.

    The same numbers as sacreBLEU's PairedTest, which holds a copy of the statistics for each resample: with BLEU and
    chrF of 7,000 sentences 500 MiB, and some 15 s where this takes less than one.

    Returns:
        As score_with_intervals.
    """
    systems = [one for one in (system, baseline) if one is not None]
    found: list[dict[str, Interval]] = [{} for _ in systems]
    resampled = _resampled_scores(systems, num_resamples)
    for name in system.metrics:
        totals = [one.total(name).score for one in systems]
        p_value = None
        if baseline is not None:
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
    seed = _seed_text()
    rng = np.random.default_rng(None if seed == "none" else int(seed))
    for _ in range(num_resamples):
        drawn = rng.choice(num_sentences, size=num_sentences, replace=True)
        yield np.bincount(drawn, minlength=num_sentences).astype(np.float64)


def _seed_text() -> str:
    """sacreBLEU's seed: a number, or none for another one each time."""
    return os.environ.get("SACREBLEU_SEED", "12345").lower()


def _p_value(differences: NDArray[Any], measured: float) -> float:
    """How often chance alone differs by more than was measured, two-sided; 1 for two equal scores.

    Source: sacrebleu.significance 2.6, which gives two equal scores the smallest value of all: no resample of a system
    against itself differs by more than 0.
    """
    if measured == 0:
        return 1.0
    sizes = np.abs(differences)
    return (int(np.sum(sizes - sizes.mean() > abs(measured))) + 1) / (len(sizes) + 1)


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the chrF of each of N hypotheses, 0..100.

    Raises:
        ValueError: Unequal counts, or nothing to score.
    """
    _check_counts(hypotheses, references)
    chrf = CHRF()
    return [chrf.sentence_score(one, [other]).score for one, other in zip(hypotheses, references, strict=True)]


def _check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses for {len(references)} references: give one hypothesis for each reference"
        )
    if not hypotheses:
        raise ValueError("no hypotheses to score: give at least one")


def _bleu_metric(target_lang: str | None) -> BLEU:
    language = base_code(target_lang) if target_lang else ""
    *preferred, last = _TOKENIZERS_BY_LANGUAGE.get(language, (_DEFAULT_TOKENIZER,))
    for name in preferred:
        try:
            return BLEU(tokenize=name)
        except RuntimeError:  # how sacreBLEU says that the tokenizer's optional package is not installed
            continue
    return BLEU(tokenize=last)
