"""Two engines on the same texts: what is identical, how good either is, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from mtloop.evaluation.scores import score
from mtloop.evaluation.verdict import TestSet
from mtloop.translate.scoring import translate
from mtloop.translate.translator import Translator

NUM_WARM_UP = 32
MAX_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Translated:
    """What an engine made of a test set.

    Attributes:
        hypotheses: N translations.
        sentences_per_s: Texts over the seconds spent, encoding and decoding included, the first batches before that
            not.
    """

    hypotheses: list[str]
    sentences_per_s: float


def translate_timed(translator: Translator, test_set: TestSet) -> Translated:
    """Translate a test set, after a few of its texts to warm up. Collective."""
    translate(translator, replace(test_set, sources=test_set.sources[:NUM_WARM_UP]))
    start = time.perf_counter()
    hypotheses = translate(translator, test_set)
    return Translated(hypotheses=hypotheses, sentences_per_s=len(hypotheses) / (time.perf_counter() - start))


def compare(test_set: TestSet, generate: Translated, exported: Translated) -> dict[str, Any]:
    """Return a report of JSON values on the two engines' translations of one test set."""
    ours, theirs = (
        score(translated.hypotheses, test_set.references, test_set.target_lang) for translated in (generate, exported)
    )
    pairs = list(zip(test_set.sources, generate.hypotheses, exported.hypotheses, strict=True))
    differing = [
        {"index": index, "source": source, "generate": one, "ctranslate2": other}
        for index, (source, one, other) in enumerate(pairs)
        if one != other
    ]
    return {
        "test_set": test_set.name,
        "num_sentences": len(pairs),
        "num_identical": len(pairs) - len(differing),
        "share_identical": 1 - len(differing) / len(pairs),
        "generate": {"bleu": ours.bleu, "chrf": ours.chrf, "sentences_per_s": generate.sentences_per_s},
        "ctranslate2": {"bleu": theirs.bleu, "chrf": theirs.chrf, "sentences_per_s": exported.sentences_per_s},
        "factor": exported.sentences_per_s / generate.sentences_per_s,
        "bleu_signature": theirs.bleu_signature,
        "chrf_signature": theirs.chrf_signature,
        "differing": differing[:MAX_SHOWN],
    }
