"""Several weights of one model, scored on the same test sets beside one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mtloop.evaluation.scores import Scores, score
from mtloop.evaluation.verdict import TestSet
from mtloop.translate.translator import Translator


@dataclass(frozen=True, kw_only=True)
class WeightScores:
    """A line of the table.

    Attributes:
        name: Of the weights.
        scores: On each test set.
    """

    name: str
    scores: list[Scores]


def score_each(
    translator: Translator,
    weights: Sequence[tuple[str, Callable[[], None]]],
    test_sets: list[TestSet],
) -> list[WeightScores]:
    """Give the translator one set of weights after another, translate and score.

    Collective.

    Args:
        translator: Its network changes.
        weights: Name, and what puts the weights into the network.
        test_sets: To translate.
    """
    runtime = translator.runtime
    assert runtime is not None
    rows = []
    for name, put in weights:
        put()
        scores = []
        for test_set in test_sets:
            runtime.say(f"{name}: translating {len(test_set.sources):,} rows of {test_set.name} ...")
            hypotheses = translate(translator, test_set)
            scores.append(runtime.on_main(partial(score, hypotheses, test_set.references, test_set.target_lang)))
        rows.append(WeightScores(name=name, scores=scores))
    return rows


def translate(translator: Translator, test_set: TestSet) -> list[str]:
    """Translate the rows of a test set, into its own language. Collective."""
    if test_set.source_lang is not None:
        translator.set_languages(test_set.source_lang, test_set.target_lang)
    return translator(test_set.sources)
