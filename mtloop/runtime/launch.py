"""Read what a launch asks for and what the machine has: device, cores, memory, precision, sharding.

Must not know ranks beyond what the launcher's environment variables say.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import Accelerator
from torch.optim import AdamW

from mtloop.errors import UserError
from mtloop.runtime.forks import is_limited_to_one_thread
from mtloop.runtime.xla import DeviceAdamW

if TYPE_CHECKING:
    from mtloop.config.environment import HardwareConfig


# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def flag(name: str) -> bool:
    """Return True if an environment variable is set to 1, true or yes."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def check_environment(*, is_cpu: bool, shard_model: bool) -> None:
    """Refuse launches that accelerate would run wrongly, silently or after a long wait."""
    asked = [name for name in ("fsdp", "deepspeed") if flag(f"ACCELERATE_USE_{name.upper()}")]
    if is_cpu and asked and not shard_model:
        raise UserError(
            f"{asked[0]}: the launch file asks for it, but this machine has no accelerator. Use multi_cpu.yaml or "
            "cpu.yaml (`mtloop configs` lists them), or add --shard_model to shard over processes on the CPU."
        )
    if (world_size := os.environ.get("WORLD_SIZE", "1")) != "1" and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE: set to {world_size} without MASTER_ADDR. Start with `mtloop launch multi_gpu train ...` or "
            "`accelerate launch` and a launch file, or unset WORLD_SIZE."
        )


