"""The registry of metrics: name, function, direction, and how each is resampled and shown.

To add a metric, register it at the end of this file: flags, tables, metrics.jsonl, the page and the model card read the
registry. Must not know models, files or ranks. N sentences, K statistics of each.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF, TER

from mtloop.errors import UserError, first_line
from mtloop.languages import UNSPACED_SCRIPTS, script_of, script_of_text

LOSS = "eval_loss"
# Keys of a line of metrics.jsonl: a metric of the same name would replace them.
RESERVED = frozenset(
    ("split", "step", "epoch", "loss", "grad_norm", "learning_rate", "target_tokens", "tokens_per_s", "train_time_s")
    + ("eval_loss", "perplexity", "num_sentences", "eval_time_s", "sentences_per_s", "user_metrics")
)
_DEFAULT_TOKENIZER = "13a"
# sacreBLEU's own choices, best first; "char" needs no package, and suits every script without spaces.
_TOKENIZERS_BY_SCRIPT = {
    **dict.fromkeys(UNSPACED_SCRIPTS, ("char",)),
    **dict.fromkeys(("Hani", "Hans", "Hant", "Hanb", "Bopo"), ("zh",)),
    **dict.fromkeys(("Jpan", "Hrkt", "Hira", "Kana"), ("ja-mecab", "char")),
    **dict.fromkeys(("Kore", "Hang"), ("ko-mecab", "char")),
}
_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
_DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Texts:
    """N translations to score.

    Attributes:
        sources: N texts.
        hypotheses: Their translations.
        references: The raw references.
        target_lang: Its script selects BLEU's tokenizer; that of the references if it is None or has no known one.
    """

    sources: Sequence[str]
    hypotheses: Sequence[str]
    references: Sequence[str]
    target_lang: str | None = None

    def __post_init__(self) -> None:
        _check_counts(self.hypotheses, self.references)


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


Count = Callable[[Texts], Statistics]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric. Give either `count`, for one that can be resampled, or `compute`.

    Attributes:
        name: The value of the flags, and the key in metrics.jsonl.
        title: Heads its column.
        count: Returns the statistics of each sentence.
        compute: Returns the score of all sentences, or several scores by name.
        label: Precedes its signature, and is the key in report.json; "" for the title.
        greater_is_better: The direction.
        decimals: Digits shown after the point.
        limits: The least and the greatest value; None where there are none.
    """

    name: str
    title: str
    count: Count | None = None
    compute: Callable[[Texts], float | dict[str, float]] | None = None
    label: str = ""
    greater_is_better: bool = True
    decimals: int = 2
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A metric applied to texts; `statistics` is None if the score cannot be resampled."""

    metric: Metric
    score: float
    signature: str = ""
    statistics: Statistics | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score as plain data, which ranks exchange: metrics hold closures, which cannot be pickled."""

    value: float
    signature: str
    greater_is_better: bool


METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Add a metric to the registry."""
    assert metric.name not in METRICS and metric.name not in RESERVED, metric.name
    assert (metric.count is None) != (metric.compute is None), metric.name
    METRICS[metric.name] = metric
    return metric


def tally(texts: Texts, metrics: Sequence[Metric]) -> dict[str, Counted]:
    """Apply metrics to texts; return their scores and statistics by name.

    Raises:
        UserError: A user's function failed.
    """
    found: dict[str, Counted] = {}
    for metric in metrics:
        if metric.count is not None:
            statistics = metric.count(texts)
            score = float(statistics.score(statistics.rows.sum(axis=0).tolist()))
            found[metric.name] = Counted(
                metric=metric, score=score, signature=statistics.signature(None), statistics=statistics
            )
            continue
        assert metric.compute is not None
        values = metric.compute(texts)
        for name, value in values.items() if isinstance(values, dict) else [(metric.name, values)]:
            if name in found or (name != metric.name and any(one.name == name for one in metrics)):
                raise UserError(f"metrics: two metrics have one name (got {name!r}). Rename one of them.")
            title = metric.title if name == metric.name else name
            found[name] = Counted(metric=replace(metric, name=name, title=title), score=value)
    return found


def scores_of(counted: Mapping[str, Counted]) -> dict[str, Score]:
    """Return the scores without the statistics."""
    return {
        name: Score(value=one.score, signature=one.signature, greater_is_better=one.metric.greater_is_better)
        for name, one in counted.items()
    }


def mean_scores(scores: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Return the mean over several pairs of languages of each metric that all of them have.

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError("no scores. Give at least one.")
    number = len(scores)
    means = {}
    for name, first in scores[0].items():
        if any(name not in one for one in scores):
            continue
        signatures = " and ".join(dict.fromkeys(one[name].signature for one in scores))
        means[name] = replace(
            first,
            value=sum(one[name].value for one in scores) / number,
            signature=f"mean of {number}: {signatures}" if signatures else "",
        )
    return means


def metrics_of(line: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics in a line of metrics.jsonl, in its order; a user's are listed in `user_metrics`."""
    own = line.get("user_metrics") or {}
    return [metric_named(key, own.get(key, True)) for key in line if key in METRICS or key in own]


