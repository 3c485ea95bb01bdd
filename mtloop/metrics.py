"""Strings in, scores out: corpus BLEU, chrF and TER of sacreBLEU, each with its signature.

Must not know a model's tokenizer, ranks or files. Shape letter: N segments. A score is computed once over the whole
corpus, never averaged over batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from mtloop.languages import base_code

NUM_RESAMPLES = 1000
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
    _check_counts(hypotheses, references)
    bleu = _bleu_metric(target_lang)
    chrf = CHRF()
    bleu_score = bleu.corpus_score(list(hypotheses), [list(references)])
    chrf_score = chrf.corpus_score(list(hypotheses), [list(references)])
    return Scores(
        bleu=bleu_score.score,
        bleu_signature=str(bleu.get_signature()),
        chrf=chrf_score.score,
        chrf_signature=str(chrf.get_signature()),
        counts=tuple(bleu_score.counts),
        totals=tuple(bleu_score.totals),
        precisions=tuple(bleu_score.precisions),
        bp=bleu_score.bp,
        sys_len=bleu_score.sys_len,
        ref_len=bleu_score.ref_len,
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
    _check_counts(hypotheses, references)
    metrics = {"BLEU": _bleu_metric(target_lang), "chrF2": CHRF(), "TER": TER()}
    # The baseline comes first. One that is compared with itself gives the intervals alone.
    systems: list[tuple[str, Sequence[str]]] = [
        ("baseline", list(baseline if baseline is not None else hypotheses)),
        ("system", list(hypotheses)),
    ]
    _check_counts(systems[0][1], references)
    test = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=num_resamples)
    signatures, found = test()

    def p_value(name: str, result: Any) -> float | None:
        # sacreBLEU counts resamples that differ by more than was measured: of two equal scores none does, which would
        # make their difference the most certain of all.
        is_equal = found[name][0].score == result.score  # type: ignore[union-attr]
        return None if baseline is None else 1.0 if is_equal and result.p_value is not None else result.p_value

    def intervals(number: int) -> dict[str, Interval]:
        results: dict[str, Any] = {name: of_both[number] for name, of_both in found.items() if name != "System"}
        return {
            name: Interval(
                score=result.score,
                mean=float(result.mean),  # float32 otherwise
                half_width=float(result.ci),
                signature=str(signatures[name]),
                p_value=p_value(name, result),
            )
            for name, result in results.items()
        }

    return intervals(1), (intervals(0) if baseline is not None else None)


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
