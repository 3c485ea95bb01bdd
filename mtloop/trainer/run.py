"""Hold the parts of a run and decide what is due at a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching.loader import TrainLoader, Update
from mtloop.checkpoint.listing import final_record
from mtloop.checkpoint.save import Checkpointer
from mtloop.checkpoint.state import TrainState
from mtloop.config.settings import Config
from mtloop.evaluation.evaluate import EvaluationSet
from mtloop.evaluation.metrics import DEFAULT_METRICS, Counted, Metric
from mtloop.hub.publisher import Publisher
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.display import Display
from mtloop.trainer.tracking import Stopwatch, Tracker


@dataclass(frozen=True, kw_only=True)
class UnreadNorm:
    """Gradient norm that the host has not read: the update's step, from 1, its first rows and its number of rows."""

    step: int
    first_ids: NDArray[np.int64]
    num_rows: int
    grad_norm: Tensor


@dataclass(kw_only=True)
class Recovery:
    """State of the recovery from failed updates.

    Attributes:
        can_repeat: Whether the present update can be repeated: no gradient was exchanged, no weight changed.
        num_overflows: How often the present update has overflowed.
        num_updates: Updates made with the present limit of a micro-batch.
        unread: Norms since the host last read them.
        num_skipped: float32 [1] on the device, norms of the run that were not finite.
    """

    can_repeat: bool = False
    num_overflows: int = 0
    num_updates: int = 0
    unread: list[UnreadNorm] = field(default_factory=list)
    num_skipped: Tensor | None = None


@dataclass(kw_only=True)
class Run:
    """Parts of a run, built by setup.build_run.

    Attributes:
        data_report: Content of data.json.
        is_restored: Whether a checkpoint was restored, or the run begun: the folder is changed from then on.
        different: Settings and data that --allow_changed let through.
        recovery: State of recovery.py.
        observers: Called after each update with the run, the update as it was planned, and its numbers; read only.
        stop_signal: The signal that ends the run, the same on every rank.
        counted_at_start: Match counts of the pretrained model's validation hypotheses, on main once they were read.
    """

    config: Config
    runtime: Runtime
    folder: RunFolder
    model: PreTrainedModel
    wrapped_model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    loader: TrainLoader
    train_rows: Dataset
    valid: EvaluationSet
    test: EvaluationSet | None
    checkpointer: Checkpointer
    tracker: Tracker
    display: Display
    total_steps: int
    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    publisher: Publisher | None = None
    data_report: dict[str, Any] = field(default_factory=dict)
    is_restored: bool = False
    different: list[str] = field(default_factory=list)
    state: TrainState = field(default_factory=TrainState)
    watch: Stopwatch = field(default_factory=Stopwatch)
    recovery: Recovery = field(default_factory=Recovery)
    observers: list[Callable[[Run, Update, Any], None]] = field(default_factory=list)
    stop_signal: int | None = None
    counted_at_start: dict[str, dict[str, Counted]] = field(default_factory=dict)
    has_compared_engines: bool = False
    tokens_since_log: int = 0
    seconds_since_log: float = 0.0

    def updates(self) -> Iterator[Update]:
        """Yield the updates from the present one, until the run is done, out of patience or told to stop."""
        self.checkpointer.finish()  # loader processes are forked: its writing thread may hold locks
        self.display.start(self.state.step)
        self.watch.skip()
        with contextlib.closing(self.loader.updates(epoch=self.state.epoch, cursor=self.state.cursor)) as updates:
            while not (self.is_done or self.is_out_of_patience or self.stop_signal):
                yield next(updates)
        self.display.close()

    def check_signals(self) -> int | None:
        """Return the signal that any rank got by this step, or during its save; the same on every rank. Collective."""
        self.stop_signal = self.runtime.agree_on_signal(None if self.due("save") else self.state.step)
        return self.stop_signal

    @property
    def skips_on_device(self) -> bool:
        """Return True if the optimizer itself skips an update whose gradient norm is not finite.

        The fused optimizer of a sharded model takes no plain tensor; under fp16 the scaler waits for the device anyway.
        """
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        takes_found_inf = self.optimizer.param_groups[0]["fused"] or hasattr(inner, "found_inf")
        return takes_found_inf and self.runtime.sharding is None and self.runtime.accelerator.scaler is None

    @property
    def reads_every_norm(self) -> bool:
        """Return True if reading a norm after each update costs nothing: on a CPU, or where the host has waited."""
        return self.runtime.device.type == "cpu" or not self.skips_on_device

    @property
    def is_done(self) -> bool:
        return self.state.step >= self.total_steps

    @property
    def is_out_of_patience(self) -> bool:
        patience = self.config.evaluation.early_stopping_patience
        return patience is not None and self.state.num_evaluations_without_gain >= patience

    @property
    def is_evaluation_pending(self) -> bool:
        """Return True if this step is still to be evaluated: before training, or because a signal interrupted it."""
        if self.state.step == 0:
            return bool(self.config.evaluation.eval_on_start) and self.state.evaluated_step < 0
        return self.due("evaluate") and self.state.evaluated_step != self.state.step

    @property
    def ending(self) -> str:
        """Describe how the run ended: early stopping, and which checkpoint final/ contains."""
        evaluation, state = self.config.evaluation, self.state
        text = ""
        if evaluation.load_best_model_at_end and state.best_score is not None:
            text += f", that of step {state.best_step:,} ({evaluation.metric_for_best_model} {state.best_score:.4g})"
        if evaluation.min_survival is not None and state.best_score is None:
            text += f"; no evaluation reached --min_survival {evaluation.min_survival:g}"
            text += ", final/ holds the last weights" if evaluation.load_best_model_at_end else ""
        if evaluation.average_last is not None:
            steps = final_record(self.folder).get("average_of", [])
            text += f", the average of steps {', '.join(f'{step:,}' for step in steps)}"
        if self.is_out_of_patience and not self.is_done:
            text += f"; stopped early after {state.num_evaluations_without_gain} evaluation(s) without improvement"
        return text

    def due(self, event: str) -> bool:
        """Return True if `event` (log, evaluate, save) is due after the present step."""
        step = self.state.step
        if event == "log":
            return step == 1 or step % self.config.output.logging_steps == 0 or self.is_done
        if event == "evaluate":
            every = self.config.evaluation.eval_steps
            return self.is_done or (self.state.is_epoch_end if every is None else step % every == 0)
        assert event == "save"
        every = self.config.output.save_steps
        is_new_best = self.state.best_step == step
        is_last = self.is_done or self.is_out_of_patience
        return is_last or self.state.is_epoch_end or is_new_best or (every is not None and step % every == 0)
