"""The registry of metrics: name, function, direction, and how each is resampled and shown.

To add a metric, register it at the end of this file: flags, tables, metrics.jsonl, the page and the model card read the
registry. Must not know models, files or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sacrebleu.metrics import CHRF, TER

from mtloop.errors import UserError
from mtloop.evaluation.bleu import bleu_for, load_bleu
from mtloop.evaluation.statistics import (
    Statistics,
    Texts,
    check_counts,
    mean_of,
    mean_statistics,
    of_rows,
    sacrebleu_statistics,
)
from mtloop.evaluation.survival import NAMES, SURVIVAL, survival_statistics
from mtloop.placeholders import KINDS

LOSS, BLEU_UNSEEN = "eval_loss", "bleu_unseen"
# Keys of a line of metrics.jsonl: a metric of the same name would replace them.
RESERVED = frozenset(
    ("split", "step", "epoch", "loss", "grad_norm", "learning_rate", "target_tokens", "tokens_per_s", "train_time_s")
    + ("eval_loss", "perplexity", "num_sentences", "eval_time_s", "sentences_per_s", "user_metrics", "num_unseen")
)


# A metric that counts in several ways returns each by its name, without those that have nothing to count.
Count = Callable[[Texts], Statistics | Mapping[str, Statistics]]


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
        part_of: The metric that counts this one too: beside it, this one has no column, unless has_column.
        has_column: See part_of.
    """

    name: str
    title: str
    count: Count | None = None
    compute: Callable[[Texts], float | dict[str, float]] | None = None
    label: str = ""
    greater_is_better: bool = True
    decimals: int = 2
    limits: tuple[float, float] | None = None
    part_of: str = ""
    has_column: bool = False


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
    """Apply metrics to texts; return their scores and statistics by name, of metrics with something to count.

    Raises:
        UserError: A user's function failed.
    """
    found: dict[str, Counted] = {}
    for metric in metrics:
        if metric.count is not None:
            counted = metric.count(texts)
            for name, statistics in (counted if isinstance(counted, Mapping) else {metric.name: counted}).items():
                found[name] = Counted(
                    metric=metric if name == metric.name else METRICS[name],
                    score=float(statistics.score(statistics.rows.sum(axis=0).tolist())),
                    signature=statistics.signature(None),
                    statistics=statistics,
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
    """Return the mean of each metric over the pairs of languages that have it.

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError("no scores. Give at least one.")
    means = {}
    for name in dict.fromkeys(name for of_pair in scores for name in of_pair):
        found = [of_pair[name] for of_pair in scores if name in of_pair]
        signatures = " and ".join(dict.fromkeys(one.signature for one in found))
        means[name] = replace(
            found[0],
            value=sum(one.value for one in found) / len(found),
            signature=f"mean of {len(found)}: {signatures}" if signatures else "",
        )
    return means


def metrics_of(line: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics in a line of metrics.jsonl, in its order; a user's are listed in `user_metrics`."""
    own = line.get("user_metrics") or {}
    return [metric_named(key, own.get(key, True)) for key in line if key in METRICS or key in own]


def with_column(metrics: Iterable[Metric]) -> list[Metric]:
    """Return the metrics without those that another of them counts too."""
    found = {metric.name: metric for metric in metrics}
    return [metric for metric in found.values() if metric.part_of not in found or metric.has_column]


def metric_named(name: str, greater_is_better: bool) -> Metric:
    """Return the registered metric, or a description of a user's."""
    return METRICS.get(name) or Metric(name=name, title=name, greater_is_better=greater_is_better)


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the chrF of each of N hypotheses, 0..100.

    Raises:
        ValueError: Unequal counts, or nothing to score.
    """
    check_counts(hypotheses, references)
    chrf = CHRF()
    return [chrf.sentence_score(one, [other]).score for one, other in zip(hypotheses, references, strict=True)]


def bleu_with(tokenizer: str) -> Metric:
    """Return BLEU with one of sacreBLEU's tokenizers for every language."""
    load = cache(load_bleu)  # at the first use: some load a model
    return replace(METRICS["bleu"], count=_with_unseen(sacrebleu_statistics(lambda _: load(tokenizer))))


# How a metric counts


def _with_unseen(count: Callable[[Texts], Statistics]) -> Count:
    """Count BLEU of all rows, and of those whose source is not in the training rows: the others count as nothing."""

    def count_both(texts: Texts) -> dict[str, Statistics]:
        found = {"bleu": count(texts)}
        if texts.is_unseen is not None and texts.is_unseen.any():
            found[BLEU_UNSEEN] = of_rows(found["bleu"], texts.is_unseen)
        return found

    return count_both


def _survival(name: str) -> Count:
    """Count `survival` and each of its kinds where a program's placeholder is among them, or one kind alone."""

    def count(texts: Texts) -> dict[str, Statistics]:
        found = survival_statistics(texts.sources, texts.hypotheses, texts.references)
        return {
            one: mean_of(rows, f"rows:{int(rows[:, 1].sum())}")
            for one, rows in found.items()
            if one == name or (name == SURVIVAL and SURVIVAL in found)
        }

    return count


def _exact_matches(texts: Texts) -> list[float]:
    pairs = zip(texts.hypotheses, texts.references, strict=True)
    return [100.0 if one.strip() == other.strip() else 0.0 for one, other in pairs]


# The registry

_PERCENT = (0.0, 100.0)
DEFAULT_METRICS = (
    register(
        Metric(
            name="bleu",
            title="BLEU",
            count=_with_unseen(sacrebleu_statistics(lambda texts: bleu_for(texts.target_lang, texts.references))),
            limits=_PERCENT,
        )
    ),
    register(
        Metric(name="chrf", title="chrF", label="chrF2", count=sacrebleu_statistics(lambda _: CHRF()), limits=_PERCENT)
    ),
    register(Metric(name=SURVIVAL, title=SURVIVAL, count=_survival(SURVIVAL), limits=_PERCENT)),
)
register(
    replace(METRICS["bleu"], name=BLEU_UNSEEN, title="unseen", label="BLEU unseen", part_of="bleu", has_column=True)
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
for _name, _kind in NAMES.items():
    register(
        Metric(
            name=_name,
            title=f"{SURVIVAL} {KINDS[_kind].title}",
            count=_survival(_name),
            limits=_PERCENT,
            part_of=SURVIVAL,
        )
    )
