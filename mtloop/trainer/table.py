"""Choose the columns of the table of evaluations, and fill its rows. Must not know where they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtloop.evaluation.metrics import Metric, metrics_of, with_column
from mtloop.evaluation.significance import recorded_text
from mtloop.metrics_log import VALID

GAP = "  "
# An evaluation as metrics.jsonl records it, with name, train_loss, tokens_per_s and elapsed_s.
Line = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: Its head.
        width: In characters.
        rank: Where not all columns fit, those with the lower ranks are shown.
        text: Returns the cell of an evaluation.
        metric: The name of the metric whose score it shows.
    """

    title: str
    width: int
    rank: float
    text: Callable[[Line], str]
    metric: str = ""


def choose_columns(first: Line, *, total_steps: int, width: int) -> list[Column]:
    """Choose the columns that fit into a width.

    Args:
        first: The first evaluation that is shown: all have its metrics.
        total_steps: Updates of the whole run.
        width: In characters.
    """
    columns = _all_columns(first, total_steps)
    chosen, used = [], -len(GAP)
    for column in sorted(columns, key=lambda column: column.rank):
        used += len(GAP) + column.width
        if used > width and column.rank > 0:
            break
        chosen.append(column)
    return [column for column in columns if column in chosen]


def header_of(columns: Sequence[Column]) -> str:
    """Return the line of titles."""
    return GAP.join(column.title.rjust(column.width) for column in columns)


def row_of(columns: Sequence[Column], line: Line) -> str:
    """Return the row of an evaluation."""
    return GAP.join(column.text(line).rjust(column.width) for column in columns)


def scores_text(line: Line, metrics: Sequence[Metric], *, pair: str = "") -> str:
    """Return scores as they are read without a table, the first of a pair with its interval and gain."""
    texts = [
        f"{metric.title} {recorded_text(line, metric, pair=pair, is_short=not pair or number > 0)}"
        for number, metric in enumerate(with_column(metrics))
    ]
    return ", ".join(texts)


def metrics_without_column(columns: Sequence[Column], line: Line) -> list[Metric]:
    """Return the metrics of an evaluation whose column did not fit."""
    shown = {column.metric for column in columns}
    return [metric for metric in with_column(metrics_of(line)) if metric.name not in shown]


def _all_columns(first: Line, total_steps: int) -> list[Column]:
    best, *others = with_column(metrics_of(first))
    columns = [
        Column("epoch", 7, 0, lambda line: f"{line['epoch']:.2f}" if line["name"] == VALID else line["name"]),
        Column("step", max(4, len(f"{total_steps:,}")), 0, lambda line: f"{line['step']:,}"),
        Column("train loss", 10, 1, partial(_number, "train_loss", ".4f")),
        Column("eval loss", 9, 0, partial(_number, "eval_loss", ".4f")),
        Column("perplexity", 10, 4, partial(_number, "perplexity", ",.2f")),
        *_score_columns(best, first, rank=0, interval_rank=3),
    ]
    # Before training the model is evaluated that the others are compared with.
    if first["step"] == 0 or f"{best.name}_gain" in first:
        columns.append(Column("gain", 6, 3.1, partial(_number, f"{best.name}_gain", f"+.{best.decimals}f")))
        columns.append(Column("p", 5, 3.2, partial(_number, f"{best.name}_p_value", ".3f")))
    for number, metric in enumerate(others):
        columns += _score_columns(metric, first, rank=2 + number / 100, interval_rank=7 + number)
    return [
        *columns,
        Column("tokens/s", 8, 5, partial(_number, "tokens_per_s", ",.0f")),
        Column("sent/s", 7, 6, partial(_number, "sentences_per_s", ",.1f")),
        Column("time", 8, 0, lambda line: duration(line["elapsed_s"])),
    ]


def _score_columns(metric: Metric, first: Line, *, rank: float, interval_rank: float) -> list[Column]:
    form, interval = f".{metric.decimals}f", f"{metric.name}_ci"
    width = max(6, len(metric.title))
    columns = [Column(metric.title, width, rank, partial(_number, metric.name, form), metric.name)]
    return [*columns, Column("±", 5, interval_rank, partial(_number, interval, form))] if interval in first else columns


def _number(name: str, form: str, line: Line) -> str:
    """Return a number of an evaluation, "-" if it has none."""
    value = line.get(name)
    if value is None:
        return "-"
    return f"{value:.1e}" if abs(value) >= 1e6 and math.isfinite(value) else f"{value:{form}}"


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
