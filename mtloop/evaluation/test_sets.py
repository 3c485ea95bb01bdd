"""Score models on test sets outside of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from mtloop.evaluation.evaluate import EvaluationSet, Report, evaluate
from mtloop.evaluation.metrics import DEFAULT_METRICS, Counted, Metric
from mtloop.evaluation.selection import check_survival, measure_references, try_functions
from mtloop.evaluation.significance import Interval, score_text
from mtloop.evaluation.survival import lost_placeholders
from mtloop.generation.engine import Engine
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import encode_rows


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Rows to score on.

    Attributes:
        name: Given by the user, or valid and test of a run.
        rows: Columns index, source, target; N rows.
        target_lang: Selects BLEU's tokenizer.
        source_lang: Set for one of several pairs, whose languages the model is given; else None.
        is_unseen: bool [N], as in EvaluationSet.
    """

    __test__ = False  # not a test, although pytest would collect it

    name: str
    rows: Dataset
    target_lang: str | None = None
    source_lang: str | None = None
    is_unseen: NDArray[np.bool_] | None = None

    @property
    def sources(self) -> list[str]:
        texts: list[str] = self.rows["source"][:]
        return texts

    @property
    def references(self) -> list[str]:
        texts: list[str] = self.rows["target"][:]
        return texts


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """A model to score, with the settings of the run that trained it.

    Attributes:
        engine: The model.
        runtime: The ranks.
        max_tokens: Padded source tokens of a batch, at most.
        max_length_ratio: As in SearchOptions.
    """

    engine: Engine
    runtime: Runtime
    max_tokens: int
    max_length_ratio: float | None = None

    def evaluate(
        self, test_set: TestSet, *, metrics: Sequence[Metric] = DEFAULT_METRICS, few: int | None = None
    ) -> Report:
        """Translate and score a test set, or its first rows, in its own languages. Collective."""
        engine = self.engine
        if test_set.source_lang is not None:
            engine = engine.for_languages(test_set.source_lang, test_set.target_lang)
        data = _encode(test_set, engine, self.runtime)
        return evaluate(
            engine,
            data if few is None else data.first(few),
            self.runtime,
            max_tokens=self.max_tokens,
            target_lang=test_set.target_lang,
            max_length_ratio=self.max_length_ratio,
            metrics=metrics,
        )


def _encode(test_set: TestSet, engine: Engine, runtime: Runtime) -> EvaluationSet:
    """Encode rows for an engine, truncated at its lengths. Collective."""
    encoded = runtime.one_first(
        lambda: encode_rows(
            test_set.rows,
            engine.tokenizer,
            max_source_length=engine.max_source_length,
            max_target_length=engine.max_target_length,
            source_prefix=engine.source_prefix,
            num_workers=None,
        )
    )
    return EvaluationSet(
        name=test_set.name,
        rows=test_set.rows,
        encoded=encoded.rows,
        source_lengths=encoded.source_lengths,
        target_lengths=encoded.target_lengths,
        is_unseen=test_set.is_unseen,
    )


def try_metrics(metrics: Sequence[Metric], test_sets: Sequence[TestSet], runtime: Runtime) -> None:
    """Try the metrics on a few rows before anything is translated, and print warnings. Main only.

    Raises:
        UserError: A user's function failed, or BLEU's tokenizer cannot be loaded.
    """
    try_functions(metrics, test_sets[0].rows)
    sources = [text for one in test_sets for text in one.sources]
    check_survival(metrics, sources, [text for one in test_sets for text in one.references])
    for one in test_sets:
        runtime.say(*measure_references(metrics, one.references, one.target_lang, one.name))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Results of a model, and of a baseline, on one test set.

    Attributes:
        test_set: The rows.
        hypotheses: N translations of the model.
        scores: By the metric's name.
        baseline_hypotheses: N translations of the baseline; None without one.
        baseline_scores: By the metric's name; None without a baseline.
        counted: Statistics of the model's translations, by the metric's name; {} to count them again where needed.
        baseline_counted: Those of the baseline.
    """

    test_set: TestSet
    hypotheses: list[str]
    scores: dict[str, Interval]
    baseline_hypotheses: list[str] | None = None
    baseline_scores: dict[str, Interval] | None = None
    counted: Mapping[str, Counted] = field(default_factory=dict)
    baseline_counted: Mapping[str, Counted] = field(default_factory=dict)

    @property
    def lost(self) -> list[dict[str, list[str]]]:
        """Return what each row of the model lost, by the kind of placeholder."""
        return lost_placeholders(self.test_set.sources, self.hypotheses, self.test_set.references)

    def gain(self, name: str) -> float | None:
        """Return the difference from the baseline in a metric; None without one."""
        return None if self.baseline_scores is None else self.scores[name].score - self.baseline_scores[name].score

    def text(self, name: str) -> str:
        """Format a score, with its difference from the baseline if there is one; "-" for no score."""
        if name not in self.scores:
            return "-"
        found = self.scores[name]
        return score_text(
            found.score,
            found.half_width,
            gain=self.gain(name),
            p_value=found.p_value,
            decimals=found.metric.decimals,
        )
