"""Let the backward of a layer compute its activations again, which takes less memory and more time.

Must not know ranks or devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from mtloop.errors import UserError
from mtloop.model.loading import layers_of


def recompute_activations(model: PreTrainedModel, *, flag: str) -> None:
    """Keep only the inputs of each layer in a training forward; the backward computes the rest again.

    Dropout is the same the second time: torch restores the state of its random numbers. To be called before a model is
    sharded.

    Args:
        model: Changed in place.
        flag: What asked for it, for the error.

    Raises:
        UserError: The model does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"{flag}: a {model.config.model_type} model does not support it. Leave it out.")
    # The second name is that of transformers before 5.23, which deprecates it.
    name = "activation_checkpointing_enable"
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})
    # The gradient of the embeddings' output is needed by the reentrant kind alone: with a frozen encoder it would be
    # computed through all of its layers.
    cast(Any, model).disable_input_require_grads()


@contextlib.contextmanager
def keeping_two_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keep the activations of the first and the last layer too, one of each side, where layers are computed again.

    A backward has those of one layer in memory at a time: what a forward keeps here is a bound of that.
    """
    ends = [layers_of(model)[index] for index in (0, -1)] if is_recomputing(model) else []
    for layer in ends:
        cast(Any, layer).gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in ends:
            cast(Any, layer).gradient_checkpointing = True


def is_recomputing(model: nn.Module) -> bool:
    """Return True if layers of a model compute their activations again; transformers' own names for it change."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
