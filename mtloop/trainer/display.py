"""Show a run to a person: the bar, the table of evaluations, samples, and lines without a terminal.

Prints on the main process only. Must not know models, data or files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from mtloop.errors import visible
from mtloop.evaluation.metrics import metrics_of
from mtloop.evaluation.significance import recorded_text
from mtloop.runtime.ranks import Runtime

COLUMNS_BEFORE = (("epoch", 7), ("step", 7), ("train loss", 10), ("eval loss", 9), ("perplexity", 10))
COLUMNS_AFTER = (("tokens/s", 8), ("sent/s", 7), ("time", 8))
# Of a score alone, with its interval, and with its difference from the start too.
SCORE_WIDTH, INTERVAL_WIDTH, GAIN_WIDTH = 6, 13, 33


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
    _latest: dict[str, Any] = field(default_factory=dict)
    _has_header: bool = False

    def start(self, step: int) -> None:
        """Show the bar, from `step` on; without a terminal on standard error update() prints lines instead."""
        if self.runtime.is_main and sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total_steps, initial=step, unit="update", dynamic_ncols=True, smoothing=0.05, mininterval=0.5
            )

    def advance(self) -> None:
        """Move the bar by one update."""
        if self._bar is not None:
            self._bar.update(1)

    def update(self, record: dict[str, Any]) -> None:
        """Show one update, as metrics.jsonl records it."""
        self._latest = record
        text = f"loss {record['loss']:.3f}, lr {record['learning_rate']:.2g}, {record['tokens_per_s']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.runtime.say(f"update {record['step']:,} of {self.total_steps:,}: {text}")

    def evaluation(self, name: str, record: dict[str, Any], *, epoch: float, pairs: Sequence[str] = ()) -> None:
        """Print the row of one evaluation, and a line for each of several pairs."""
        self._print_row(name, record, epoch=epoch)
        for pair in pairs:
            texts = [
                f"{metric.title} {recorded_text(record, metric, pair=pair, is_short=number > 0)}"
                for number, metric in enumerate(metrics_of(record))
            ]
            self.runtime.say(f"  {pair}: {', '.join(texts)}")

    def samples(self, samples: list[tuple[str, str, str]]) -> None:
        """Print (source, reference, hypothesis) triples."""
        for number, (source, reference, hypothesis) in enumerate(samples, start=1):
            self.runtime.say(f"  {number:>2} source      {_one_line(source)}")
            self.runtime.say(f"     reference   {_one_line(reference)}")
            self.runtime.say(f"     hypothesis  {_one_line(hypothesis)}")
        self._has_header = False

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print_row(self, name: str, record: dict[str, Any], *, epoch: float) -> None:
        # The first metric has its interval: with those of all, a row would be too wide for a terminal.
        first, *others = metrics_of(record)
        width = GAIN_WIDTH if f"{first.name}_gain" in record else INTERVAL_WIDTH
        scores = [(first.title, max(width, len(first.title)))]
        scores += [(metric.title, max(SCORE_WIDTH, len(metric.title))) for metric in others]
        columns = [*COLUMNS_BEFORE, *scores, *COLUMNS_AFTER]
        if not self._has_header:
            self._has_header = True
            self.runtime.say("", "  ".join(title.rjust(width) for title, width in columns))
        latest = self._latest
        elapsed = int(time.perf_counter() - self.start_s)
        cells = (
            f"{epoch:.4g}" if name == "valid" else name,
            f"{record['step']:,}",
            f"{latest['loss']:.4f}" if latest else "-",
            f"{record['eval_loss']:.4f}",
            f"{record['perplexity']:,.2f}" if record["perplexity"] < 1e6 else f"{record['perplexity']:.1e}",
            recorded_text(record, first),
            *(recorded_text(record, metric, is_short=True) for metric in others),
            f"{latest['tokens_per_s']:,.0f}" if latest else "-",
            f"{record['sentences_per_s']:,.1f}",
            f"{elapsed // 3600}:{elapsed // 60 % 60:02}:{elapsed % 60:02}",
        )
        self.runtime.say("  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, columns, strict=True)))


def _one_line(text: str) -> str:
    """Show a text on one line of the terminal."""
    line = visible(text, kept="\xa0\u202f")  # in French before every colon
    return line if len(line) <= 160 else line[:157] + "..."
