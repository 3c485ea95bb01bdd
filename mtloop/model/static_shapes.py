"""Compute masks and losses without reading the data, for devices that compile a program for every tensor shape (XLA).

The shapes of batches are in batching/shapes.py, greedy search in fixed shapes in generation/greedy.py. Shape letters:
B sentences, S source tokens, T target tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtloop.batching.loader import IGNORE_INDEX


def needs_static_shapes(device: torch.device) -> bool:
    """Return True if the device compiles a new program for each shape."""
    return device.type == "xla"


def static_mask(attention_mask: Tensor) -> Tensor:
    """Return an attention mask that transformers need not look into, which would be a host sync and a program each.

    Args:
        attention_mask: int64 [B, S], 1 at real tokens.

    Returns:
        On XLA float [B, 1, 1, S], to be added to the scores of eager attention; elsewhere the mask itself.
    """
    return additive_mask(attention_mask) if needs_static_shapes(attention_mask.device) else attention_mask


def additive_mask(attention_mask: Tensor) -> Tensor:
    """Return 0 where attention_mask, int64 [B, S], is 1 and the lowest fp32 number elsewhere: float [B, 1, 1, S]."""
    is_padding = attention_mask[:, None, None, :] == 0
    return torch.where(is_padding, torch.finfo(torch.float32).min, 0.0)


def static_loss_sum(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Sum the cross-entropy over all positions: selecting the real ones would depend on the data.

    Args:
        logits: float [B, T, V].
        labels: int64 [B, T], IGNORE_INDEX at positions that do not count.
        label_smoothing: As in loss.token_loss_sum.
    """
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
