"""Test sets, and the verdict of an evaluation on one: scores with their intervals, as they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from mtloop.evaluation.significance import Interval, score_text


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Rows to score on.

    Attributes:
        name: As the user calls it, or valid and test of a run.
        sources: N texts.
        references: N texts.
        target_lang: Chooses BLEU's tokenizer.
        source_lang: Where the set is one of several pairs: what the model is to be asked for; else None.
    """

    __test__ = False  # no test of pytest's

    name: str
    sources: list[str]
    references: list[str]
    target_lang: str | None = None
    source_lang: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an evaluation of one test set found.

    Attributes:
        test_set: The rows.
        hypotheses: N translations of the model.
        scores: By metric: BLEU, chrF2, TER.
        baseline_hypotheses: Likewise of the baseline; None without one.
        baseline_scores: Likewise.
    """

    test_set: TestSet
    hypotheses: list[str]
    scores: dict[str, Interval]
    baseline_hypotheses: list[str] | None = None
    baseline_scores: dict[str, Interval] | None = None

    def text(self, metric: str) -> str:
        """Write a score, with its difference from the baseline if there is one."""
        found, others = self.scores[metric], self.baseline_scores
        gain = None if others is None else found.score - others[metric].score
        return score_text(found.score, found.half_width, gain=gain, p_value=found.p_value)
