"""Cross-entropy as a sum over target tokens; the plan knows their number, so no mean is ever taken of means.

Must not know models, ranks or updates. Shape letters: B sentences, T target tokens, N real target tokens, D width of
the model, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtloop.batching.loader import IGNORE_INDEX

# Logits held at once, as fp32: 64 MiB on a CPU, where more than the caches hold gains nothing, 256 MiB elsewhere.
MAX_LOGITS_ON_CPU, MAX_LOGITS = 2**24, 2**26


def token_loss_sum(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum the cross-entropy of the target tokens, in fp32 whatever the precision of the logits.

    Args:
        logits: float [B, T, V].
        labels: int64 [B, T], IGNORE_INDEX where nothing counts.
        label_smoothing: The share of the probability spread evenly over the V pieces.

    Returns:
        fp32 scalar: the sum, in nats; 0 (with a zero gradient) where no label counts.

    Source: Szegedy et al. 2016, section 7 (label smoothing), as torch.nn.functional.cross_entropy implements it:
    (1 - e) * nll + e * mean over V of -log p.
    """
    if logits.device.type == "xla":  # how many labels count is data: picking them would be another program each time
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    is_target = labels.flatten() != IGNORE_INDEX
    # Only real positions are brought to fp32: the [tokens, V] copy is the largest tensor of a step.
    target_logits = logits.flatten(0, 1)[is_target].float()
    return F.cross_entropy(target_logits, labels.flatten()[is_target], reduction="sum", label_smoothing=label_smoothing)


class Projection:
    """Share the output layer among the micro-batches of an update: cast its weight once, accumulate its gradient once.

    Both are as large as the vocabulary. The gradient is added up over the forwards, and the backward of the last one
    hands it to autograd; so all losses of the update must be scaled alike before their backward.

    Args:
        num_forwards: How many projected_loss_sum calls share it.
    """

    def __init__(self, num_forwards: int = 1) -> None:
        self._num_left = num_forwards
        self._columns: Tensor | None = None
        self._gradient: Tensor | None = None

    def columns(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight [V, D] in dtype, detached."""
        if self._columns is None:
            self._columns = weight.detach().to(dtype)
        return self._columns

    def add(self, gradient: Tensor, rows: Tensor) -> None:
        """Add gradient.T @ rows, of [n, V] and [n, D], to the gradient of the weight."""
        assert self._gradient is not None
        if gradient.dtype == self._gradient.dtype:
            self._gradient.addmm_(gradient.T, rows)
        else:
            self._gradient += gradient.T @ rows

    def begin(self, weight: Tensor) -> None:
        """Count one forward, whose gradient of the weight is wanted."""
        self._num_left -= 1
        if self._gradient is None:
            self._gradient = torch.zeros_like(weight, dtype=torch.float32)

    def take(self) -> Tensor | None:
        """Return the gradient of the weight after the last forward, None before."""
        return None if self._num_left else self._gradient


def projected_loss_sum(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
    projection: Projection | None = None,
) -> Tensor:
    """Sum the cross-entropy of `hidden @ weight.T + bias` without ever holding all logits.

    The gradient is found in the forward, a chunk of rows at a time, while the chunk's probabilities are at hand.
    (torch 2.13's linear_cross_entropy does likewise, but sums a bf16 loss in bf16: 9,344 for 9,590.)

    Args:
        hidden: float [N, D], at real positions alone.
        weight: float [V, D].
        labels: int64 [N], each from 0 to V - 1.
        bias: float, V elements; has no gradient.
        label_smoothing: As in token_loss_sum.
        dtype: Of the matrix products. The logits are then brought to fp32.
        projection: State that the micro-batches of an update share; None to share nothing.

    Returns:
        fp32 scalar, in nats; 0 (with a zero gradient) where N is 0.

    Source: as token_loss_sum; its gradient by the logits is softmax(logits) - (1 - e) * one-hot - e / V.
    """
    total: Tensor = _ProjectedLoss.apply(
        hidden, weight, labels, bias, label_smoothing, dtype, projection or Projection()
    )
    return total


class _ProjectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        smoothing: float,
        dtype: torch.dtype,
        projection: Projection,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows, columns = hidden.to(dtype), projection.columns(weight, dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden) if wants_hidden else None
        if wants_weight:
            projection.begin(weight)
        most = MAX_LOGITS_ON_CPU if hidden.device.type == "cpu" else MAX_LOGITS
        num_rows = max(1, most // len(columns))
        for start in range(0, len(rows), num_rows):
            chunk = slice(start, start + num_rows)
            logits = (rows[chunk] @ columns.T).float()
            if bias is not None:
                logits += bias.flatten()
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            picked = labels[chunk, None]
            total += (log_sum - (1 - smoothing) * logits.gather(1, picked)).sum()
            if smoothing:
                total -= smoothing * logits.mean(dim=1).sum()
            if not (wants_hidden or wants_weight):
                continue
            gradient = logits.sub_(log_sum).exp_().sub_(smoothing / len(columns))
            gradient.scatter_add_(1, picked, torch.full_like(log_sum, smoothing - 1))
            gradient = gradient.to(dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = (gradient @ columns).to(hidden.dtype)
            if wants_weight:
                projection.add(gradient, rows[chunk])
        ctx.save_for_backward(hidden_grad, projection.take() if wants_weight else None)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = hidden_grad * gradients[0].to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * gradients[0]).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None, None
