"""The configuration of a run: its groups, the rules between them, and defaults that follow from other settings."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from mtloop.config.environment import HardwareConfig, HubConfig, OutputConfig
from mtloop.config.evaluation import EvaluationConfig
from mtloop.config.fields import Field
from mtloop.config.inputs import DataConfig
from mtloop.config.model import ModelConfig, TuningConfig
from mtloop.config.training import BatchConfig, OptimizerConfig
from mtloop.errors import FieldError, UserError, missing_package

GROUPS: dict[str, Any] = {
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
# One of each is required; the demo has both.
MODEL_FIELDS = ("model_name_or_path", "config_name", "model_size")
DATA_FIELDS = ("dataset_name", "train_file")

DEFAULT_VOCAB_SIZE = 8000
DEFAULT_SENTENCES_PER_UPDATE = 32
# From scratch, one epoch of 20,000 KDE pairs, warm-up over a tenth: 500 tokens and a rate of 1e-3 ended at a validation
# loss of 4.10 (BLEU 8.4); 250 tokens at 4.02 (8.2) in 1.16 of the time; at 2e-3 neither
# 500 (6.68) nor 1,000 (6.54) learnt.
DEFAULT_TOKENS_PER_UPDATE = 500
BUDGETS = ("tokens_per_update", "sentences_per_update", "per_device_train_batch_size")
# Filled from the data and the model after resolve(): a stored config holds a value where the flags of the same run
# hold none.
RESOLVED_LATER = ("num_warmup_steps", "num_beams", "source_prefix")
LANGUAGE_FIELDS = ("source_lang", "target_lang", "source_key", "target_key", "pairs")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. Field names are unique over all groups: each is a flag and a YAML key."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    recipe: str | None = None  # the name of the recipe, or the stem of the YAML file, that it was read from
    # Splits that are scored instead of training, of valid and test: --do_eval and --do_predict without --do_train.
    scored: tuple[str, ...] = ()


def group_fields() -> Iterator[tuple[str, Field]]:
    """Yield (group, field) for every field, in the order of --help."""
    for group, kind in GROUPS.items():
        for one in dataclasses.fields(kind):
            yield group, one


FIELDS: dict[str, Field] = {one.name: one for _, one in group_fields()}
DEFAULTS = {name: one.default for name, one in FIELDS.items()}


def flat(config: Config) -> dict[str, Any]:
    """Return the value of every field by flag name."""
    return {one.name: getattr(getattr(config, group), one.name) for group, one in group_fields()}


def changed(config: Config, **values: Any) -> Config:
    """Return a copy of the config with some fields, given by flag name, replaced.

    Raises:
        FieldError: if a value is invalid or contradicts another.
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
    """Return True if the model is built from --config_name or --model_size instead of loaded."""
    return not config.model.model_name_or_path


def check_complete(config: Config) -> None:
    """Check that model, data, tokenizer and languages are given, and the rules between groups.

    Raises:
        UserError: naming what to add or change.
    """
    model, data = config.model, config.data
    if config.scored:
        _check_scored(config)
    elif not any(getattr(data, name) for name in DATA_FIELDS):
        raise UserError("--train_file: no training data is given. Add --train_file FILE or --dataset_name NAME.")
    if not any(getattr(model, name) for name in MODEL_FIELDS):
        raise UserError(
            "--model_name_or_path: no model is given. Add --model_name_or_path NAME, or train from scratch with "
            "--train_tokenizer --model_size small."
        )
    if config.tuning.lora_rank and is_from_scratch(config):
        raise FieldError(
            "lora_rank",
            "an adapter needs a pretrained model",
            got=config.tuning.lora_rank,
            remedy="Add --model_name_or_path NAME.",
        )
    if is_from_scratch(config) and not (model.tokenizer_name or model.train_tokenizer):
        name = "model_size" if model.model_size else "config_name"
        raise FieldError(
            name,
            "a model from scratch needs a tokenizer",
            got=getattr(model, name),
            remedy="Add --train_tokenizer or --tokenizer_name NAME.",
        )
    if data.dataset_config_name and not data.dataset_name:
        raise FieldError(
            "dataset_config_name",
            "only valid with --dataset_name",
            got=data.dataset_config_name,
            remedy="Add that, or leave it out.",
        )
    average_last, limit = config.evaluation.average_last, config.output.save_total_limit
    if average_last is not None and limit is not None and limit < average_last:
        raise FieldError(
            "save_total_limit",
            f"--average_last {average_last} needs as many checkpoints",
            got=limit,
            remedy=f"Give at least {average_last}.",
        )
    for name in ("source_lang", "target_lang"):
        if not getattr(data, name) and not data.source_column and not data.pairs:
            raise FieldError(
                name,
                "required",
                got="no value",
                remedy="Give a language, for example en, or --source_column and --target_column, or --pairs.",
            )


