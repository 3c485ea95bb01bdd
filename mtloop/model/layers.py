"""The layers that a model's encoder and decoder are stacks of."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from mtloop.errors import UserError


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """List the layers of encoder and decoder, in the order of the forward.

    Not by `_no_split_modules`: Marian's is empty, and a sharded Marian would silently be one unit, gathered whole.

    Raises:
        UserError: for a model whose encoder or decoder is no stack of layers.
    """
    layers: list[nn.Module] = []
    for side in (model.get_encoder(), model.get_decoder()):
        stacks = [child for child in side.children() if isinstance(child, nn.ModuleList)]
        longest = max(stacks, key=len, default=nn.ModuleList())
        if not len(longest):
            raise UserError(
                f"--shard_model: {type(side).__name__} of a {model.config.model_type} model is no stack of layers; "
                "train it unsharded, with accelerate_configs/multi_gpu.yaml"
            )
        layers += longest
    return layers
