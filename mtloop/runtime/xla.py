"""Handle XLA devices, which compile a program for each new shape: programs, seeds, AdamW, advice to the user.

torch_xla is imported where it is used: it is installed only where such a device is.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.optim import AdamW

from mtloop.errors import UserError


def end_program() -> None:
    """Compile the program traced so far, if it is new, and start it."""
    import torch_xla

    torch_xla.sync()


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the device's random numbers, which torch.manual_seed does not reach."""
    import torch_xla.core.xla_model as xm

    xm.set_rng_state(seed, str(device))


def keep_weights_in_fp32() -> None:
    """Leave bf16 to autocast: XLA_USE_BF16, which accelerate sets, converts weights and AdamW's moments too."""
    for name in ("XLA_USE_BF16", "XLA_DOWNCAST_BF16"):
        os.environ.pop(name, None)


def num_compilations() -> int:
    """Count the programs that this process has compiled."""
    import torch_xla.debug.metrics as metrics

    data = metrics.metric_data("CompileTime")
    return int(data[0]) if data else 0


class DeviceAdamW(AdamW):
    """AdamW whose step is one program for a device that compiles: no number in it is a constant.

    Its state has the names and values of torch's AdamW, so that checkpoints are interchangeable. Where found_inf, fp32
    scalar, is 1, weights and state stay unchanged. State and gradients exist from the start: a first step that creates
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


def check_generation(*, num_beams: int, max_length_ratio: float | None, max_length: int) -> list[str]:
    """Return lines of advice on how the run generates on XLA.

    Raises:
        UserError: for a length that depends on the source, which is another shape for each row.
    """
    if max_length_ratio is not None:
        raise UserError(
            f"--max_length_ratio: not supported on XLA (got {max_length_ratio}). Give --val_max_target_length instead."
        )
    if num_beams == 1:
        return []
    return [
        f"--num_beams {num_beams}: beam search compiles a program for each generated token, about {max_length} for "
        "each shape of a batch; without --num_beams the search is greedy, in a few programs"
    ]