def _check_scored(config: Config) -> None:
    """Check that there is a model to score, and rows of each split.

    Raises:
        UserError: naming what to add.
    """
    flags = {"valid": ("do_eval", "validation"), "test": ("do_predict", "test")}
    for split in config.scored:
        flag, name = flags[split]
        if is_from_scratch(config):
            raise UserError(f"--{flag}: no model is given. Add --model_name_or_path NAME, or --do_train to train one.")
        if not (config.data.dataset_name or getattr(config.data, f"{name}_file")):
            raise UserError(f"--{flag}: no {name} data is given. Add --{name}_file FILE.")


def check_packages(config: Config) -> None:
    """Check that the optional packages of a run are installed, before anything is read.

    Raises:
        UserError: naming the setting and the pip command.
    """
    tracker = config.output.tracker or "all"
    needed = [("--lora_rank", "peft", "lora")] if config.tuning.lora_rank else []
    if config.evaluation.eval_engine == "ctranslate2":
        needed.append(("--eval_engine ctranslate2", "ctranslate2", "ctranslate2"))
    if tracker != "all" and not (tracker == "tensorboard" and find_spec("tensorboardX")):
        needed.append((f"--report_to {tracker}", tracker, "tensorboard" if tracker == "tensorboard" else ""))
    for flag, package, extra in needed:
        if find_spec(package) is None:
            raise missing_package(flag, package, extra)


# Resolution


def resolve(config: Config) -> Config:
    """Fill every default that follows from other settings alone; given values are kept. Idempotent.

    Settings that depend on the data, the model or the launch are filled later: `num_warmup_steps`, `num_beams`, and the
    sentences of an update that is given per device.
    """
    values = flat(config)
    return changed(config, **{name: value for name, value in _fills(config).items() if values[name] is None})


def _fills(config: Config) -> dict[str, Any]:
    from_scratch = is_from_scratch(config)
    rank = config.tuning.lora_rank
    fills: dict[str, Any] = {
        # Ten times the rate of the whole model for an adapter, as in Hu et al. 2021 (LoRA) for GPT-2.
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
    """Name the run after its recipe, its data set, or its first training file."""
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
    """List the defaults that were filled between two configs, as `learning_rate 2e-05 (fine-tuning default)`."""
    kind = "from-scratch default" if is_from_scratch(after) else "fine-tuning default"
    reasons = {
        "vocab_size": "default of a trained tokenizer",
        "val_max_target_length": "as max_target_length",
        "output_dir": "after the recipe" if after.recipe else "after the data",
    }
    if after.tuning.lora_rank:
        reasons |= {"learning_rate": "LoRA default", "lora_alpha": "twice the rank"}
    given = flat(before)
    return [
        f"{name} {_shown(value)} ({reasons.get(name, kind)})"
        for name, value in flat(after).items()
        if given[name] is None and value is not None
    ]


def as_spelled(stored: Config, asked: Config) -> Config:
    """Return the config asked for with the languages spelled as in the stored one where they are the same ones.

    Names of scores and files, and the keys of the rows, are then those of the run.
    """
    old, new = flat(stored), flat(asked)
    same = {
        name: old[name]
        for name in LANGUAGE_FIELDS
        if old[name] and new[name] and old[name] != new[name] and _are_same_languages(name, old[name], new[name])
    }
    return changed(asked, **same) if same else asked


def _are_same_languages(name: str, old: str, new: str) -> bool:
    """Compare the languages of a setting; of --pairs one by one."""
    from mtloop.languages import is_same_language  # its tables take longer to import than all of config/

    olds, news = (text.replace("-", ",").split(",") if name == "pairs" else [text] for text in (old, new))
    codes = zip(olds, news, strict=False)
    return len(olds) == len(news) and all(is_same_language(one.strip(), other.strip()) for one, other in codes)


def differences(stored: Config, asked: Config) -> list[str]:
    """List the same-run settings in which two resolved configs differ.

    Three cases count as equal, and the stored value is kept: a value from the data or the model (`RESOLVED_LATER`)
    where none is given, a language in another spelling, and a `sentences_per_update` from the same
    per_device_train_batch_size x gradient_accumulation_steps on another number of processes.

    Args:
        stored: The config in the run folder.
        asked: The config of the run that resumes.

    Returns:
        Lines such as `--learning_rate: 0.001 in the run folder, 0.002 asked`.
    """
    old, new = flat(stored), flat(as_spelled(stored, asked))
    lines = []
    for name, one in FIELDS.items():
        if not one.metadata["same_run"] or old[name] == new[name] or (name in RESOLVED_LATER and new[name] is None):
            continue
        per_device = asked.batch.pairs_per_device if name == "sentences_per_update" else None
        if per_device is not None and per_device == stored.batch.pairs_per_device:
            continue
        now = _shown(new[name]) if per_device is None or new[name] is not None else f"{per_device} a process"
        lines.append(f"--{name}: {_shown(old[name])} in the run folder, {now} asked")
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, (list, tuple)) else str(value)
