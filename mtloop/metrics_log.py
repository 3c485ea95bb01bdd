"""Read and write metrics.jsonl: no other module does.

A line is a logged update (step, epoch, loss, grad_norm, learning_rate, target_tokens, tokens_per_s) or an
evaluation (step, epoch, train_time_s, eval_loss, perplexity, bleu, chrf, their signatures and intervals,
num_sentences, eval_time_s, sentences_per_s). An evaluation other than that of the validation rows during training has
`split`: "test", or "average" for the validation rows and an averaged model. A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtloop.atomic import Shape, json_line, problem_of, read_json_lines, write_text
from mtloop.errors import unwritable

Line = dict[str, Any]
VALID = "valid"
_NUMBER = (float, None)
_UPDATE: Shape = {"step": int, "epoch": float, "loss": _NUMBER, "target_tokens": int}
_EVALUATION: Shape = {
    "step": int, "epoch": float, "eval_loss": _NUMBER, "perplexity?": _NUMBER, "num_sentences": int, "split?": str,
    "num_unseen?": int, "user_metrics?": {str: bool},
}  # fmt: skip
# Of any other name: a score, its interval or its signature.
_OTHER: Shape = {str: (float, None, str, {str: bool})}


@dataclass(frozen=True)
class MetricsLog:
    """The file of a run; it need not exist."""

    path: Path

    def append(self, record: Line, *, split: str = VALID) -> Line:
        """Write a line, and return it.

        Raises:
            RunFailed: naming the file and the reason.
        """
        line = {"split": split, **record} if split != VALID else record
        # NaN and Infinity are not JSON: other programs could not read the file.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json_line(clean))
        except OSError as error:
            raise unwritable(self.path, error) from error
        return line

    def lines(self, *, until: int | None = None) -> list[Line]:
        """Read all lines; with `until`, those along the way up to this step. Invalid ones are left out and said."""
        lines = read_json_lines(self.path, _problem_of)
        return lines if until is None else [line for line in lines if _step_of(line) <= until]

    def scores(self, metric: str) -> dict[int, float]:
        """Return the finite scores on the validation rows by step; the last where a step has several."""
        scores = {line["step"]: line.get(metric) for line in evaluations_of(self.lines())}
        return {step: one for step, one in scores.items() if isinstance(one, (int, float)) and math.isfinite(one)}

    def drop_after(self, step: int) -> None:
        """Drop the lines after `step`, those of evaluations after the last checkpoint, and a truncated last line."""
        if self.path.exists():
            # A kill may cut a line within a character; splitlines would also cut at what JSON leaves as it is (U+2028).
            texts = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
            write_text(self.path, "".join(f"{text}\n" for text in texts if _step_of(_parsed(text)) <= step))


def _problem_of(line: Any) -> str:
    """Return how a line differs from what append() wrote, "" if it does not."""
    shape = _EVALUATION if isinstance(line, dict) and "eval_loss" in line else _UPDATE
    if problem := problem_of(line, shape) or problem_of(line, _OTHER):
        return problem
    for name, value in line.items():
        is_text = name == "split" or name.endswith("_signature")
        if name != "user_metrics" and isinstance(value, str) != is_text:
            return f"{name}: expected {'text' if is_text else 'a number'} (got {json.dumps(value)[:40]})"
    return ""


def updates_of(lines: Iterable[Line]) -> list[Line]:
    """Return the lines of updates whose loss was finite."""
    return [line for line in lines if line.get("loss") is not None]


def evaluations_of(lines: Iterable[Line], split: str = VALID) -> list[Line]:
    """Return the lines of evaluations on the rows of a split."""
    return [line for line in lines if "eval_loss" in line and line.get("split", VALID) == split]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _step_of(line: Any) -> float:
    """Return the step of a line; infinity for an evaluation after the last checkpoint, and for an invalid line."""
    if not isinstance(line, dict) or "split" in line:  # a run that resumes scores it again
        return math.inf
    step = line.get("step")
    return step if type(step) is int else math.inf