def metric_named(name: str, greater_is_better: bool) -> Metric:
    """Return the registered metric, or a description of a user's."""
    return METRICS.get(name) or Metric(name=name, title=name, greater_is_better=greater_is_better)


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the chrF of each of N hypotheses, 0..100.

    Raises:
        ValueError: Unequal counts, or nothing to score.
    """
    _check_counts(hypotheses, references)
    chrf = CHRF()
    return [chrf.sentence_score(one, [other]).score for one, other in zip(hypotheses, references, strict=True)]


def load_bleu(tokenizer: str) -> BLEU:
    """Return BLEU with one of sacreBLEU's tokenizers; some are downloaded at their first use.

    Raises:
        UserError: The tokenizer needs a package, or a download that failed.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)  # sacreBLEU sets none
    try:
        return BLEU(tokenize=tokenizer)
    except (Exception, SystemExit) as error:  # RuntimeError, ImportError, OSError, KeyError of an older version
        remedy = "It is downloaded at its first use: run this with network access, or copy ~/.sacrebleu/models"
        if tokenizer in _PACKAGES:
            remedy = f"Run pip install '{_PACKAGES[tokenizer]}'"
        problem = first_line(error).rstrip(".")
        raise UserError(
            f"--bleu_tokenizer: cannot be loaded: {problem} (got {tokenizer!r}). {remedy}, or give char."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def bleu_with(tokenizer: str) -> Metric:
    """Return BLEU with one of sacreBLEU's tokenizers for every language."""
    load = cache(load_bleu)  # at the first use: some load a model
    return replace(METRICS["bleu"], count=sacrebleu_statistics(lambda _: load(tokenizer)))


def seed_text() -> str:
    """Return sacreBLEU's seed: a number, or "none" for a random one."""
    return os.environ.get("SACREBLEU_SEED", "12345").lower()


# How a metric counts


def sacrebleu_statistics(build: Callable[[Texts], Any]) -> Count:
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


def mean_statistics(values: Callable[[Texts], Sequence[float]], *, signature: str) -> Count:
    """Count with a function that returns the value of each sentence; the score is their mean."""

    def sign(num_resamples: int | None) -> str:
        return signature if num_resamples is None else f"{signature}|bs:{num_resamples}|seed:{seed_text()}"

    def count(texts: Texts) -> Statistics:
        column = np.array(values(texts), dtype=np.float64)
        rows = np.stack([column, np.ones_like(column)], axis=1)
        return Statistics(rows=rows, score=lambda sums: sums[0] / sums[1], signature=sign)

    return count


def _check_counts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses for {len(references)} references. Give one hypothesis for each reference."
        )
    if not hypotheses:
        raise ValueError("no hypotheses to score. Give at least one.")


def _bleu(texts: Texts) -> BLEU:
    script = (script_of(texts.target_lang) if texts.target_lang else None) or script_of_text(texts.references)
    *preferred, last = _TOKENIZERS_BY_SCRIPT.get(script or "", (_DEFAULT_TOKENIZER,))
    for name in preferred:
        try:
            return BLEU(tokenize=name)
        except RuntimeError:  # sacreBLEU's error if the tokenizer's optional package is not installed
            continue
    return BLEU(tokenize=last)


def _exact_matches(texts: Texts) -> list[float]:
    pairs = zip(texts.hypotheses, texts.references, strict=True)
    return [100.0 if one.strip() == other.strip() else 0.0 for one, other in pairs]


# The registry

_PERCENT = (0.0, 100.0)
DEFAULT_METRICS = (
    register(Metric(name="bleu", title="BLEU", count=sacrebleu_statistics(_bleu), limits=_PERCENT)),
    register(
        Metric(name="chrf", title="chrF", label="chrF2", count=sacrebleu_statistics(lambda _: CHRF()), limits=_PERCENT)
    ),
)
# Its search for shifts is slow: not among the default metrics of training.
register(Metric(name="ter", title="TER", greater_is_better=False, count=sacrebleu_statistics(lambda _: TER())))
register(
    Metric(
        name="exact_match",
        title="exact match",
        count=mean_statistics(_exact_matches, signature="nrefs:1|case:mixed|strip:yes"),
        limits=_PERCENT,
    )
)
register(
    Metric(
        name="chrf_pp",
        title="chrF++",
        label="chrF2++",
        count=sacrebleu_statistics(lambda _: CHRF(word_order=2)),
        limits=_PERCENT,
    )
)
