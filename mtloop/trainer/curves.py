"""Draw the curves of a run. Must not know models or data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtloop.evaluation.metrics import metrics_of
from mtloop.metrics_log import evaluations_of, updates_of
from mtloop.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(folder: RunFolder) -> None:
    """Draw curves.png from metrics.jsonl; do nothing where there are no metrics, or no matplotlib."""
    if records := folder.metrics.lines():
        try:
            figure = figure_of(records)
        except ImportError:
            return
        figure.savefig(folder.path / "curves.png", dpi=120)


def figure_of(records: list[dict[str, Any]]) -> Figure:
    """Draw the loss and the first metric of the lines of metrics.jsonl.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the notebook we may run in

    # A loss that is not finite is stored as null: one would spoil the running mean of all that follow.
    updates = updates_of(records)
    evaluations = [record for record in evaluations_of(records) if record["eval_loss"] is not None]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if updates:
        steps = [record["step"] for record in updates]
        losses = np.array([record["loss"] for record in updates])
        left.plot(steps, losses, color="#b9cde5", linewidth=0.8, label="training, one update")
        left.plot(steps, _running_mean(losses), color="#1f5fa8", label="training, running mean")
    eval_steps = [record["step"] for record in evaluations]
    left.plot(eval_steps, [record["eval_loss"] for record in evaluations], "o-", color="#d1495b", label="validation")
    left.set(title="Loss", xlabel="update", ylabel="nats per target token")
    left.legend()
    for metric in metrics_of(evaluations[-1] if evaluations else {})[:1]:
        scored = [record for record in evaluations if record.get(metric.name) is not None]
        right.plot(
            [record["step"] for record in scored],
            [record[metric.name] for record in scored],
            "o-",
            color="#2e8b57",
        )
        right.set(title=f"Validation {metric.title}", xlabel="update", ylabel=metric.title, ylim=metric.limits)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last twentieth of all values: at least 1, at most 20 of them, so that it lags little."""
    window = min(20, max(1, len(values) // 20))
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
