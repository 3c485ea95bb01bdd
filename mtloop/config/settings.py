"""The whole configuration: its groups, the rules between them, defaults that follow from other settings."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mtloop.config.inputs import DataConfig, ModelConfig, TuningConfig
from mtloop.config.training import (
    BatchConfig,
    EvaluationConfig,
    HardwareConfig,
    HubConfig,
    OptimizerConfig,
    OutputConfig,
)
from mtloop.errors import FieldError, UserError

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "tuning": TuningConfig,
    "data": DataConfig,
    "batch": BatchConfig,
    "optimizer": OptimizerConfig,
    "evaluation": EvaluationConfig,
    "output": OutputConfig,
    "hub": HubConfig,
    "hardware": HardwareConfig,
}

# Any of these says what to train or on what; without one the demo is meant.
MODEL_FIELDS = ("model_name_or_path", "config_name", "model_size")
DATA_FIELDS = ("dataset_name", "train_file")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run is told. Field names are unique over all groups: each is a flag and a YAML key."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    recipe: str | None = None  # the recipe's name, or the stem of the YAML file, that it came from


def group_fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield (group, field) for every field, in the order of --help."""
    for group, kind in GROUPS.items():
        for one in dataclasses.fields(kind):
            yield group, one


DEFAULTS = {one.name: one.default for _, one in group_fields()}


def flat(config: Config) -> dict[str, Any]:
    """Return every field's value by flag name."""
    return {one.name: getattr(getattr(config, group), one.name) for group, one in group_fields()}


def changed(config: Config, **values: Any) -> Config:
    """Return the config with some fields, given by flag name, replaced.

    Raises:
        FieldError: A value is out of range or contradicts another.
    """
    groups = {}
    for group, kind in GROUPS.items():
        own = {one.name: values.pop(one.name) for one in dataclasses.fields(kind) if one.name in values}
        if own:
            groups[group] = dataclasses.replace(getattr(config, group), **own)
    if values:
        raise TypeError(f"no such field: {', '.join(values)}")
    return dataclasses.replace(config, **groups)


def is_from_scratch(config: Config) -> bool:
    """Tell whether the model is built (from --config_name or --model_size) and not loaded."""
    return not config.model.model_name_or_path


def check_complete(config: Config) -> None:
    """Check that the config says enough to start: a model, data, a tokenizer and the languages.

    Raises:
        UserError: Something is missing; the line says what to add.
    """
    model, data = config.model, config.data
    if not any(getattr(data, name) for name in DATA_FIELDS):
        raise UserError("no training data: give --dataset_name NAME or --train_file FILE")
    if not any(getattr(model, name) for name in MODEL_FIELDS):
        raise UserError(
            "no model: give --model_name_or_path NAME, or train from scratch with --train_tokenizer --model_size small"
        )
    if config.tuning.lora_rank and is_from_scratch(config):
        raise FieldError(
            "lora_rank",
            f"{config.tuning.lora_rank}: an adapter needs a pretrained model beside it: give --model_name_or_path NAME",
        )
    if is_from_scratch(config) and not (model.tokenizer_name or model.train_tokenizer):
        name = "model_size" if model.model_size else "config_name"
        raise FieldError(
            name,
            f"{getattr(model, name)}: a model from scratch needs a tokenizer: "
            "add --train_tokenizer or --tokenizer_name NAME",
        )
    if data.dataset_config_name and not data.dataset_name:
        raise FieldError("dataset_config_name", f"{data.dataset_config_name}: only with --dataset_name")
    average_last, limit = config.evaluation.average_last, config.output.save_total_limit
    if average_last is not None and limit is not None and limit < average_last:
        raise FieldError(
            "save_total_limit", f"{limit}: --average_last {average_last} needs as many checkpoints; give at least that"
        )
    for name in ("source_lang", "target_lang"):
        if not getattr(data, name) and not data.source_column and not data.pairs:
            raise FieldError(name, "not given: give a code, as en, or --source_column and --target_column, or --pairs")


DEFAULT_VOCAB_SIZE = 8000
DEFAULT_SENTENCES_PER_UPDATE = 32
# From scratch, one epoch of 20,000 KDE pairs, warm-up over a tenth: 500 tokens and a rate of 1e-3 ended at a validation
# loss of 4.10 (BLEU 8.4); 250 tokens at 4.02 (8.2) in 1.16 of the time; at 2e-3 neither
# 500 (6.68) nor 1,000 (6.54) learnt.
DEFAULT_TOKENS_PER_UPDATE = 500

BUDGETS = ("tokens_per_update", "sentences_per_update", "per_device_train_batch_size")
# The data and the model decide these after the config was resolved: a stored config holds a number where the flags of
# the same run hold none.
RESOLVED_LATER = ("num_warmup_steps", "num_beams", "source_prefix")