def check_precision(precision: str | None) -> None:
    """Refuse fp8, which the launch file may ask for: accelerate would exchange the layers of the model.

    Raises:
        UserError: naming the flag.
    """
    if (precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")).lower() == "fp8":
        raise UserError("--mixed_precision: not supported, in the launch file too (got fp8). Give bf16, fp16 or no.")


def asked_dynamo() -> str | None:
    """Return the backend of torch dynamo that the launch file asks for; it is not used.

    Every batch has another shape, and each would be compiled.
    """
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    return None if backend in ("", "no") else backend


def use_deterministic_algorithms(is_wanted: bool) -> None:
    """Make torch use deterministic algorithms, and raise an error where it has none; or stop doing so.

    On a GPU the gradients of embeddings and attention are otherwise summed in the order in which threads arrive.
    """
    if is_wanted:
        # cuBLAS asks for it, before the first matrix product; 8 buffers of 4 MiB, from its documentation.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_wanted)


def complete_fp16(accelerator: Accelerator) -> None:
    """Add autocast and the loss scaler that accelerate silently omits for fp16 on a CPU.

    Before prepare(), which hands both on. Torch has them there since 2.3.
    """
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")


def has_accelerator() -> bool:
    """Return True if this machine has an accelerator."""
    # torch_xla and others register themselves with torch.accelerator; TPUs are seen through PJRT_DEVICE.
    return (
        torch.accelerator.is_available()
        or os.environ.get("ACCELERATE_USE_TPU") == "true"
        or "PJRT_DEVICE" in os.environ
    )


def num_usable_cores() -> int:
    """Return how many cores this process may use: its affinity, and the CPU quota of its container rounded down.

    With more threads than the quota all of them would be stopped for the rest of each period.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, int(min(num_cores, cpu_quota())))


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the cores' worth of time that the control groups of this process allow it, infinity without a limit.

    The limits of all groups above count too. In a container the path may be that of the host, which is not there: the
    root is then the group of the container.

    Source: the Linux kernel's Documentation/admin-guide/cgroup-v2.rst, and scheduler/sched-bwc.rst for version 1.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError):  # no control groups: another system
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for root in (groups / controllers, groups / "cpu") if controllers else (groups, groups / "unified"):
                parts = Path(path.lstrip("/")).parts
                quotas += [_quota_of(root.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return min(quotas)


def _quota_of(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):  # not of version 2, or without a limit ("max")
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # not of version 1
        quota_us = int((group / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        if quota_us > 0:  # -1: no limit
            return quota_us / int((group / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    return math.inf


def set_threads(cpu_threads: int | None) -> int:
    """Set the number of threads to this process's share of the cores; plain `accelerate launch` sets one."""
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_cores = 1 if is_limited_to_one_thread() else num_usable_cores()
    num_threads = cpu_threads or max(1, num_cores // num_local_ranks)
    # MKL's vector mathematics initializes in its first call, without a lock: where two threads come to it at once, one
    # may compute less exactly (in 7 of 4,272 first calls of exp on busy cores half of the rows were 1.5e-4 off; after a
    # call in one thread in 0 of 10,496), and the loss of the first update is then not that of the next run.
    torch.exp(torch.zeros(1))
    torch.set_num_threads(num_threads)
    return num_threads


def available_memory() -> int:
    """Return the bytes of host memory still available to this process, within the limit of its container."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no control group of version 2, or one without a limit ("max")
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory still available to this process on a device."""
    if device.type != "cuda":  # a CPU, and what shares its memory; the processes of a machine divide it
        return available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: every batch allocates and frees the same hundreds of megabytes."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc: macOS, Windows, musl
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def avoid_planned_attention() -> None:
    """Disable cuDNN's attention kernels: cuDNN plans on the host for every new shape, and every batch has a new one.

    On an H200 (torch 2.11, 6 + 6 layers, 45,700 padded tokens an update) that took 5 ms a call, 180 ms of an update of
    394 ms, of which the device computed for 73 ms. torch's memory-efficient kernels take any shape and mask.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def asked_precision(flag_value: str | None) -> Any:
    """Return the precision to train in: the flag's, else the launch file's, else "auto".

    The launcher exports "no" whether or not its file sets it: fp32 must be set by the flag.
    """
    of_file = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return flag_value or ("auto" if of_file == "no" else of_file)


def choose_precision(*, is_cpu: bool) -> str:
    """Return the best precision that the device has; on a CPU fp32, until the trainer has measured which is faster."""
    if is_cpu:
        return "no"
    if not torch.cuda.is_available():
        return "bf16" if torch.accelerator.current_accelerator() is None else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def build_adamw(groups: list[dict[str, Any]], **options: Any) -> AdamW:
    """Build AdamW for the device of its parameters: fused on CPU and CUDA, one program on XLA."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if "xla" in devices:
        return DeviceAdamW(groups, **options)
    return AdamW(groups, fused=devices <= {"cpu", "cuda"}, **options)


# Options of fsdp_config that the launcher exports, with the only supported value and the reason. Options not listed are
# read below (reshard_after_forward, activation_checkpointing) or have no meaning in FSDP2. Absent options are fine.
FSDP_OPTIONS = {
    "FSDP_VERSION": ("2", "FSDP1 is not supported"),
    "FSDP_AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "the units are the layers of encoder and decoder"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", "the layers are found in the loaded model"),
    "FSDP_IGNORED_MODULES": ("", "all parameters are sharded"),
    "FSDP_SHARDING_STRATEGY": ("FULL_SHARD", "FSDP2 shards parameters, gradients and optimizer state"),
    "FSDP_STATE_DICT_TYPE": ("FULL_STATE_DICT", "a checkpoint holds whole tensors, so that any processes resume it"),
    "FSDP_OFFLOAD_PARAMS": ("false", "parameters in CPU memory are not supported"),
    "FSDP_FORWARD_PREFETCH": ("false", "FSDP2 has no such option"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "every process reads the weights itself"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false", "activations in CPU memory are not supported"),
}
# The same of deepspeed_config.
DEEPSPEED_OPTIONS = {
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("", "DeepSpeed's engine is not used, only zero_stage 2 or 3"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("none", "optimizer state in CPU memory is not supported"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("none", "parameters in CPU memory are not supported"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": ("", "the layers are found in the loaded model"),
    "ACCELERATE_GRADIENT_CLIPPING": ("", "use --max_grad_norm of train.py"),
}
LAUNCHED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Sharding of a model.

    Attributes:
        name: Printed name.
        reshard_after_forward: Whether the whole parameters of a layer are given up between its forward and backward.
        activation_checkpointing: Whether a layer's backward computes its forward again.
    """

    name: str = "FSDP2"
    reshard_after_forward: bool = True
    activation_checkpointing: bool = False


def asked_sharding(hardware: HardwareConfig, precision: str | None) -> Sharding | None:
    """Return the sharding that --shard_model or the launch file asks for, else None.

    Raises:
        UserError: for an option of the launch file that would not be kept, and for fp16.
    """
    is_launched = any(flag(name) for name in LAUNCHED)
    if not is_launched and not hardware.shard_model:
        return None
    if (precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "fp16":
        raise UserError(
            "--mixed_precision: a sharded model cannot be trained with a gradient scaler (got fp16). Give bf16 or no."
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
    too. In both AdamW updates the rank's part of a parameter; they differ in when the whole parameter is freed.
    """
    _check_options(DEEPSPEED_OPTIONS)
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("2", "3"):
        raise UserError(
            f"deepspeed: zero_stage of the launch file must be 2 or 3 (got {stage}). Or use multi_gpu.yaml."
        )
    return Sharding(name=f"ZeRO stage {stage} by FSDP2, without DeepSpeed's engine", reshard_after_forward=stage == "3")


def _check_options(options: Mapping[str, tuple[str, str]]) -> None:
    for variable, (value, reason) in options.items():
        if (given := os.environ.get(variable, value)).lower() == value.lower():
            continue
        option = variable.lower().removeprefix("accelerate_").removeprefix("deepspeed_")
        whose = "" if option.startswith("fsdp") else "deepspeed: "
        remedy = f"Set it to {value}" if value else "Leave it out"
        raise UserError(f"{whose}{option} {given} of the launch file: {reason}. {remedy}.")


@contextlib.contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Make accelerate set up plain data parallelism although the launch file asks for sharding, which is done here."""
    values = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(values)
