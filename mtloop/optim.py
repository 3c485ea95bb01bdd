"""Parameter groups, AdamW and the learning-rate schedule. Must not know data, ranks or checkpoints."""

from __future__ import annotations

import json

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from mtloop.config import OptimizerConfig, UserError


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> AdamW:
    """Build AdamW without weight decay on biases and norms.

    Args:
        model: Its trainable parameters are optimised.
        config: Resolved: learning_rate and adam_beta2 are set.

    Source: Loshchilov and Hutter 2019, algorithm 2 (AdamW), as torch.optim.AdamW implements it.
    """
    assert config.learning_rate is not None and config.adam_beta2 is not None
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Biases and the gains of norms are the vectors, and T5's table of position biases, as in TrainingArguments.
    biases = {id(p) for name, p in model.named_parameters() if p.ndim < 2 or "bias" in name}
    groups = [
        {"params": [p for p in trainable if id(p) not in biases], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if id(p) in biases], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for p in trainable),
    )


def warmup_steps(config: OptimizerConfig, *, total_steps: int, is_from_scratch: bool) -> int:
    """Return the updates of warm-up: as asked, else none for fine-tuning and a tenth (at most 4,000) from scratch."""
    if config.num_warmup_steps is not None:
        return config.num_warmup_steps
    return min(4_000, total_steps // 10) if is_from_scratch else 0


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, num_warmup_steps: int, total_steps: int
) -> LRScheduler:
    """Build the per-update schedule of the learning rate, warm-up included.

    It is not to be prepared by accelerate, which would step it once per process.

    Raises:
        UserError: for arguments in lr_scheduler_kwargs that the schedule does not take, or lacks.
    """
    extra = json.loads(config.lr_scheduler_kwargs) if config.lr_scheduler_kwargs else {}
    try:
        return get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=extra,
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--lr_scheduler_type {config.lr_scheduler_type}: {error}; give what it needs as a JSON object in "
            "--lr_scheduler_kwargs"
        ) from error


def set_schedule(scheduler: LRScheduler, step: int) -> None:
    """Put a schedule, and its optimizer's learning rates, where they stand after `step` updates."""
    assert isinstance(scheduler, LambdaLR)  # all that get_scheduler builds and the configuration admits
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, learning_rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = learning_rate
    scheduler._last_lr = rates
