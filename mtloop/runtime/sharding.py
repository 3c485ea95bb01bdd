"""Shard a model with torch's FSDP2, with whole tensors in and out. The only module with DTensors.

Each rank holds its part of every parameter, gradient and optimizer state; the parts of a unit are gathered for its
forward and for its backward. Accelerate's FSDP2 is not used: it supports GPUs only and splits the model differently.
This is the same on a CPU over gloo, where it can be tested. Must not know data, files or model families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mtloop.runtime.launch import Sharding


def shard(
    model: nn.Module, sharding: Sharding, units: Iterable[nn.Module], *, device: torch.device, is_bf16: bool
) -> None:
    """Shard a model's parameters over all ranks, in place; the optimizer is to be built afterwards.

    Collective: every rank holds the same whole model before, and no rank does afterwards. What is outside the units
    (embeddings, the output layer that is tied to them, the last norms) is a unit of its own, the model's.

    Args:
        model: On any device; goes to `device` unit by unit.
        sharding: How.
        units: Modules that are gathered and given up as one each.
        device: Of this rank.
        is_bf16: Whether units are gathered in bf16; parameters, gradients and their sum over ranks stay fp32.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Autocast still decides what is computed in bf16, so inputs are not cast here; without param_dtype it would keep
    # a whole bf16 copy of each unit for the backward.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward, mp_policy=policy)
    # Its parameters are needed first and last of all: the model's own unit stays gathered until the backward is done.
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "generate")  # the encoder is called there outside the model's forward


def is_sharded(model: object) -> bool:
    """Return True if a model is sharded: its forward and generate() are collective then."""
    return isinstance(model, FSDPModule)


def set_gradient_sync(model: nn.Module, *, enabled: bool) -> None:
    """Let the backward of a sharded model add up the ranks' gradients, or keep them for the next."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(enabled)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor of a sharded one. Collective then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, a whole one as it is. Not collective."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def gathered(state: Any, *, is_kept: bool, copy: Callable[[Tensor], Tensor] = Tensor.detach) -> Any:
    """Return a state dict with whole tensors in the place of shards, which go to the CPU one by one.

    So do those of XLA, which cannot be stored. Collective where there are shards.

    Args:
        state: Dicts and lists of values; of a model with keep_vars=True, so that tied weights are known as one.
        is_kept: Whether this rank keeps the tensors; otherwise they are None.
        copy: Applied to tensors that are whole already.
    """
    known: dict[int, Tensor | None] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: visit(item) for name, item in value.items()}
        if isinstance(value, list):
            return [visit(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in known:
            if not isinstance(value, DTensor) and value.device.type != "xla":
                known[id(value)] = copy(value)
            else:
                full = whole(value)
                known[id(value)] = full.detach().cpu() if is_kept else None
        return known[id(value)]

    return visit(state)


@torch.no_grad()
def put(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into another of its shape, or this rank's part of it into a sharded one. Not collective."""
    if isinstance(target, DTensor):
        target.to_local().copy_(_part_of(full, target).to_local())
    else:
        target.copy_(full)


def sharded_state(stored: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's stored state as its parameters are: this rank's parts where those are sharded.

    Not collective: every rank has read all of it.

    Raises:
        KeyError: for the state of a parameter that the optimizer has not.
    """
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(isinstance(parameter, DTensor) for parameter in every):
        return stored
    parameters = dict(enumerate(every))  # as state_dict() numbers them

    def like(parameter: DTensor, value: Any) -> Any:
        is_moment = isinstance(value, Tensor) and value.shape == parameter.shape
        return _part_of(value, parameter) if is_moment else value

    state = {
        number: {name: like(parameters[number], value) for name, value in entry.items()}
        for number, entry in stored["state"].items()
    }
    return {**stored, "state": state}


def _part_of(full: Tensor, like: DTensor) -> DTensor:
    # src_data_rank=None: each rank cuts its own part out of what it has, and nothing is sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
