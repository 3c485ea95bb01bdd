"""Show a run to a person: the bar, the table of evaluations, samples, and lines without a terminal.

Prints on the main process only. Must not know models, data or files.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from mtloop.errors import visible
from mtloop.evaluation.metrics import metrics_of
from mtloop.runtime.ranks import Runtime
from mtloop.terminal import styled, terminal_columns, wrapped
from mtloop.trainer.table import (
    GAP,
    Column,
    Line,
    choose_columns,
    header_of,
    metrics_without_column,
    row_of,
    scores_text,
)

# Seconds between two lines of updates without a terminal; metrics.jsonl has every --logging_steps.
LINE_EVERY_S = 30.0
BAR_FORMAT = "{percentage:3.0f}% {bar} {n:,}/{total:,}{desc}  {remaining} left"
MAX_SAMPLE_CHARACTERS = 240
Record = dict[str, Any]
SAMPLE_TITLES = ("source", "reference", "hypothesis")
Sample = tuple[str, str, str]


@dataclass(kw_only=True)
class Display:
    """Shows a run on a terminal, or as lines of a log.

    Attributes:
        runtime: Says which process is main, and prints.
        total_steps: Updates of the whole run.
    """

    runtime: Runtime
    total_steps: int
    start_s: float = field(default_factory=time.perf_counter)
    _bar: tqdm | None = None
    _latest: Record = field(default_factory=dict)
    _columns: list[Column] = field(default_factory=list)
    _samples: Sequence[Sample] = ()
    _line_s: float = -math.inf

    def start(self, step: int) -> None:
        """Show the bar, from `step` on; without a terminal on standard error update() prints lines instead."""
        if self.runtime.is_main and sys.stderr.isatty():
            # Without smoothing the time left counts evaluations and saves, in proportion.
            self._bar = tqdm(
                total=self.total_steps,
                initial=step,
                bar_format=BAR_FORMAT,
                dynamic_ncols=True,
                smoothing=0,
                mininterval=0.5,
                leave=False,
            )

    def advance(self) -> None:
        """Count one update."""
        if self._bar is not None:
            self._bar.update(1)

    def update(self, record: Record) -> None:
        """Show one update, as metrics.jsonl records it: in the bar, or as a line at most every LINE_EVERY_S."""
        self._latest, step = record, record["step"]
        loss, rate = f"loss {record['loss']:.3f}", f"{record['tokens_per_s']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_description_str(f"{GAP}{loss}{GAP}{rate}", refresh=False)
        elif step >= self.total_steps or time.perf_counter() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.perf_counter()
            self.runtime.say(
                f"update {step:,} of {self.total_steps:,}: {loss}, lr {record['learning_rate']:.2g}, {rate}"
            )

    def evaluation(
        self,
        name: str,
        record: Record,
        *,
        pairs: Sequence[str] = (),
        samples: Sequence[Sample] = (),
        is_best: bool = False,
    ) -> None:
        """Print the row of one evaluation, and below it what has no column.

        Args:
            name: Of the rows: valid, test or average.
            record: As metrics.jsonl records it.
            pairs: Several pairs of languages, which have scores of their own.
            samples: Shown by finish(), if no evaluation follows.
            is_best: Whether its score is the best so far.
        """
        self._samples = samples
        width, line = terminal_columns(), self.line_of(name, record)
        if not self._columns:
            self._columns = choose_columns(line, total_steps=self.total_steps, width=width)
            self.runtime.say("", styled(header_of(self._columns), "bold", sys.stdout))
        self.runtime.say(styled(row_of(self._columns, line), "green" if is_best else "", sys.stdout))
        if others := metrics_without_column(self._columns, line):
            self.runtime.say(*wrapped(GAP, scores_text(line, others), width))
        for pair in pairs:
            self.runtime.say(*wrapped(f"  {pair}: ", scores_text(line, metrics_of(line), pair=pair), width))

    def line_of(self, name: str, record: Record) -> Line:
        """Return the line of the table for an evaluation."""
        latest = {"train_loss": self._latest.get("loss"), "tokens_per_s": self._latest.get("tokens_per_s")}
        return {**record, "name": name, **latest, "elapsed_s": time.perf_counter() - self.start_s}

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finish(self) -> None:
        """Print the samples of the last evaluation: in between they would tear the table."""
        width = terminal_columns()
        for sample in self._samples:
            self.runtime.say("")
            for name, text in zip(SAMPLE_TITLES, sample, strict=True):
                self.runtime.say(*wrapped(name.ljust(12), one_line(text), width))
        if self._samples:
            self.runtime.say("")
        self._samples = ()


def one_line(text: str) -> str:
    """Return a text with what a terminal would not show as one line escaped, and the rest of a long one left out."""
    line = visible(text, kept="\xa0\u202f")  # in French before every colon
    return line if len(line) <= MAX_SAMPLE_CHARACTERS else f"{line[: MAX_SAMPLE_CHARACTERS - 3]}..."
