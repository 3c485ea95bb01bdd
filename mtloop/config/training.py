"""Settings of updates, optimizer, evaluation, output, the Hub and the hardware."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from mtloop.config.fields import (
    Group,
    above_zero,
    at_least,
    at_least_or_auto,
    below_one,
    between,
    names,
    not_empty,
    number_or_auto,
    separate,
    setting,
    zero_or_more,
    zero_to_inf,
)
from mtloop.errors import FieldError

# transformers.SchedulerType without the two that are driven by a metric. The enum itself would import torch.
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
MICRO_BATCH_TOKENS = 4096
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
# schedule -> the arguments of which it needs one, and an example of it
SCHEDULE_NEEDS = {
    "cosine_with_min_lr": (("min_lr", "min_lr_rate"), '{"min_lr_rate": 0.1}'),
    "cosine_warmup_with_min_lr": (("min_lr", "min_lr_rate"), '{"min_lr_rate": 0.1}'),
    "warmup_stable_decay": (("num_decay_steps",), '{"num_decay_steps": 1000}'),
}


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Group):
    """How much goes into one update, over all processes, and into one forward."""

    _argument_group_name = "batches"

    tokens_per_update: int | None = setting(
        None,
        "target tokens of one update over all processes (none: 500 from scratch, else by sentences)",
        same_run=True,
        check=at_least(1),
    )
    sentences_per_update: int | None = setting(
        None,
        "sentence pairs of one update over all processes (none: 32 when fine-tuning, else by tokens)",
        same_run=True,
        check=at_least(1),
    )
    # Not same_run: the product of these two and of the processes is, as sentences_per_update.
    per_device_train_batch_size: int | None = setting(
        None,
        "sentence pairs a process and accumulation step: times both this is --sentences_per_update (none: not used)",
        check=at_least(1),
    )
    gradient_accumulation_steps: int | None = setting(
        None, "multiplies --per_device_train_batch_size and only that (none: 1)", check=at_least(1)
    )
    max_tokens_per_micro_batch: int | str = setting(
        MICRO_BATCH_TOKENS,
        "padded tokens of one forward on one device: memory, not the result; auto: what the device has room for",
        check=at_least_or_auto(1),
        parse=number_or_auto,
    )
    micro_batch_overhead: int | None = setting(
        None,
        "what a forward and backward cost beyond their padded tokens, in tokens: an update is divided so that the sum "
        "is least; speed, not the result (none: by the kind of device)",
        check=between(0, 1_000_000),
    )
    pad_to: Literal["fixed", "buckets", "longest"] | None = setting(
        None,
        "fixed: one shape for all forwards; buckets: a few; longest: each its own (none: buckets on XLA, else longest)",
    )
    dataloader_num_workers: int = setting(0, "processes a rank that prepare batches", check=at_least(0))

    def __post_init__(self) -> None:
        """Refuse values and pairs of values that contradict each other."""
        super().__post_init__()
        for other in ("sentences_per_update", "per_device_train_batch_size"):
            if self.tokens_per_update and getattr(self, other):
                raise FieldError(
                    "tokens_per_update",
                    f"{self.tokens_per_update}: --{other} {getattr(self, other)} is given: leave one out",
                )
        if self.gradient_accumulation_steps and not self.per_device_train_batch_size:
            raise FieldError(
                "gradient_accumulation_steps",
                f"{self.gradient_accumulation_steps}: give --per_device_train_batch_size too, or leave it out: "
                "an update is divided into forwards of --max_tokens_per_micro_batch by itself",
            )
        # A stored configuration holds both: what was asked per device, and what it came to over the processes.
        per_device = (self.per_device_train_batch_size or 0) * (self.gradient_accumulation_steps or 1)
        if per_device and (self.sentences_per_update or 0) % per_device:
            raise FieldError(
                "sentences_per_update",
                f"{self.sentences_per_update}: --per_device_train_batch_size asks for multiples of {per_device}: "
                "leave one out",
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """AdamW, its schedule and how long it runs."""

    _argument_group_name = "optimizer"

    learning_rate: float | None = setting(
        None,
        "highest learning rate (none: 2e-5 when fine-tuning, 2e-4 with --lora_rank, 1e-3 from scratch)",
        same_run=True,
        check=above_zero,
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", same_run=True, check=zero_or_more)
    adam_beta1: float = setting(0.9, "decay of AdamW's first moment", same_run=True, check=below_one)
    adam_beta2: float | None = setting(
        None,
        "decay of AdamW's second moment (none: 0.999 when fine-tuning, 0.98 from scratch)",
        same_run=True,
        check=below_one,
    )
    adam_epsilon: float = setting(1e-8, "AdamW epsilon", same_run=True, check=above_zero)
    max_grad_norm: float = setting(
        1.0, "norm to which gradients are clipped; 0 or inf never clips", same_run=True, check=zero_to_inf
    )
    num_train_epochs: int = setting(3, "passes over the training pairs", same_run=True, check=at_least(1))
    max_train_steps: int | None = setting(
        None, "updates, in place of --num_train_epochs (none: all epochs)", same_run=True, check=at_least(1)
    )
    lr_scheduler_type: str = setting("linear", f"schedule: {', '.join(SCHEDULES)}", same_run=True)
    lr_scheduler_kwargs: str | None = setting(
        None, "arguments of the schedule, a JSON object (none: its own defaults)", same_run=True
    )
    num_warmup_steps: int | None = setting(
        None,
        "updates of warm-up (none: 0 when fine-tuning, from scratch a tenth of all and at most 4000)",
        same_run=True,
        check=at_least(0),
    )
    label_smoothing_factor: float = setting(0.0, "label smoothing, 0 to below 1", same_run=True, check=below_one)
    skip_nonfinite: int = setting(
        0, "updates with a non-finite gradient that are skipped before the run fails", check=at_least(0)
    )

    def __post_init__(self) -> None:
        """Refuse values and pairs of values that contradict each other."""
        super().__post_init__()
        name = self.lr_scheduler_type
        if name in METRIC_SCHEDULES:
            raise FieldError("lr_scheduler_type", f"{name} follows a metric: use one of {', '.join(SCHEDULES)}")
        if name not in SCHEDULES:
            raise FieldError("lr_scheduler_type", f"{name!r}: use one of {', '.join(SCHEDULES)}")
        given = self.schedule_arguments()
        needed, example = SCHEDULE_NEEDS.get(name, ((), ""))
        if needed and not any(argument in given for argument in needed):
            raise FieldError(
                "lr_scheduler_type", f"{name} needs {' or '.join(needed)}: add --lr_scheduler_kwargs '{example}'"
            )

    def schedule_arguments(self) -> dict[str, Any]:
        """Return `lr_scheduler_kwargs` as a dict, empty when not given.

        Raises:
            FieldError: The text is not a JSON object.
        """
        if self.lr_scheduler_kwargs is None:
            return {}
        try:
            arguments = json.loads(self.lr_scheduler_kwargs)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise FieldError(
                "lr_scheduler_kwargs", f"{self.lr_scheduler_kwargs!r}: give a JSON object, as '{{\"num_cycles\": 2}}'"
            )
        return arguments


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Group):
    """When the model is evaluated, how it translates then, and what counts as best."""

    _argument_group_name = "evaluation"

    eval_steps: int | None = setting(None, "updates between evaluations (none: after every epoch)", check=at_least(1))
    eval_on_start: bool | None = setting(
        None, "evaluate before the first update (none: yes when the model is pretrained)", nargs="?", const=True
    )
    num_beams: int | None = setting(
        None, "beams of the search (none: the model's own, else 4)", same_run=True, check=at_least(1)
    )
    val_max_target_length: int | None = setting(
        None, "longest translation, in tokens (none: --max_target_length)", same_run=True, check=between(1, 65_536)
    )
    max_length_ratio: float | None = setting(
        None,
        "ends a translation at this many pieces for each token of its source, and 10 (none: no such bound)",
        same_run=True,
        check=above_zero,
    )
    eval_max_tokens: int | None = setting(
        None,
        "padded source tokens in one evaluation batch; bounds memory "
        "(none: 1000 on a CPU, 2000 on XLA, otherwise 2000 to 16000 depending on free memory)",
        check=at_least(1),
    )
    eval_engine: Literal["generate", "ctranslate2"] = setting(
        "generate", "translates in evaluations: generate(), or CTranslate2 on a converted copy (faster; its package)"
    )
    metrics: list[str] | None = setting(
        None, "scores of the translations; `mtloop evaluate --help` lists them (none: bleu chrf)", check=names
    )
    metric_for_best_model: str = setting(
        "bleu",
        "score that selects the best checkpoint: one of --metrics, or eval_loss",
        same_run=True,
        check=not_empty,
    )
    early_stopping_patience: int | None = setting(
        None, "evaluations without a better score before the run stops (none: never)", check=at_least(1)
    )
    load_best_model_at_end: bool = setting(False, "end with the best checkpoint's weights instead of the last ones")
    average_last: int | None = setting(
        None, "end with the average of this many last epochs' weights (none: the last ones)", check=at_least(2)
    )

    def __post_init__(self) -> None:
        """Refuse two ways to end, and what the engine does not have."""
        super().__post_init__()
        if self.metrics is not None:
            object.__setattr__(self, "metrics", list(dict.fromkeys(separate(self.metrics))))
        if self.eval_engine == "ctranslate2" and self.max_length_ratio is not None:
            raise FieldError("eval_engine", "ctranslate2: --max_length_ratio is of generate alone; leave one out")
        if self.average_last is not None and self.load_best_model_at_end:
            raise FieldError(
                "average_last", f"{self.average_last}: --load_best_model_at_end ends with another model; leave one out"
            )


# The values of accelerate.utils.LoggerType, which would import torch.
TRACKERS = (
    "all",
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)


@dataclass(frozen=True, kw_only=True)
class OutputConfig(Group):
    """The run folder, its checkpoints and the log."""

    _argument_group_name = "output"

    output_dir: str | None = setting(
        None, "the run folder (none: runs/ and the recipe's or data's name)", check=not_empty
    )
    save_steps: int | None = setting(
        None, "updates between checkpoints (none: only at the end of each epoch)", check=at_least(1)
    )
    save_total_limit: int | None = setting(
        None, "checkpoints kept; the best one is never deleted (none: all)", check=at_least(1)
    )
    resume_from_checkpoint: str | None = setting(
        None,
        "go on from latest, best, epoch_N, step_N, a folder or hub:NAME[@REVISION] (none: the newest there is)",
        check=not_empty,
    )
    allow_changed: bool = setting(
        False, "go on in a run folder although settings, data or tokenizer changed; run.json notes what did"
    )
    logging_steps: int = setting(10, "updates between log lines", check=at_least(1))
    with_tracking: bool = setting(False, "report to a tracker")
    report_to: str = setting("all", f"tracker, used with --with_tracking: {', '.join(TRACKERS)}", check=not_empty)

    def __post_init__(self) -> None:
        """Refuse an unknown tracker."""
        super().__post_init__()
        # TrainingArguments' word for no tracker: harmless in a copied command line, a contradiction with tracking on.
        if self.report_to == "none":
            if self.with_tracking:
                raise FieldError("report_to", "none: leave --with_tracking out to report nowhere")
        elif self.report_to not in TRACKERS:
            raise FieldError("report_to", f"{self.report_to!r}: give one of {', '.join(TRACKERS)}")


@dataclass(frozen=True, kw_only=True)
class HubConfig(Group):
    """Publishing to the Hugging Face Hub. The token comes from HF_TOKEN or `hf auth login`, never from here."""

    _argument_group_name = "hub"

    push_to_hub: bool = setting(False, "push the model to the Hub while training goes on")
    hub_model_id: str | None = setting(
        None, "repository, name or owner/name (none: the run folder's name)", check=not_empty
    )
    hub_private_repo: bool = setting(False, "create the repository as a private one")
    hub_revision: str = setting("main", "branch that is pushed to", check=not_empty)
    hub_license: str | None = setting(None, "license for the card (none: the base model's)", check=not_empty)
    hub_strategy: Literal["every_save", "end", "checkpoint"] = setting(
        "every_save",
        "every_save: each epoch and the end; end: the end alone; checkpoint: as every_save, with what a resume needs",
    )
    hub_overwrite: bool = setting(False, "let the tags of another run in the repository give way")
    push_timeout: float = setting(
        600.0,
        "seconds after which a push is cut off and tried again, and that the end of the run waits for pushes",
        check=above_zero,
    )


@dataclass(frozen=True, kw_only=True)
class HardwareConfig(Group):
    """Seed, precision, processes."""

    _argument_group_name = "hardware"

    seed: int = setting(42, "seed of the weights, the order of the data and dropout", same_run=True, check=at_least(0))
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = setting(
        None,
        "arithmetic of forward and backward; auto: the best that a GPU has, on a CPU the faster of fp32 and bf16, "
        "measured (none: what the launch file says, auto if that is no)",
    )
    deterministic: bool = setting(
        False, "let a GPU compute the same bits every time, more slowly; a CPU does in any case"
    )
    use_cpu: bool = setting(False, "train on the CPU although an accelerator is present")
    shard_model: bool = setting(
        False,
        "shard parameters, gradients and optimizer state over the processes (FSDP2), as a launch file with FSDP does",
    )
    cpu_threads: int | None = setting(
        None, "CPU threads a process (none: the cores divided by the local processes)", check=between(1, 1_024)
    )
    expect_processes: int | None = setting(
        None, "refuse to start on any other number of processes (none: take what was launched)", check=at_least(1)
    )
    process_timeout: float = setting(
        1800.0, "seconds that processes wait for each other before the run fails", check=above_zero
    )
