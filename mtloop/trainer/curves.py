"""Draw the curves of a run. Must not know models or data. E evaluations, U logged updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtloop.evaluation.metrics import LOSS, Metric, metrics_of, with_column
from mtloop.evaluation.selection import RESERVED_ENDINGS
from mtloop.metrics_log import Line, evaluations_of, updates_of
from mtloop.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, which people with any kind of colour vision can tell apart.
_BLUE, _VERMILION, _GREEN, _PALE = "#0072b2", "#d55e00", "#009e73", "#b9cde5"
_COLORS = ("#56b4e9", "#e69f00", "#cc79a7", "#0072b2", "#d55e00", "#000000")  # of pairs
_TIME_UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


def draw_curves(folder: RunFolder) -> None:
    """Draw curves.png from metrics.jsonl; do nothing without metrics or matplotlib."""
    if records := folder.metrics.lines():
        try:
            figure = figure_of(records)
        except ImportError:
            return
        figure.savefig(folder.curves_path, dpi=100)


def figure_of(records: list[Line]) -> Figure:
    """Draw the loss and the metrics in the lines of metrics.jsonl, against updates and the time of training.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the notebook we may run in
    from matplotlib.ticker import MaxNLocator

    # A loss that is not finite is stored as null: one would spoil the running mean of all that follow.
    updates = updates_of(records)
    by_step = {line["step"]: line for line in evaluations_of(records)}  # after a resume, the last of a step
    evaluations = [line for _, line in sorted(by_step.items())]
    metrics = with_column(metrics_of(evaluations[-1])) if evaluations else []
    # The loss is on the left; beside it the metrics, in two columns if there are more than three.
    num_columns = min(1, len(metrics)) if len(metrics) <= 3 else 2
    num_rows = -(-len(metrics) // num_columns) if metrics else 1
    figure = Figure(figsize=(5.5 * (1 + num_columns), max(4, 2.5 * num_rows)), layout="constrained")
    grid = figure.add_gridspec(num_rows, 1 + num_columns)
    loss = figure.add_subplot(grid[:, 0])
    _draw_loss(loss, updates, evaluations)
    panels = [
        figure.add_subplot(grid[number // num_columns, 1 + number % num_columns]) for number in range(len(metrics))
    ]
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_metric(axes, metric, evaluations, has_legend=axes is panels[0])
    last_step = max([1, *(line["step"] for line in (*updates, *evaluations))])
    for axes in (loss, *panels):
        axes.set_xlim(-0.02 * last_step, 1.02 * last_step)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
    for axes in panels[:-num_columns] if panels else ():
        axes.tick_params(labelbottom=False)
    for axes in (loss, *panels[-num_columns:]):  # below each column
        axes.set_xlabel("update")
    for axes in (loss, *panels[:num_columns]):
        _add_axis_of_time(axes, evaluations)
    return figure


def _draw_loss(axes: Axes, updates: list[Line], evaluations: list[Line]) -> None:
    if updates:
        steps = [line["step"] for line in updates]
        losses = np.array([line["loss"] for line in updates])
        axes.plot(steps, losses, color=_PALE, linewidth=0.8, label="training, one update")
        axes.plot(steps, _running_mean(losses), color=_BLUE, label="training, running mean")
    title = "Loss"
    curve = _curve(evaluations, LOSS)
    if len(curve.steps):
        axes.plot(curve.steps, curve.values, "o-", color=_VERMILION, markersize=4, label="validation")
        best = int(curve.values.argmin())
        title += f": lowest validation {curve.values[best]:.3f} at update {curve.steps[best]:,}"
    axes.set_ylabel("nats per target token")
    axes.set_title(title, fontsize="medium")
    if axes.lines:
        axes.legend(fontsize="small")


def _draw_metric(axes: Axes, metric: Metric, evaluations: list[Line], *, has_legend: bool) -> None:
    """Draw a metric and its interval; of several pairs, each of them and the mean. The axis fits what is drawn."""
    pairs = _pairs_of(evaluations[-1])
    is_named = len(pairs) <= len(_COLORS)
    for number, pair in enumerate(pairs):
        curve = _curve(evaluations, f"{metric.name}_{pair}")
        color, label = (_COLORS[number], pair) if is_named else (_PALE, "" if number else "each pair")
        axes.plot(curve.steps, curve.values, "o-", color=color, markersize=3, linewidth=1, label=label)
        if is_named:
            _draw_interval(axes, metric, curve, color=color)
    curve = _curve(evaluations, metric.name)
    label = "mean of the pairs" if pairs else ""
    axes.plot(curve.steps, curve.values, "o-", color=_GREEN, markersize=4, linewidth=1.8, label=label)
    _draw_interval(axes, metric, curve, color=_GREEN, label="" if pairs else "95 % confidence interval")
    title = f"Validation {metric.title}" + ("" if metric.greater_is_better else ", lower is better")
    if len(curve.steps):
        best = int(curve.values.argmax() if metric.greater_is_better else curve.values.argmin())
        title += f": best {curve.values[best]:.{metric.decimals}f} at update {curve.steps[best]:,}"
    axes.set_title(title, fontsize="medium")
    if has_legend and pairs:  # outside of the panel: it would cover curves
        note = "with 95 % intervals" if is_named and len(axes.collections) else None
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", title=note, title_fontsize="small")
    elif has_legend and len(axes.collections):
        axes.legend(fontsize="small")


def _draw_interval(axes: Axes, metric: Metric, curve: _Curve, *, color: str, label: str = "") -> None:
    has_interval = np.isfinite(curve.half_widths)
    if has_interval.any():
        lowest, greatest = metric.limits or (-np.inf, np.inf)
        low = np.maximum(curve.values - curve.half_widths, lowest)
        high = np.minimum(curve.values + curve.half_widths, greatest)
        axes.fill_between(curve.steps, low, high, where=has_interval, color=color, alpha=0.2, linewidth=0, label=label)


@dataclass(frozen=True)
class _Curve:
    """The finite values of a number in E evaluations.

    Attributes:
        steps: [E], ascending.
        values: [E].
        half_widths: [E], of the 95 % confidence intervals; NaN where there is none.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    half_widths: NDArray[np.float64]


def _curve(evaluations: list[Line], name: str) -> _Curve:
    found = [line for line in evaluations if line.get(name) is not None]
    half_widths = [np.nan if line.get(f"{name}_ci") is None else line[f"{name}_ci"] for line in found]
    return _Curve(
        steps=np.array([line["step"] for line in found], dtype=np.int64),
        values=np.array([line[name] for line in found], dtype=np.float64),
        half_widths=np.array(half_widths, dtype=np.float64),
    )


def _pairs_of(evaluation: Line) -> list[str]:
    """Return the pairs of languages that have a metric; [] if there is one pair."""
    names = sorted((metric.name for metric in metrics_of(evaluation)), key=len, reverse=True)
    keys = [key for key in evaluation if key not in names and not key.endswith(RESERVED_ENDINGS)]
    # The longest name that a key begins with: chrf_pp_en-fr is of chrf_pp.
    found = [next((key.removeprefix(f"{name}_") for name in names if key.startswith(f"{name}_")), "") for key in keys]
    return list(dict.fromkeys(pair for pair in found if "-" in pair))


def _add_axis_of_time(axes: Axes, evaluations: list[Line]) -> None:
    """Show the time of training above the updates: between two evaluations, updates take equally long."""
    timed = [line for line in evaluations if line.get("train_time_s") is not None]
    points = {0: 0.0} | {line["step"]: line["train_time_s"] for line in timed}
    steps, times_s = np.array(list(points)), np.array(list(points.values()))
    is_later = np.append(True, np.diff(times_s) > 0)  # both must ascend to form an axis
    steps, times_s = steps[is_later], times_s[is_later]
    if len(steps) < 2:
        return
    seconds, unit = next((one for one in _TIME_UNITS if times_s[-1] >= 3 * one[0]), _TIME_UNITS[-1])
    times = times_s / seconds
    top = axes.secondary_xaxis("top", functions=(_line_through(steps, times), _line_through(times, steps)))
    top.set_xlabel(f"{unit} of training")


def _line_through(xs: NDArray[Any], ys: NDArray[Any]) -> Callable[[Any], Any]:
    """Return the function whose graph goes straight from point to point, and on beyond the first and the last."""

    def value(x: Any) -> Any:
        place = np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2)
        return ys[place] + (x - xs[place]) * (ys[place + 1] - ys[place]) / (xs[place + 1] - xs[place])

    return value


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last 20 values, or 1 % of many; of few a twentieth, so that it lags little."""
    window = max(1, min(20, len(values) // 20), len(values) // 100)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
