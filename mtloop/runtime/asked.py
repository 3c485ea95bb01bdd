"""What a launch asks of a sharded model: --shard_model, the FSDP options of a launch file, DeepSpeed's ZeRO stages.

Knows the launcher's environment variables. Each option is kept or refused: none is passed over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtloop.errors import UserError
from mtloop.runtime.machine import flag

if TYPE_CHECKING:
    from mtloop.config.training import HardwareConfig

# What the launcher exports of fsdp_config, the only values that hold here, and why; what is not listed is read below
# (reshard_after_forward, activation_checkpointing) or has no meaning in FSDP2. An option that is left out is fine.
FSDP_OPTIONS = {
    "FSDP_VERSION": ("2", "FSDP1 is not supported"),
    "FSDP_AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "the units are the layers of encoder and decoder"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", "the layers are found in the model that is loaded: leave it out"),
    "FSDP_IGNORED_MODULES": ("", "all parameters are sharded: leave it out"),
    "FSDP_SHARDING_STRATEGY": ("FULL_SHARD", "FSDP2 shards parameters, gradients and optimizer state"),
    "FSDP_STATE_DICT_TYPE": ("FULL_STATE_DICT", "a checkpoint holds whole tensors, so that any processes resume it"),
    "FSDP_OFFLOAD_PARAMS": ("false", "parameters in CPU memory are not supported; take more GPUs"),
    "FSDP_FORWARD_PREFETCH": ("false", "FSDP2 has no such option"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "every process reads the weights itself"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false", "activations in CPU memory are not supported"),
}
# The same of deepspeed_config.
DEEPSPEED_OPTIONS = {
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("", "DeepSpeed's own engine is not used; give zero_stage 2 or 3 alone"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("none", "optimizer state in CPU memory is not supported"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("none", "parameters in CPU memory are not supported"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": ("", "the layers are found in the model that is loaded: leave it out"),
    "ACCELERATE_GRADIENT_CLIPPING": ("", "give --max_grad_norm to train.py and leave it out there"),
}
LAUNCHED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        name: What the user is told.
        reshard_after_forward: Whether the whole parameters of a layer are given up between its forward and backward.
        activation_checkpointing: Whether a layer's backward computes its forward again.
    """

    name: str = "FSDP2"
    reshard_after_forward: bool = True
    activation_checkpointing: bool = False


def asked_sharding(hardware: HardwareConfig, precision: str | None) -> Sharding | None:
    """Return what --shard_model or the launch file asks for, None where neither does.

    Raises:
        UserError: for an option of the launch file that would not be kept, and for fp16.
    """
    is_launched = any(flag(name) for name in LAUNCHED)
    if not is_launched and not hardware.shard_model:
        return None
    if (precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "fp16":
        raise UserError(
            "--mixed_precision fp16: a sharded model is not trained with a gradient scaler; give bf16 or no"
        )
    if not is_launched:
        return Sharding()
    if flag("ACCELERATE_USE_DEEPSPEED"):
        return _zero_stage()
    _check_options(FSDP_OPTIONS)
    return Sharding(
        reshard_after_forward=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
        activation_checkpointing=flag("FSDP_ACTIVATION_CHECKPOINTING"),
    )


def _zero_stage() -> Sharding:
    """Read the stage: FSDP2 shards the same things, and keeps checkpoints and invariants that the engine would not.

    Source: Rajbhandari et al. 2020, "ZeRO", section 5: stage 2 shards optimizer state and gradients, stage 3 parameters
    too. A parameter's part that AdamW updates is its rank's in both; what differs is when the whole one is given up.
    """
    _check_options(DEEPSPEED_OPTIONS)
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("2", "3"):
        raise UserError(
            f"deepspeed: zero_stage {stage} of the launch file: give 2 or 3, or pick accelerate_configs/multi_gpu.yaml"
        )
    return Sharding(name=f"ZeRO stage {stage} by FSDP2, without DeepSpeed's engine", reshard_after_forward=stage == "3")


def _check_options(options: Mapping[str, tuple[str, str]]) -> None:
    for variable, (value, reason) in options.items():
        if (given := os.environ.get(variable, value)).lower() == value.lower():
            continue
        option = variable.lower().removeprefix("accelerate_").removeprefix("deepspeed_")
        whose = "" if option.startswith("fsdp") else "deepspeed: "
        remedy = f"; give {value}" if value else ""
        raise UserError(f"{whose}{option} {given} of the launch file: {reason}{remedy}")


@contextlib.contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Let accelerate set up plain data parallelism although the launch file asks for more: sharding is done here."""
    values = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)
