"""What XLA devices want beside tensors: an end to each program that is traced, and a seed of their own.

torch_xla is imported where it is used: it is there only where such a device is.
"""

from __future__ import annotations

import os

import torch


def end_program() -> None:
    """Compile, where it is new, and start what was traced so far."""
    import torch_xla

    torch_xla.sync()


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the device's random numbers, which torch.manual_seed does not reach."""
    import torch_xla.core.xla_model as xm

    xm.set_rng_state(seed, str(device))


def keep_weights_in_fp32() -> None:
    """Leave bf16 to autocast: XLA_USE_BF16, which accelerate sets, takes weights and AdamW's moments along."""
    for name in ("XLA_USE_BF16", "XLA_DOWNCAST_BF16"):
        os.environ.pop(name, None)


def num_compilations() -> int:
    """Count the programs that this process has compiled."""
    import torch_xla.debug.metrics as metrics

    data = metrics.metric_data("CompileTime")
    return int(data[0]) if data else 0
