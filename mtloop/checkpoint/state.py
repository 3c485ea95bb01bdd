"""TrainState: everything the loop counts. Plain numbers and strings, so that a checkpoint can hold it as JSON.

Must not know tensors, files or ranks; it is the same on every rank.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(kw_only=True)
class TrainState:
    """Counters of a run.

    Attributes:
        step: Optimizer updates done.
        epoch: Epochs completed; the current one is number epoch + 1 to a reader.
        cursor: Updates of the current epoch that are done.
        target_tokens: Real target tokens trained on, all ranks.
        train_time_s: Seconds spent in updates, evaluation and saving excluded.
        best_score: The best value of the metric so far, None before the first evaluation.
        best_step: The step it was reached at.
        num_evaluations_without_gain: Consecutive evaluations that did not beat best_score.
        num_nonfinite: Updates skipped for a non-finite gradient norm.
        evaluated_step: The last step that was evaluated, -1 before the first evaluation.
    """

    step: int = 0
    epoch: int = 0
    cursor: int = 0
    target_tokens: int = 0
    train_time_s: float = 0.0
    best_score: float | None = None
    best_step: int = -1
    num_evaluations_without_gain: int = 0
    num_nonfinite: int = 0
    evaluated_step: int = -1

    def advance(self, *, target_tokens: int, updates_in_epoch: int, time_s: float) -> None:
        """Count one update; the end of the epoch moves on to the next."""
        self.step += 1
        self.cursor += 1
        self.target_tokens += target_tokens
        self.train_time_s += time_s
        if self.cursor == updates_in_epoch:
            self.epoch += 1
            self.cursor = 0

    @property
    def is_epoch_end(self) -> bool:
        """Whether the last update ended an epoch."""
        return self.step > 0 and self.cursor == 0

    def record_score(self, score: float, *, is_greater_better: bool) -> bool:
        """Note an evaluation's score; return whether it is the best so far. A NaN never is."""
        is_first = self.best_score is None and score == score
        is_best = is_first or (
            self.best_score is not None and (score > self.best_score if is_greater_better else score < self.best_score)
        )
        self.evaluated_step = self.step
        if is_best:
            self.best_score, self.best_step, self.num_evaluations_without_gain = score, self.step, 0
        else:
            self.num_evaluations_without_gain += 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over stored counters.

        Raises:
            ValueError: for a counter that this version does not know.
        """
        known = {field.name for field in fields(self)}
        if unknown := set(state) - known:
            raise ValueError(f"stored training state has unknown entries {sorted(unknown)}: written by a newer mtloop")
        for name, value in state.items():
            setattr(self, name, value)
