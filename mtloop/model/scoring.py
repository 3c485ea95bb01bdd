"""What a model gives its targets: the loss of a batch, with the vocabulary projected at real target positions only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtloop.model.families import family_of
from mtloop.model.generating import shift_right, static_mask
from mtloop.model.loss import Projection, projected_loss_sum, token_loss_sum


def batch_loss_sum(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    wrapped_model: torch.nn.Module | None = None,
    *,
    label_smoothing: float = 0.0,
    projection: Projection | None = None,
) -> Tensor:
    """Sum the cross-entropy of a batch's target tokens.

    Of a batch with `target_positions` most families project the vocabulary at those positions alone, and never hold all
    logits; it happens inside the forward, where data parallelism and sharding expect a weight to be used.

    Args:
        model: Unwrapped.
        batch: input_ids and attention_mask int64 [B, S], labels int64 [B, T], and from collate also target_positions
            int64 [N], where in the flattened labels the N real ones are.
        wrapped_model: What is to be called; the model itself when None.
        label_smoothing: As in token_loss_sum.
        projection: As in projected_loss_sum.

    Returns:
        fp32 scalar, in nats.
    """
    labels = batch["labels"]
    with _projected(model, batch, label_smoothing, projection) as found:
        logits = (wrapped_model or model)(
            input_ids=batch["input_ids"],
            attention_mask=static_mask(batch["attention_mask"]),
            decoder_input_ids=shift_right(model, labels),
            use_cache=False,
        ).logits
    if found.loss_sum is not None:
        return found.loss_sum
    return token_loss_sum(logits, labels, label_smoothing=label_smoothing)


@dataclass
class _Found:
    loss_sum: Tensor | None = None


@contextlib.contextmanager
def _projected(
    model: PreTrainedModel, batch: Mapping[str, Tensor], label_smoothing: float, projection: Projection | None
) -> Iterator[_Found]:
    """Let the model's output layer compute the loss in place of logits, where that is the same."""
    found = _Found()
    head = model.get_output_embeddings()
    positions = batch.get("target_positions")
    device_type = batch["labels"].device.type
    is_plain = family_of(model.config).has_plain_head and type(head) is torch.nn.Linear and head.bias is None
    # XLA: as many positions as there happen to be would be a program of their own each time.
    if positions is None or not is_plain or device_type == "xla":
        yield found
        return

    def take_over(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        # Asked here: accelerate's autocast is around the model's forward alone.
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else torch.float32
        if dtype == torch.float16:  # what is left for a gradient is below its smallest numbers until the loss is scaled
            return None
        hidden = cast(Tensor, inputs[0])
        with torch.autocast(device_type, enabled=False):
            found.loss_sum = projected_loss_sum(
                hidden.flatten(0, 1).index_select(0, positions),
                cast(torch.nn.Linear, layer).weight,
                batch["labels"].flatten().index_select(0, positions),
                bias=getattr(model, "final_logits_bias", None),
                label_smoothing=label_smoothing,
                dtype=dtype,
                projection=projection,
            )
        return (hidden[:0],)

    handle = head.register_forward_pre_hook(take_over)
    try:
        yield found
    finally:
        handle.remove()
