"""Settings of updates and optimizer."""

import json
import math
from dataclasses import dataclass
from typing import Any

from mtloop.config.fields import LEAVE_ONE_OUT, MAX_BATCH_TOKENS, MAX_COUNT, Group, setting
from mtloop.errors import FieldError

MICRO_BATCH_TOKENS = 4096
# transformers.SchedulerType without the two that follow a metric. The enum itself would import torch.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
# schedule -> the arguments of which it needs one, and an example
SCHEDULE_NEEDS = {
    "cosine_with_min_lr": (("min_lr", "min_lr_rate"), '{"min_lr_rate": 0.1}'),
    "cosine_warmup_with_min_lr": (("min_lr", "min_lr_rate"), '{"min_lr_rate": 0.1}'),
    "warmup_stable_decay": (("num_decay_steps",), '{"num_decay_steps": 1000}'),
}


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Group):
    """The size of an update over all processes, and of a forward pass on one device."""

    title = "batches"

    tokens_per_update: int | None = setting(
        None,
        "target tokens per update over all processes",
        unset="500 from scratch, otherwise the update is counted in sentences",
        unit="tokens",
        same_run=True,
        minimum=1,
        maximum=MAX_COUNT,
    )
    sentences_per_update: int | None = setting(
        None,
        "sentence pairs per update over all processes",
        unset="32 when fine-tuning, otherwise the update is counted in tokens",
        unit="pairs",
        same_run=True,
        minimum=1,
        maximum=MAX_COUNT,
    )
    # Not same_run: the product of these two and the processes is, as sentences_per_update.
    per_device_train_batch_size: int | None = setting(
        None,
        "sentence pairs per process and accumulation step; the product over all is --sentences_per_update",
        unset="not used",
        unit="pairs",
        minimum=1,
        maximum=100_000,
    )
    gradient_accumulation_steps: int | None = setting(
        None,
        "accumulation steps of --per_device_train_batch_size",
        unset="1",
        unit="steps",
        minimum=1,
        maximum=10_000,
    )
    max_tokens_per_micro_batch: int | str = setting(
        MICRO_BATCH_TOKENS,
        "maximum padded tokens of one forward pass on one device; changes memory, not the result; auto measures what "
        "fits the device",
        unit="tokens",
        minimum=1,
        maximum=MAX_BATCH_TOKENS,
        may_be_auto=True,
    )
    micro_batch_overhead: int | None = setting(
        None,
        "fixed cost of a forward and backward pass, in padded tokens; an update is divided for the lowest total cost; "
        "changes speed, not the result",
        unset="chosen by the kind of device",
        unit="tokens",
        minimum=0,
        maximum=1_000_000,
    )
    gradient_checkpointing: bool = setting(
        False,
        "compute the activations of each layer again in the backward, which takes less memory and more time; does not "
        "change the result",
    )
    pad_to: str | None = setting(
        None,
        "shapes of forward passes: fixed (one), buckets (a few), or longest (as short as possible)",
        unset="buckets on XLA, otherwise longest",
        choices=("fixed", "buckets", "longest"),
    )
    dataloader_num_workers: int = setting(
        0, "worker processes per rank that prepare batches", unit="processes", minimum=0, maximum=128
    )

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        super().__post_init__()
        for other in ("sentences_per_update", "per_device_train_batch_size"):
            if self.tokens_per_update and (value := getattr(self, other)):
                raise FieldError(
                    "tokens_per_update",
                    f"--{other} {value} is given as well",
                    got=self.tokens_per_update,
                    remedy=LEAVE_ONE_OUT,
                )
        if self.gradient_accumulation_steps and not self.per_device_train_batch_size:
            raise FieldError(
                "gradient_accumulation_steps",
                "only valid with --per_device_train_batch_size",
                got=self.gradient_accumulation_steps,
                remedy="Add that, or leave it out: updates are divided by --max_tokens_per_micro_batch.",
            )
        # A stored configuration holds both: the sizes per device, and their product over the processes.
        per_device = self.pairs_per_device
        if per_device and (self.sentences_per_update or 0) % per_device:
            raise FieldError(
                "sentences_per_update",
                f"expected a multiple of {per_device}, as --per_device_train_batch_size is given as well",
                got=self.sentences_per_update,
                remedy=LEAVE_ONE_OUT,
            )

    @property
    def pairs_per_device(self) -> int | None:
        """Sentence pairs per process and update; None if the update is not given that way."""
        size = self.per_device_train_batch_size
        return size * (self.gradient_accumulation_steps or 1) if size else None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """AdamW, the learning-rate schedule and the length of training."""

    title = "optimizer"

    learning_rate: float | None = setting(
        None,
        "peak learning rate",
        unset="2e-5 when fine-tuning, 2e-4 with --lora_rank, 1e-3 from scratch",
        same_run=True,
        above=0,
        maximum=10,
    )
    weight_decay: float = setting(0.0, "weight decay of AdamW", same_run=True, minimum=0, maximum=100)
    adam_beta1: float = setting(0.9, "beta1 of AdamW, the decay of the first moment", same_run=True, minimum=0, below=1)
    adam_beta2: float | None = setting(
        None,
        "beta2 of AdamW, the decay of the second moment",
        unset="0.999 when fine-tuning, 0.98 from scratch",
        same_run=True,
        minimum=0,
        below=1,
    )
    adam_epsilon: float = setting(1e-8, "epsilon of AdamW", same_run=True, above=0, maximum=1)
    max_grad_norm: float = setting(
        1.0, "maximum gradient norm; 0 turns clipping off", same_run=True, minimum=0, maximum=1_000_000
    )
    num_train_epochs: float = setting(
        3,
        "passes over the training pairs; of a fraction, the updates are rounded up",
        unit="epochs",
        same_run=True,
        above=0,
        maximum=1_000_000,
    )
    max_train_steps: int | None = setting(
        None,
        "updates, instead of --num_train_epochs",
        unset="all epochs",
        unit="steps",
        same_run=True,
        minimum=1,
        maximum=MAX_COUNT,
    )
    lr_scheduler_type: str = setting("linear", "learning-rate schedule", same_run=True, choices=SCHEDULES)
    lr_scheduler_kwargs: str | None = setting(
        None,
        "arguments of the schedule, a JSON object",
        unset="the ones of transformers",
        same_run=True,
        may_be_blank=True,
    )
    num_warmup_steps: float | None = setting(
        None,
        "warm-up updates; a number below 1 is a fraction of all updates, rounded up",
        unset="0 when fine-tuning; from scratch a tenth of all updates, at most 4000",
        unit="steps",
        same_run=True,
        minimum=0,
        maximum=MAX_COUNT,
    )
    label_smoothing_factor: float = setting(0.0, "label smoothing factor", same_run=True, minimum=0, below=1)
    skip_nonfinite: int = setting(
        0,
        "number of updates with a non-finite gradient that are skipped before the run fails",
        unit="steps",
        minimum=0,
        maximum=1_000_000,
    )

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        name = self.lr_scheduler_type
        if name in METRIC_SCHEDULES:
            raise FieldError(
                "lr_scheduler_type", "follows a metric", got=name, remedy=f"Give one of {', '.join(SCHEDULES)}."
            )
        if self.max_grad_norm == math.inf:
            raise FieldError(
                "max_grad_norm", "expected a finite number", got="inf", remedy="Give 0 to turn clipping off."
            )
        super().__post_init__()
        for number in ("num_train_epochs", "num_warmup_steps"):
            value = getattr(self, number)
            if value is not None and value == int(value):  # shown and stored as 3, not as 3.0
                object.__setattr__(self, number, int(value))
        if (self.num_warmup_steps or 0) > 1 and not isinstance(self.num_warmup_steps, int):
            raise FieldError(
                "num_warmup_steps",
                "expected a whole number of updates, or a fraction below 1",
                got=self.num_warmup_steps,
            )
        given = self.schedule_arguments()
        needed, example = SCHEDULE_NEEDS.get(name, ((), ""))
        if needed and not any(argument in given for argument in needed):
            raise FieldError(
                "lr_scheduler_type",
                f"needs the argument {' or '.join(needed)}",
                got=name,
                remedy=f"Add --lr_scheduler_kwargs '{example}'.",
            )

    def schedule_arguments(self) -> dict[str, Any]:
        """Return `lr_scheduler_kwargs` as a dict, empty if not given.

        Raises:
            FieldError: if the text is not a JSON object of text and finite numbers.
        """
        if self.lr_scheduler_kwargs is None:
            return {}
        try:
            arguments = json.loads(self.lr_scheduler_kwargs)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            problem = "expected a JSON object, for example '{\"num_cycles\": 2}'"
            raise FieldError("lr_scheduler_kwargs", problem, got=repr(self.lr_scheduler_kwargs))
        for name, value in arguments.items():
            is_valid = isinstance(value, (str, bool)) or value is None
            if isinstance(value, (int, float)):
                is_valid = -MAX_COUNT <= value <= MAX_COUNT
            if not is_valid:
                problem = f"{name}: expected text or a number from -{MAX_COUNT} to {MAX_COUNT}"
                raise FieldError("lr_scheduler_kwargs", problem, got=value)
        return arguments
