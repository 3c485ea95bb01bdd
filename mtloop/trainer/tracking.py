"""Record a run: metrics.jsonl, trackers, hypotheses.

Writes on the main process only. Must not know models or data.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mtloop.atomic import write_json_lines
from mtloop.errors import unwritable
from mtloop.evaluation.survival import lost_placeholders
from mtloop.metrics_log import VALID
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime


@dataclass
class Stopwatch:
    """Measure seconds of training alone: call skip() after an evaluation or a save."""

    last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Return the seconds since the last lap or skip."""
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        return elapsed

    def skip(self) -> None:
        """Leave out the time since the last lap."""
        self.last = time.perf_counter()


@dataclass(kw_only=True)
class Tracker:
    """Records a run.

    Attributes:
        folder: Where metrics.jsonl and hypotheses/ go.
        runtime: Says which process is main.
        uses_trackers: Whether accelerate's trackers were started.
    """

    folder: RunFolder
    runtime: Runtime
    uses_trackers: bool = False

    def log_update(self, record: dict[str, Any]) -> None:
        """Record one update: step, epoch, loss, grad_norm, learning_rate, target_tokens, tokens_per_s."""
        self._write(record)

    def log_evaluation(self, name: str, record: dict[str, Any]) -> None:
        """Record one evaluation."""
        self._write(record, split=name)

    def _write(self, record: dict[str, Any], *, split: str = VALID) -> None:
        if not self.runtime.is_main:
            return
        record = self.folder.metrics.append(record, split=split)
        if self.uses_trackers:
            # The curves are of the validation rows along the way.
            prefix = f"{record['split']}_" if "split" in record else ""
            numbers = {
                prefix + name: value
                for name, value in record.items()
                if isinstance(value, (int, float)) and name != "step"
            }
            try:
                self.runtime.accelerator.log(numbers, step=record["step"])
            except Exception as error:  # trackers raise anything: train without it
                self.uses_trackers = False
                self.runtime.say(f"tracking failed, training continues: {type(error).__name__}: {error}")

    def write_hypotheses(
        self,
        step: int,
        rows: list[tuple[int, str, str]],
        hypotheses: list[str],
        *,
        name: str = "valid",
        pairs: Sequence[str] = (),
    ) -> None:
        """Write hypotheses/step_N.jsonl: index, source, reference, hypothesis of every row.

        Of several pairs also `pair`, and where placeholders did not survive `lost`.
        """
        if not self.runtime.is_main:
            return
        stem = f"step_{step}" if name == "valid" else name
        path = self.folder.hypotheses_dir / f"{stem}.jsonl"
        records: list[dict[str, Any]] = [
            {"index": index, "source": source, "reference": reference, "hypothesis": hypothesis}
            for (index, source, reference), hypothesis in zip(rows, hypotheses, strict=True)
        ]
        for record, pair in zip(records, pairs, strict=False):
            record["pair"] = pair
        _, sources, references = zip(*rows, strict=True)
        for record, lost in zip(records, lost_placeholders(sources, hypotheses, references), strict=True):
            if lost:
                record["lost"] = [what for of_kind in lost.values() for what in of_kind]
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        write_json_lines(path, records)
