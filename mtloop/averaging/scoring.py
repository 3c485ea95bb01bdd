"""Several weights of one model, scored on the same test sets beside one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mtloop.evaluation.rows import TestSet, translate
from mtloop.metrics import Scores, score
from mtloop.translate.shell import aligned
from mtloop.translate.translator import Translator


@dataclass(frozen=True, kw_only=True)
class Row:
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
) -> list[Row]:
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
        rows.append(Row(name=name, scores=scores))
    return rows


def table(title: str, rows: list[Row], test_sets: list[TestSet]) -> list[str]:
    """Write the rows as a table: BLEU and chrF on each test set, the best BLEU of each marked, and the signatures."""
    lines = [[title, *(f"{one.name} {metric}" for one in test_sets for metric in ("BLEU", "chrF"))]]
    best = [max(row.scores[column].bleu for row in rows) for column in range(len(test_sets))]
    for row in rows:
        cells = [row.name]
        for scores, highest in zip(row.scores, best, strict=True):
            cells += [f"{'*' if scores.bleu == highest else ''}{scores.bleu:.2f}", f"{scores.chrf:.2f}"]
        lines.append(cells)
    scores = rows[0].scores[0]
    return [
        "",
        *aligned(lines),
        "",
        "* the best BLEU",
        f"BLEU: {scores.bleu_signature}",
        f"chrF: {scores.chrf_signature}",
    ]
