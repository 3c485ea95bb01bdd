"""What a run meets outside the model: its folder, logs, the Hub, the hardware. Fields and their ranges."""

from dataclasses import dataclass
from typing import Literal

from mtloop.config.checks import Group, above_zero, at_least, between, not_empty, setting
from mtloop.errors import FieldError

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
