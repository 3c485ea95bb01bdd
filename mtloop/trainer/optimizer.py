"""Parameter groups, AdamW and the learning-rate schedule. Must not know data, ranks or checkpoints."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from mtloop.config.training import OptimizerConfig
from mtloop.errors import UserError


class DeviceAdamW(AdamW):
    """AdamW whose step is one program for a device that compiles what it is given: no number in it is a constant.

    Its state has the names and values of torch's own, so that a checkpoint goes from one to the other. found_inf, fp32
    scalar, leaves all as it is where it is 1. State and gradients are there from the start: a first step that makes
    them would be another program.
    """

    def __init__(self, params: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(params, capturable=True, **options)  # capturable: the count of steps is a tensor on the device
        self.found_inf: torch.Tensor | None = None
        for group in self.param_groups:
            for parameter in group["params"]:
                # Made on the host: the device would compile a program for the zeros of each shape.
                shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
                self.state[parameter] = {
                    name: torch.zeros(shape).to(parameter.device) for name, shape in shapes.items()
                }
                parameter.grad = torch.zeros(parameter.shape, dtype=parameter.dtype).to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters, as torch.optim.adamw of torch 2.9 with amsgrad off does."""
        assert closure is None
        for group in self.param_groups:
            device = group["params"][0].device
            is_kept = torch.tensor(0.0).to(device) if self.found_inf is None else self.found_inf
            # A vector, because XLA makes constants of the numbers 0 and 1, and a warm-up begins with 0.
            learning_rate = torch.tensor([group["lr"]], dtype=torch.float32).to(device)
            for parameter in group["params"]:
                self._update(parameter, group, learning_rate, is_kept)

    def _update(
        self, parameter: torch.Tensor, group: dict[str, Any], learning_rate: torch.Tensor, is_kept: torch.Tensor
    ) -> None:
        state, gradient = self.state[parameter], parameter.grad
        beta1, beta2 = group["betas"]
        step = state["step"] + 1
        exp_avg = state["exp_avg"].lerp(gradient, 1 - beta1)
        exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient * gradient
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        denominator = exp_avg_sq.sqrt() / correction2.sqrt() + group["eps"]
        decayed = parameter * (1 - learning_rate * group["weight_decay"])
        updated = decayed - learning_rate / correction1 * exp_avg / denominator
        for old, new in (
            (parameter, updated),
            (state["step"], step),
            (state["exp_avg"], exp_avg),
            (state["exp_avg_sq"], exp_avg_sq),
        ):
            old.copy_(torch.where(is_kept > 0, old, new))


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
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if any(p.device.type == "xla" for p in trainable):
        return DeviceAdamW(groups, **options)
    return AdamW(groups, fused=all(p.device.type in ("cpu", "cuda") for p in trainable), **options)


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
