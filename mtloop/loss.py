"""Cross-entropy as a sum over target tokens; the plan knows their number, so no mean is ever taken of means.

Must not know models, ranks or updates. Shape letters: B sentences, T target tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


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
