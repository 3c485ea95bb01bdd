"""Compare the results of child runs: rows of the table, equal or not, with the figures. Pure functions.

A record describes an update: step, epoch, ids (sentence indices of all ranks), loss, grad_norm and
num_micro_batches (by rank).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtloop.evaluation.metrics import metrics_of

Record = dict[str, Any]
TOLERANCE = 1e-5  # of loss and gradient norm, relative: fp32 sums in another order differ by this


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    is_equal: bool
    figures: str


def compare_coverage(name: str, records: Sequence[Record], num_rows: int) -> Row:
    """Check that an epoch uses every sentence once: a whole one all of them, a part of one none twice."""
    epochs: dict[int, list[int]] = {}
    for record in records:
        epochs.setdefault(record["epoch"], []).extend(record["ids"])
    repeated = sum(len(ids) - len(set(ids)) for ids in epochs.values())
    # All but the last were trained to their end.
    missing = sum(num_rows - len(set(ids)) for epoch, ids in epochs.items() if epoch != max(epochs))
    num_seen = sum(len(ids) for ids in epochs.values())
    figures = f"{num_seen:,} in {len(epochs)} epoch(s) of {num_rows:,}: {repeated:,} twice, {missing:,} left out"
    return Row(name, bool(records) and not repeated and not missing, figures)


def compare_updates(name: str, left: Sequence[Record], right: Sequence[Record], *, is_bitwise: bool = False) -> Row:
    """Compare two runs update by update: the same sentences; loss and gradient norm within TOLERANCE, or bitwise."""
    if [record["step"] for record in left] != [record["step"] for record in right] or not left:
        steps = " and ".join(f"{len(records)} ({_span(records)})" for records in (left, right))
        return Row(name, False, f"updates made: {steps}")
    others = [a["step"] for a, b in zip(left, right, strict=True) if sorted(a["ids"]) != sorted(b["ids"])]
    if others:
        return Row(name, False, f"update {others[0]} has other sentences, and {len(others) - 1} more")
    worst = {
        what: max((_difference(a[what], b[what]) for a, b in zip(left, right, strict=True)), default=0.0)
        for what in ("loss", "grad_norm")
    }
    limit = 0.0 if is_bitwise else TOLERANCE
    is_equal = all(difference <= limit for difference in worst.values())
    figures = f"{len(left)} updates, the same sentences; loss within {worst['loss']:.1e}, gradient norm within "
    return Row(name, is_equal, f"{figures}{worst['grad_norm']:.1e}")


def compare_weights(name: str, left: str, right: str, *, steps: str) -> Row:
    """Compare the sha256 of two runs' final weights."""
    same = "bitwise the same weights" if left == right else f"weights {left[:12]} and {right[:12]}"
    return Row(name, left == right, f"{steps}; {same}")


def compare_evaluations(name: str, left: dict[str, Any], right: dict[str, Any]) -> Row:
    """Compare two evaluations of the same weights: every row once, the same hypotheses, scores and loss.

    Hypotheses that are all empty prove nothing, and are not equal.
    """
    pairs = list(zip(left["hypotheses"], right["hypotheses"], strict=False))
    others = sum(a != b for a, b in pairs)
    loss = _difference(left["eval_loss"], right["eval_loss"])
    counts = {left["num_sentences"], right["num_sentences"], len(left["hypotheses"]), len(right["hypotheses"])}
    scores = [(metric.title, left[metric.name], right[metric.name]) for metric in metrics_of(left)]
    num_texts = sum(bool(a.strip() and b.strip()) for a, b in pairs)
    is_equal = len(counts) == 1 and not others and all(a == b for _, a, b in scores) and loss <= TOLERANCE
    title, *values = scores[0]
    return Row(
        name,
        is_equal and num_texts > 0,
        f"{left['num_sentences']} and {right['num_sentences']} sentences, {num_texts} hypotheses are not empty, "
        f"{others} differ; {title} {values[0]:.2f} and {values[1]:.2f}, loss within {loss:.1e}",
    )


def _difference(left: float, right: float) -> float:
    """Return the relative difference; infinite if either number is not finite."""
    if not (math.isfinite(left) and math.isfinite(right)):
        return math.inf
    return abs(left - right) / max(abs(left), abs(right), 1e-12) if left != right else 0.0


def _span(records: Sequence[Record]) -> str:
    return f"{records[0]['step']} to {records[-1]['step']}" if records else "none"
