"""Run: all that a run is made of, and what is due at a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching.loader import TrainLoader
from mtloop.checkpoint.save import Checkpointer
from mtloop.checkpoint.state import TrainState
from mtloop.config.settings import Config
from mtloop.evaluation.evaluate import EvaluationSet
from mtloop.evaluation.scores import Tally
from mtloop.hub.publisher import Publisher
from mtloop.run_folder import RunFolder
from mtloop.runtime import Runtime
from mtloop.trainer.nonfinite import NonfiniteGuard
from mtloop.trainer.tracking import Stopwatch, Tracker


@dataclass(kw_only=True)
class Run:
    """All that a run is made of, built by setup.build_run.

    data_report is what data.json holds or will hold; different is what --allow_changed let through; counted_at_start is
    of the validation hypotheses of the pretrained model, on main once they were read; num_tried counts the updates made
    with the present budget of a micro-batch.
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
    total_steps: int
    publisher: Publisher | None = None
    data_report: dict[str, Any] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)
    state: TrainState = field(default_factory=TrainState)
    watch: Stopwatch = field(default_factory=Stopwatch)
    guard: NonfiniteGuard = field(init=False)
    counted_at_start: dict[str, Tally] = field(default_factory=dict)
    num_tried: int = 0
    has_compared_engines: bool = False
    tokens_since_log: int = 0
    seconds_since_log: float = 0.0

    def __post_init__(self) -> None:
        self.guard = NonfiniteGuard(max_skipped=self.config.optimizer.skip_nonfinite)

    @property
    def leaves_out_on_device(self) -> bool:
        """Whether the optimizer itself leaves out an update that the device finds to be no number.

        Not that of a sharded model, whose fused form takes no plain tensor beside its shards, nor under fp16, whose
        scaler waits for the device in any case.
        """
        takes_found_inf = self.optimizer.param_groups[0]["fused"] or self.runtime.is_xla
        return takes_found_inf and self.runtime.sharding is None and self.runtime.accelerator.scaler is None

    @property
    def reads_every_norm(self) -> bool:
        """Whether the host knows each norm at once: it costs nothing on a CPU, and elsewhere it may have waited."""
        return self.runtime.device.type == "cpu" or not self.leaves_out_on_device

    @property
    def is_done(self) -> bool:
        return self.state.step >= self.total_steps

    @property
    def is_out_of_patience(self) -> bool:
        patience = self.config.evaluation.early_stopping_patience
        return patience is not None and self.state.num_evaluations_without_gain >= patience

    @property
    def is_evaluation_pending(self) -> bool:
        """Whether the evaluation of this step is still to be made: the first of all, or one that a signal cut short."""
        if self.state.step == 0:
            return bool(self.config.evaluation.eval_on_start) and self.state.evaluated_step < 0
        return self.due("evaluate") and self.state.evaluated_step != self.state.step

    @property
    def ending(self) -> str:
        """What a reader should know of the end: an early stop, and which step final/ holds, or the average of which."""
        evaluation, state = self.config.evaluation, self.state
        text = ""
        if evaluation.load_best_model_at_end and state.best_score is not None:
            text += f", that of step {state.best_step:,} ({evaluation.metric_for_best_model} {state.best_score:.4g})"
        if evaluation.average_last is not None:
            steps = self.folder.run_record.get("final", {}).get("average_of", [])
            text += f", the average of steps {', '.join(f'{step:,}' for step in steps)}"
        if self.is_out_of_patience and not self.is_done:
            text += f"; stopped early after {state.num_evaluations_without_gain} evaluation(s) without a gain"
        return text

    def due(self, event: str) -> bool:
        """Whether `event` (log, evaluate, save) falls on the step just made."""
        step = self.state.step
        if event == "log":
            return step == 1 or step % self.config.output.logging_steps == 0 or self.is_done
        if event == "evaluate":
            every = self.config.evaluation.eval_steps
            return self.is_done or (self.state.is_epoch_end if every is None else step % every == 0)
        assert event == "save"
        every = self.config.output.save_steps
        is_new_best = self.state.best_step == step
        return self.is_done or self.state.is_epoch_end or is_new_best or (every is not None and step % every == 0)
