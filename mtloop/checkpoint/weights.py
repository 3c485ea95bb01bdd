"""A checkpoint's weights into a model, in place."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from mtloop.model.adapters import ADAPTER_NAME, adapter_config, stored_adapter, unmerged
from mtloop.runtime import put

# Beside the weights of an average: what they were made of.
AVERAGED_NAME = "averaged.json"


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Read a checkpoint's weights into a model in place, sharded or whole; tied weights stand in the file once.

    Not collective: of a sharded model every rank reads the file and keeps its part.

    Of a model with an adapter these are the adapter's: its base has come from --model_name_or_path, and what is merged
    in the checkpoint cannot be taken apart again bit by bit. An average of checkpoints is of the merged ones, and is
    loaded so that the adapter adds nothing to it.

    Raises:
        OSError: when there is no such file.
        ValueError: when the file lacks a weight or has one of another name or shape.
    """
    if adapter_config(model) is not None and (path / ADAPTER_NAME).is_dir():
        _put_all(model, stored_adapter(model, path / ADAPTER_NAME))
        return
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        weights.update(load_file(file))
    if adapter_config(model) is not None:
        if not (path / AVERAGED_NAME).is_file():
            raise ValueError(f"{path.name} has no {ADAPTER_NAME}/: it is of a run without --lora_rank")
        _put_all(model, unmerged(model, weights))
        return
    own = model.state_dict()
    for name, weight in weights.items():
        if name in own and own[name].shape != weight.shape:
            shapes = f"{list(weight.shape)} there and {list(own[name].shape)} here"
            raise ValueError(f"{path.name} is of another model: {name} is {shapes}")
    derived = set(getattr(model, "all_tied_weights_keys", None) or ()) | set(model._keys_to_ignore_on_save or ())
    if lacking := own.keys() - weights.keys() - derived:
        raise ValueError(f"{path.name} lacks the weights {sorted(lacking)[:3]}")
    if unexpected := weights.keys() - own.keys():
        raise ValueError(f"{path.name} has the weights {sorted(unexpected)[:3]} that the model has not")
    _put_all(model, weights)


def _put_all(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    for name, weight in weights.items():
        put(own[name], weight)