SAME_RUN = tuple(one.name for _, one in group_fields() if one.metadata["same_run"])


def resolve(config: Config) -> Config:
    """Fill every default that follows from other fields alone; what is given stays. Idempotent.

    What depends on the data, the model or the launch (`num_warmup_steps`, `num_beams`, the sentences of an update given
    per device) stays as it is.
    """
    fills = _fills(config)
    values = flat(config)
    return changed(config, **{name: value for name, value in fills.items() if values[name] is None})


def _fills(config: Config) -> dict[str, Any]:
    from_scratch = is_from_scratch(config)
    rank = config.tuning.lora_rank
    fills: dict[str, Any] = {
        # An adapter starts from nothing: ten times the whole model's rate, as in Hu et al. 2021 (LoRA) for GPT-2.
        "learning_rate": 1e-3 if from_scratch else 2e-4 if rank else 2e-5,
        "adam_beta2": 0.98 if from_scratch else 0.999,
        "eval_on_start": not from_scratch,
        "val_max_target_length": config.data.max_target_length,
        "output_dir": f"runs/{run_name(config)}",
    }
    if rank:
        fills["lora_alpha"] = 2 * rank
    if config.model.train_tokenizer:
        fills["vocab_size"] = DEFAULT_VOCAB_SIZE
    if not any(getattr(config.batch, name) for name in BUDGETS):
        name = "tokens_per_update" if from_scratch else "sentences_per_update"
        fills[name] = DEFAULT_TOKENS_PER_UPDATE if from_scratch else DEFAULT_SENTENCES_PER_UPDATE
    return fills


def run_name(config: Config) -> str:
    """Name the run after its recipe, else after its data set, else after its first training file."""
    if config.recipe:
        return config.recipe
    if config.data.dataset_name:
        # Hub names are owner/name@revision, and a revision may hold slashes.
        path = config.data.dataset_name.split("@")[0].replace("\\", "/").rstrip("/")
        return path.split("/")[-1].replace(":", "-") or "run"
    if config.data.train_file:
        file_name = config.data.train_file[0].replace("\\", "/").split("/")[-1]
        return file_name.lstrip(".").split(".")[0].replace(":", "-") or "run"
    return "run"


def resolved_lines(before: Config, after: Config) -> list[str]:
    """Name every default that was filled between two configs, as `learning_rate 2e-05 (fine-tuning default)`."""
    kind = "from-scratch default" if is_from_scratch(after) else "fine-tuning default"
    reasons = {
        "vocab_size": "default of a trained tokenizer",
        "val_max_target_length": "as max_target_length",
        "output_dir": "after the recipe" if after.recipe else "after the data",
    }
    if after.tuning.lora_rank:
        reasons |= {"learning_rate": "LoRA default", "lora_alpha": "twice the rank"}
    asked = flat(before)
    return [
        f"{name} {_shown(value)} ({reasons.get(name, kind)})"
        for name, value in flat(after).items()
        if asked[name] is None and value is not None
    ]


def differences(stored: Config, asked: Config) -> list[str]:
    """Name every same-run field in which two resolved configs differ.

    Two things that look different are not: a number that the data or the model gave (`RESOLVED_LATER`) where none was
    asked, and a `sentences_per_update` that both derived from the same per_device_train_batch_size x
    gradient_accumulation_steps on other numbers of processes. In both the stored number is the one to go on with.

    Args:
        stored: The config in the run folder.
        asked: The config of the run that wants to go on in it.

    Returns:
        Lines such as `--learning_rate: 0.001 in the run folder, 0.002 asked`; none when the run may go on.
    """
    old, new = flat(stored), flat(asked)
    lines = []
    for name in SAME_RUN:
        if old[name] == new[name] or (name in RESOLVED_LATER and new[name] is None):
            continue
        if name == "sentences_per_update" and _same_device_batch(stored, asked):
            continue
        lines.append(f"--{name}: {_shown(old[name])} in the run folder, {_asked_text(name, asked)} asked")
    return lines


def _device_batch(config: Config) -> int | None:
    """Return sentence pairs a process and update, None when the update is not given that way."""
    size = config.batch.per_device_train_batch_size
    return size * (config.batch.gradient_accumulation_steps or 1) if size else None


def _same_device_batch(stored: Config, asked: Config) -> bool:
    return _device_batch(stored) is not None and _device_batch(stored) == _device_batch(asked)


def _asked_text(name: str, asked: Config) -> str:
    if name == "sentences_per_update" and asked.batch.sentences_per_update is None and _device_batch(asked):
        return f"{_device_batch(asked)} a process"
    return _shown(flat(asked)[name])


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, (list, tuple)) else str(value)
