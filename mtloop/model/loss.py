"""Compute the loss of a batch: the cross-entropy summed over its target tokens.

The sum is divided by the number of tokens of the whole update, never a mean of means. The vocabulary is projected at
real target positions only, so that all logits are never in memory at once. Must not import the planner of updates.
Shape letters: B sentences, S source tokens, T target tokens, N real target tokens, D width of the model, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.model.families import family_of
from mtloop.model.generation_config import shift_right
from mtloop.model.static_shapes import needs_static_shapes, static_loss_sum, static_mask

# Logits in memory at once, as fp32: 64 MiB on a CPU, where exceeding the caches gains nothing, 256 MiB elsewhere.
MAX_LOGITS_ON_CPU, MAX_LOGITS = 2**24, 2**26


def batch_loss_sum(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    wrapped_model: torch.nn.Module | None = None,
    *,
    label_smoothing: float = 0.0,
    projection: Projection | None = None,
) -> Tensor:
    """Sum the cross-entropy of a batch's target tokens.

    If the batch has `target_positions` and the family a plain head, the vocabulary is projected at those positions
    only. That happens inside the forward, where data parallelism and sharding expect a weight to be used.

    Args:
        model: Unwrapped.
        batch: input_ids and attention_mask int64 [B, S], labels int64 [B, T], and from collate also target_positions
            int64 [N], the indices of the N real labels in the flattened labels.
        wrapped_model: The module to call; None is the model itself.
        label_smoothing: As in token_loss_sum.
        projection: As in projected_loss_sum.

    Returns:
        fp32 scalar, in nats.
    """
    with replaced_logits(model, batch, label_smoothing, projection) as loss_sums:
        logits = (wrapped_model or model)(
            input_ids=batch["input_ids"],
            attention_mask=static_mask(batch["attention_mask"]),
            decoder_input_ids=shift_right(model, batch["labels"]),
            use_cache=False,
        ).logits
    return loss_sums[0] if loss_sums else token_loss_sum(logits, batch["labels"], label_smoothing=label_smoothing)


@contextlib.contextmanager
def replaced_logits(
    model: PreTrainedModel, batch: Mapping[str, Tensor], label_smoothing: float, projection: Projection | None
) -> Iterator[list[Tensor]]:
    """Make the output layer compute the loss in place of the logits, where the loss is the same.

    Yields:
        A list that gets the loss in the forward, fp32 scalar; it stays empty where the model returns logits.
    """
    labels, positions = batch["labels"], batch.get("target_positions")
    device_type = labels.device.type
    loss_sums: list[Tensor] = []

    def project(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        """Compute the loss in place of the logits; leave no rows for the output layer."""
        assert positions is not None
        # Read inside the forward: accelerate's autocast may be around the model's forward only.
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else torch.float32
        if dtype == torch.float16:  # most gradients would be below its smallest number until the loss is scaled
            return None
        hidden = cast(Tensor, inputs[0])
        with torch.autocast(device_type, enabled=False):
            loss_sum = projected_loss_sum(
                hidden.flatten(0, 1).index_select(0, positions),
                cast(torch.nn.Linear, layer).weight,
                labels.flatten().index_select(0, positions),
                bias=getattr(model, "final_logits_bias", None),
                label_smoothing=label_smoothing,
                dtype=dtype,
                projection=projection,
            )
        loss_sums.append(loss_sum)
        return (hidden[:0],)

    head = model.get_output_embeddings()
    is_plain = family_of(model.config).has_plain_head and type(head) is torch.nn.Linear and head.bias is None
    is_projected = positions is not None and is_plain and not needs_static_shapes(labels.device)
    with head.register_forward_pre_hook(project) if is_projected else contextlib.nullcontext():
        yield loss_sums


def token_loss_sum(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum the cross-entropy of the target tokens, in fp32 whatever the precision of the logits.

    Args:
        logits: float [B, T, V].
        labels: int64 [B, T], IGNORE_INDEX at positions that do not count.
        label_smoothing: The share of the probability spread evenly over the vocabulary.

    Returns:
        fp32 scalar, the sum in nats; 0 (with a zero gradient) if no label counts.

    Source: Szegedy et al. 2016, section 7 (label smoothing), as torch.nn.functional.cross_entropy implements it:
    (1 - e) * nll + e * mean over V of -log p.
    """
    if needs_static_shapes(logits.device):
        return static_loss_sum(logits, labels, label_smoothing=label_smoothing)
    is_target = labels.flatten() != IGNORE_INDEX
    # Only real positions are converted to fp32: the [tokens, V] copy is the largest tensor of a step.
    target_logits = logits.flatten(0, 1)[is_target].float()
    return F.cross_entropy(target_logits, labels.flatten()[is_target], reduction="sum", label_smoothing=label_smoothing)


class Projection:
    """Share the output layer among the micro-batches of an update: cast its weight once, accumulate its gradient once.

    Both are as large as the vocabulary. The gradient is accumulated over the forwards, and the backward of the last
    one passes it to autograd; all losses of the update must therefore be scaled equally before their backward.

    Args:
        num_forwards: Number of projected_loss_sum calls that share it.
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
        """Count one forward that needs the gradient of the weight."""
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
    """Sum the cross-entropy of `hidden @ weight.T + bias` without all logits in memory at once.

    The gradient is computed in the forward, a chunk of rows at a time, from the chunk's probabilities.
    (torch 2.13's linear_cross_entropy does the same, but sums a bf16 loss in bf16: 9,344 for 9,590.)

    Args:
        hidden: float [N, D], at real positions only.
        weight: float [V, D].
        labels: int64 [N], each from 0 to V - 1.
        bias: float, V elements; has no gradient.
        label_smoothing: As in token_loss_sum.
        dtype: Of the matrix products; the logits are converted to fp32.
        projection: State that the micro-batches of an update share; None to share nothing.

    Returns:
        fp32 scalar, in nats; 0 (with a zero gradient) if N is 0.

    Source: as token_loss_sum. The gradient of the logits is softmax(logits) - (1 - e) * one-hot - e / V.
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
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        rows, columns = hidden.to(dtype), projection.columns(weight, dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden) if needs_hidden else None
        if needs_weight:
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
            if not (needs_hidden or needs_weight):
                continue
            gradient = logits.sub_(log_sum).exp_().sub_(smoothing / len(columns))
            gradient.scatter_add_(1, picked, torch.full_like(log_sum, smoothing - 1))
            gradient = gradient.to(dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = (gradient @ columns).to(hidden.dtype)
            if needs_weight:
                projection.add(gradient, rows[chunk])
        ctx.save_for_backward(hidden_grad, projection.take() if needs_weight else None)
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
