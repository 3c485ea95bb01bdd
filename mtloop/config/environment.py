"""Settings of output, the Hub and the hardware."""

from dataclasses import dataclass

from mtloop.config.fields import MAX_COUNT, MAX_SECONDS, MAX_SEED, Group, setting

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

    title = "output"

    output_dir: str | None = setting(None, "run folder", unset="runs/ and the name of the recipe or the data")
    save_steps: int | None = setting(
        None,
        "updates between checkpoints",
        unset="one checkpoint per epoch",
        unit="steps",
        minimum=1,
        maximum=MAX_COUNT,
    )
    save_total_limit: int | None = setting(
        None,
        "maximum number of checkpoints kept, besides the best one",
        unset="all are kept",
        unit="checkpoints",
        minimum=1,
        maximum=MAX_COUNT,
    )
    resume_from_checkpoint: str | None = setting(
        None,
        "checkpoint to resume from: latest, best, epoch_N, step_N, a folder or hub:NAME[@REVISION]",
        unset="the newest one of the run folder, if there is one",
    )
    allow_changed: bool = setting(
        False, "resume with changed settings, data or tokenizer; run.json records the changes"
    )
    logging_steps: int = setting(
        10,
        "updates between lines of metrics.jsonl and changes of the bar; a log has one of them every 30 s",
        unit="steps",
        minimum=1,
        maximum=MAX_COUNT,
    )
    num_samples: int = setting(3, "translations shown at the end", unit="samples", minimum=0, maximum=1_000)
    report_to: str | None = setting(
        None, "tracker to report to; all is every one that is installed", unset="none", choices=(*TRACKERS, "none")
    )

    @property
    def tracker(self) -> str | None:
        """The tracker that is reported to; None for none."""
        return None if self.report_to == "none" else self.report_to


@dataclass(frozen=True, kw_only=True)
class HubConfig(Group):
    """Publishing to the Hugging Face Hub. The token comes from HF_TOKEN or `hf auth login`, never from here."""

    title = "hub"

    push_to_hub: bool = setting(False, "push the model to the Hub during training")
    hub_model_id: str | None = setting(
        None, "repository: a name or owner/name", unset="your account and the name of the run folder"
    )
    hub_private_repo: bool = setting(False, "create the repository as a private one")
    hub_revision: str = setting("main", "branch to push to")
    hub_license: str | None = setting(None, "license in the model card", unset="the one of the base model")
    hub_strategy: str = setting(
        "every_save",
        "what is pushed: every_save (each epoch and the end), end (the end only), or checkpoint (as every_save, with "
        "the state that a resume needs)",
        choices=("every_save", "end", "checkpoint"),
    )
    hub_overwrite: bool = setting(False, "replace the tags of another run in the repository")
    push_timeout: float = setting(
        600.0,
        "time limit of a push, which is then repeated, and of the wait for pushes at the end, in seconds",
        unit="seconds",
        above=0,
        maximum=MAX_SECONDS,
    )


@dataclass(frozen=True, kw_only=True)
class HardwareConfig(Group):
    """Random seed, precision and processes."""

    title = "hardware"

    seed: int = setting(
        42,
        "random seed of weights, data order and dropout",
        unit="seed",
        same_run=True,
        minimum=0,
        maximum=MAX_SEED,
    )
    mixed_precision: str | None = setting(
        None,
        "precision of forward and backward; auto chooses the best of a GPU, and measures the faster of fp32 and bf16 "
        "on a CPU",
        unset="the value of the launch file; auto if it is no",
        choices=("no", "bf16", "fp16", "auto"),
    )
    deterministic: bool = setting(False, "use deterministic algorithms on a GPU, which are slower; a CPU always does")
    use_cpu: bool = setting(False, "train on the CPU even if an accelerator is available")
    shard_model: bool = setting(False, "shard parameters, gradients and optimizer state over the processes (FSDP2)")
    cpu_threads: int | None = setting(
        None,
        "CPU threads per process",
        unset="the cores divided by the processes of the machine",
        unit="threads",
        minimum=1,
        maximum=1_024,
    )
    expect_processes: int | None = setting(
        None,
        "required number of processes; any other number is refused",
        unset="any number",
        unit="processes",
        minimum=1,
        maximum=1_000_000,
    )
    process_timeout: float = setting(
        1800.0,
        "time after which a process that waits for another one fails, in seconds",
        unit="seconds",
        above=0,
        maximum=MAX_SECONDS,
    )
