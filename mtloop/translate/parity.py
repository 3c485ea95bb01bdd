"""Two engines on the same texts: what is identical, how good either is, and how fast."""

from __future__ import annotations

from typing import Any

from mtloop.evaluation.evaluate import Report
from mtloop.evaluation.test_sets import ScoredModel, TestSet

NUM_WARM_UP = 32
MAX_SHOWN = 10


def evaluate_warm(scored: ScoredModel, test_set: TestSet) -> Report:
    """Evaluate on a test set, after a few of its rows to warm up. Collective."""
    scored.evaluate(test_set, few=NUM_WARM_UP, metrics=())
    return scored.evaluate(test_set)


def compare(test_set: TestSet, generate: Report, exported: Report) -> dict[str, Any]:
    """Return a report of JSON values on the two engines' translations of one test set. Main only."""
    pairs = list(zip(test_set.sources, generate.hypotheses, exported.hypotheses, strict=True))
    differing = [
        {"index": index, "source": source, "generate": one, "ctranslate2": other}
        for index, (source, one, other) in enumerate(pairs)
        if one != other
    ]

    def of_engine(report: Report) -> dict[str, float]:
        scores = {name: score.value for name, score in report.scores.items()}
        return {**scores, "sentences_per_s": report.sentences_per_s}

    return {
        "test_set": test_set.name,
        "num_sentences": len(pairs),
        "num_identical": len(pairs) - len(differing),
        "share_identical": 1 - len(differing) / len(pairs),
        "generate": of_engine(generate),
        "ctranslate2": of_engine(exported),
        "factor": exported.sentences_per_s / generate.sentences_per_s,
        **{f"{name}_signature": score.signature for name, score in exported.scores.items()},
        "differing": differing[:MAX_SHOWN],
    }
