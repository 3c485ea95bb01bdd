"""Scores of one set of hypotheses, and what they are made of: counted once, to be resampled at will."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF, TER

from mtloop.languages import base_code

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
            signature.update("seed", seed_text())
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


def seed_text() -> str:
    """sacreBLEU's seed: a number, or none for another one each time."""
    return os.environ.get("SACREBLEU_SEED", "12345").lower()


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
