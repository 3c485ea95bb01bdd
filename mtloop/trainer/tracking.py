"""Show and record a run: progress bar, table, metrics.jsonl, trackers, curves.

Writes on the main process only. Must not know models or data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mtloop.atomic import write_json_lines
from mtloop.errors import unwritable, visible
from mtloop.evaluation.metrics import metrics_of
from mtloop.evaluation.significance import recorded_text
from mtloop.metrics_log import VALID, evaluations_of, updates_of
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime

COLUMNS_BEFORE = (("epoch", 7), ("step", 7), ("train loss", 10), ("eval loss", 9), ("perplexity", 10))
COLUMNS_AFTER = (("tokens/s", 8), ("sent/s", 7), ("time", 8))
# Of a score alone, with its interval, and with its difference from the start too.
SCORE_WIDTH, INTERVAL_WIDTH, GAIN_WIDTH = 6, 13, 33


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
    """Shows and records a run.

    Attributes:
        folder: Where metrics.jsonl, hypotheses/ and curves.png go.
        runtime: Says which process is main.
        total_steps: Updates of the whole run.
        uses_trackers: Whether accelerate's trackers were started.
    """

    folder: RunFolder
    runtime: Runtime
    total_steps: int
    uses_trackers: bool = False
    start_s: float = field(default_factory=time.perf_counter)
    _bar: tqdm | None = None
    _latest: dict[str, Any] = field(default_factory=dict)
    _has_header: bool = False

    def open_bar(self, step: int) -> None:
        """Show the bar, from `step` on; without a terminal on standard error log_update prints lines instead."""
        if self.runtime.is_main and sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total_steps, initial=step, unit="update", dynamic_ncols=True, smoothing=0.05, mininterval=0.5
            )

    def advance(self) -> None:
        """Move the bar by one update."""
        if self._bar is not None:
            self._bar.update(1)

    def log_update(self, record: dict[str, Any]) -> None:
        """Record one update: step, epoch, loss, grad_norm, learning_rate, target_tokens, tokens_per_s."""
        self._latest = record
        text = f"loss {record['loss']:.3f}, lr {record['learning_rate']:.2g}, {record['tokens_per_s']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.runtime.say(f"update {record['step']:,} of {self.total_steps:,}: {text}")
        self._write(record)

    def log_evaluation(self, name: str, record: dict[str, Any], *, epoch: float, pairs: Sequence[str] = ()) -> None:
        """Record one evaluation and print its row of the table, and a line for each of several pairs."""
        self._write(record, split=name)
        self._print_row(name, record, epoch=epoch)
        for pair in pairs:
            texts = [
                f"{metric.title} {recorded_text(record, metric, pair=pair, is_short=number > 0)}"
                for number, metric in enumerate(metrics_of(record))
            ]
            self.runtime.say(f"  {pair}: {', '.join(texts)}")

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

    def print_samples(self, samples: list[tuple[str, str, str]]) -> None:
        """Print (source, reference, hypothesis) triples."""
        for number, (source, reference, hypothesis) in enumerate(samples, start=1):
            self.runtime.say(f"  {number:>2} source      {_one_line(source)}")
            self.runtime.say(f"     reference   {_one_line(reference)}")
            self.runtime.say(f"     hypothesis  {_one_line(hypothesis)}")
        self._has_header = False

    def write_hypotheses(
        self,
        step: int,
        rows: list[tuple[int, str, str]],
        hypotheses: list[str],
        *,
        name: str = "valid",
        pairs: Sequence[str] = (),
    ) -> None:
        """Write hypotheses/step_N.jsonl: index, source, reference, hypothesis of every row; of several pairs, pair."""
        if not self.runtime.is_main:
            return
        stem = f"step_{step}" if name == "valid" else name
        path = self.folder.hypotheses_dir / f"{stem}.jsonl"
        records = [
            {"index": index, "source": source, "reference": reference, "hypothesis": hypothesis}
            for (index, source, reference), hypothesis in zip(rows, hypotheses, strict=True)
        ]
        for record, pair in zip(records, pairs, strict=False):
            record["pair"] = pair
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        write_json_lines(path, records)

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def draw_curves(self) -> None:
        """Draw the loss and the first metric into curves.png; do nothing without matplotlib."""
        if not self.runtime.is_main or not (records := self.folder.metrics.lines()):
            return
        try:
            from matplotlib.figure import Figure  # not pyplot, whose backend belongs to the notebook we may run in
        except ImportError:
            return
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
        left.plot(
            eval_steps, [record["eval_loss"] for record in evaluations], "o-", color="#d1495b", label="validation"
        )
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
        figure.savefig(self.folder.path / "curves.png", dpi=120)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last twentieth of all values: at least 1, at most 20 of them, so that it lags little."""
    window = min(20, max(1, len(values) // 20))
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _one_line(text: str) -> str:
    """Show a text on one line of the terminal."""
    line = visible(text, kept="\xa0\u202f")  # in French before every colon
    return line if len(line) <= 160 else line[:157] + "..."
