"""Read a checkpoint into model, optimizer, scaler, schedule and counters."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel

from mtloop.checkpoint.manifest import CorruptCheckpoint, listed_files, read_manifest
from mtloop.checkpoint.state import TrainState, find_nonfinite
from mtloop.errors import UserError, first_line
from mtloop.model.adapters import ADAPTER_NAME, adapter_config, stored_adapter, unmerged
from mtloop.runtime.sharding import put, sharded_state

# In the folder of an average: the checkpoints that were averaged.
AVERAGED_NAME = "averaged.json"


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Read the weights of a checkpoint into a model in place, sharded or whole.

    Not collective: for a sharded model every rank reads the file and keeps its part.

    For a model with an adapter the weights of the adapter are read: the base comes from --model_name_or_path, and the
    merged weights of the checkpoint cannot be separated again bitwise. An average has merged weights only; it is loaded
    so that the adapter adds nothing.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file lacks a weight or has one of another name or shape.
    """
    if adapter_config(model) is not None and listed_files(path, f"{ADAPTER_NAME}/*.safetensors"):
        _put_all(model, stored_adapter(model, path / ADAPTER_NAME))
        return
    weights: dict[str, torch.Tensor] = {}
    for file in listed_files(path, "*.safetensors"):
        weights.update(load_file(file))
    if adapter_config(model) is not None:
        if not (path / AVERAGED_NAME).is_file():
            raise ValueError(f"{path.name} has no {ADAPTER_NAME}/: it was trained without --lora_rank")
        _put_all(model, unmerged(model, weights))
        return
    own = model.state_dict()
    for name, weight in weights.items():
        if name in own and own[name].shape != weight.shape:
            shapes = f"{list(weight.shape)}, expected {list(own[name].shape)}"
            raise ValueError(f"{path.name} is of another model: {name} has the shape {shapes}")
    derived = set(getattr(model, "all_tied_weights_keys", None) or ()) | set(model._keys_to_ignore_on_save or ())
    if lacking := own.keys() - weights.keys() - derived:
        raise ValueError(f"{path.name} lacks the weights {sorted(lacking)[:3]}")
    if unexpected := weights.keys() - own.keys():
        raise ValueError(f"{path.name} has weights that the model lacks: {sorted(unexpected)[:3]}")
    _put_all(model, weights)


def _put_all(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    for name, weight in weights.items():
        put(own[name], weight)


# A full disk is an OSError in our own writing, a RuntimeError in torch.save and a SafetensorError in save_pretrained.
UNWRITABLE = (OSError, RuntimeError, SafetensorError)
# What json, torch.load, safetensors and load_state_dict raise for a corrupt or foreign file.
UNREADABLE = (*UNWRITABLE, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError)
# Entries of the manifest that must be equal for a resumed run to be bitwise equal to the uninterrupted one.
BITWISE = (
    "num_ranks", "is_sharded", "num_threads", "device", "precision", "max_tokens_per_micro_batch",
    "micro_batch_overhead", "pad_to", "versions",
)  # fmt: skip


def read_checkpoint(
    path: Path,
    check: Callable[[dict[str, Any]], None],
    *,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    scheduler: LRScheduler,
    state: TrainState,
) -> dict[str, Any]:
    """Read a checkpoint into model, optimizer, scaler, schedule and counters; return its manifest. Not collective.

    Raises:
        UserError: if `check` refuses the manifest, or the checkpoint cannot be read.
    """
    training = path / "training"
    try:
        record = read_manifest(path)
        check(record)
        load_weights(model, path)
        stored = _load(training / "optimizer.pt")
        # The hyperparameters of the configuration hold, which --allow_changed may have changed.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({**sharded_state(stored, optimizer), "param_groups": groups})
        if scaler is not None and "training/scaler.pt" in record["files"]:
            scaler.load_state_dict(_load(training / "scaler.pt"))
        state.load_state_dict(record["state"])
        set_schedule(scheduler, state.step)
        if name := find_nonfinite(model, optimizer):  # of a version that did not check
            raise ValueError(f"{name} is not finite")
    except UserError:
        raise
    except (*UNREADABLE, CorruptCheckpoint) as error:
        raise UserError(
            f"--resume_from_checkpoint: {path} cannot be read ({type(error).__name__}: {first_line(error)}). Name "
            "an earlier checkpoint, for example step_N, or give another --output_dir."
        ) from error
    return record


def differences_to(record: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each entry that prevents bitwise equality with the uninterrupted run.

    Args:
        record: The manifest.
        now: The same entries of the resumed run.
    """
    for name in BITWISE:
        if name in record and name in now and record[name] != now[name]:
            yield f"{name} {_shown(now[name], record[name])}, saved with {_shown(record[name], now[name])}"


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _shown(value: Any, other: Any) -> str:
    """Show a value; of a dict only the entries that differ from `other`."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{name} {value[name]}" for name in value if value[name] != other.get(name))
    return str(value)


def set_schedule(scheduler: LRScheduler, step: int) -> None:
    """Set a schedule and the learning rates of its optimizer to their values after `step` updates."""
    assert isinstance(scheduler, LambdaLR)  # as every schedule of the configuration
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, learning_rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = learning_rate
    scheduler._last_lr = rates
