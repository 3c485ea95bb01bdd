"""The whole config: the groups put together, by name, and what they need of each other."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mtloop.config.inputs import DataConfig, ModelConfig
from mtloop.config.surroundings import HardwareConfig, HubConfig, OutputConfig
from mtloop.config.training import BatchConfig, EvaluationConfig, OptimizerConfig
from mtloop.config.tuning import TuningConfig
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
