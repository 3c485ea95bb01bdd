"""Show a run in a notebook: one bar, one table and the newest samples, updated in place. No widgets are needed."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from mtloop.evaluation.metrics import metrics_of
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.display import SAMPLE_TITLES, Display, Record, Sample, one_line
from mtloop.trainer.table import Line, choose_columns, duration, header_of, row_of, scores_text

REFRESH_S = 0.5
WIDTH = 160  # characters of the table, which a notebook scrolls


def open_display(runtime: Runtime, total_steps: int) -> Display:
    """Return the display for a notebook, a terminal or a log."""
    kind = NotebookDisplay if is_notebook() else Display
    return kind(runtime=runtime, total_steps=total_steps)


def is_notebook() -> bool:
    """Return True in the kernel of a notebook, and in its forks, whose displays it shows."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def show_figures() -> None:
    """Make a notebook show figures that are not pyplot's, as pyplot makes it show its own."""
    if is_notebook():
        from IPython import get_ipython
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(get_ipython(), {"png"})


@dataclass(kw_only=True)
class NotebookDisplay(Display):
    """Shows a run in the output of a cell."""

    _step: int = 0
    _first_step: int = 0
    _updates_s: float = 0.0
    _lines: list[Line] = field(default_factory=list)
    _pair_lines: list[str] = field(default_factory=list)
    _handle: Any = None
    _shown_s: float = -math.inf

    def start(self, step: int) -> None:
        """Show the bar, from `step` on."""
        self._step = self._first_step = step
        self._updates_s = time.perf_counter()
        self._show()

    def advance(self) -> None:
        """Count one update."""
        self._step += 1
        if time.perf_counter() - self._shown_s >= REFRESH_S:
            self._show()

    def update(self, record: Record) -> None:
        """Show the numbers of one update with the next refresh."""
        self._latest = record

    def evaluation(
        self,
        name: str,
        record: Record,
        *,
        pairs: Sequence[str] = (),
        samples: Sequence[Sample] = (),
        is_best: bool = False,
    ) -> None:
        """Add the row of one evaluation, and show its samples instead of those before."""
        self._samples = samples
        self._lines.append({**self.line_of(name, record), "is_best": is_best})
        self._pair_lines = [f"{pair}: {scores_text(record, metrics_of(record), pair=pair)}" for pair in pairs]
        self._show()

    def close(self) -> None:
        """Show the last update."""
        self._show()

    def finish(self) -> None:
        """Show everything as it is at the end."""
        self._show()

    def _show(self) -> None:
        if not self.runtime.is_main:
            return
        self._shown_s = time.perf_counter()
        content = {"text/html": "".join(self._html()), "text/plain": "\n".join(self._text())}
        with contextlib.suppress(Exception):  # a front end that has gone must not stop the run
            if self._handle is None:
                from IPython.display import display

                self._handle = display(content, raw=True, display_id=True)
            else:
                self._handle.update(content, raw=True)

    @property
    def _progress(self) -> str:
        texts = [f"update {self._step:,} of {self.total_steps:,}"]
        if self._latest:
            texts += [f"loss {self._latest['loss']:.3f}", f"{self._latest['tokens_per_s']:,.0f} tokens/s"]
        if self._first_step < self._step < self.total_steps:
            seconds = (time.perf_counter() - self._updates_s) / (self._step - self._first_step)
            texts.append(f"{duration(seconds * (self.total_steps - self._step))} left")
        return ", ".join(texts)

    def _text(self) -> Iterator[str]:
        """Yield what is shown where no HTML is."""
        yield self._progress
        if self._lines:
            columns = choose_columns(self._lines[0], total_steps=self.total_steps, width=WIDTH)
            yield from ("", header_of(columns), *(row_of(columns, line) for line in self._lines), *self._pair_lines)
        for sample in self._samples:
            yield ""
            for name, text in zip(SAMPLE_TITLES, sample, strict=True):
                yield f"{name:<12}{one_line(text)}"

    def _html(self) -> Iterator[str]:
        yield f'<progress value="{self._step}" max="{self.total_steps}" style="width: 20em"></progress> '
        yield escape(self._progress)
        if self._lines:
            columns = choose_columns(self._lines[0], total_steps=self.total_steps, width=WIDTH)
            rows = [[column.text(line) for column in columns] for line in self._lines]
            best = max((number for number, line in enumerate(self._lines) if line["is_best"]), default=None)
            yield _table([column.title for column in columns], rows, "right", bold=best)
            yield from (f"<div>{escape(line)}</div>" for line in self._pair_lines)
        if self._samples:
            rows = [[one_line(text) for text in sample] for sample in self._samples]
            yield _table(SAMPLE_TITLES, rows, "left")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], align: str, *, bold: int | None = None) -> str:
    """Return a table; a notebook's own style would align all cells to the right."""
    lines = [_row("th", titles, align), *(_row("td", row, align, is_bold=i == bold) for i, row in enumerate(rows))]
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, cells: Sequence[str], align: str, *, is_bold: bool = False) -> str:
    style = f"text-align: {align}{'; font-weight: bold' if is_bold else ''}"
    return "<tr>" + "".join(f'<{tag} style="{style}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"
