"""Select the trained weights of a model: all but frozen parts, or a LoRA adapter of peft on the frozen model.

peft adds the adapter's layers to the model, which keeps its class; only the names of its weights change, and this
module owns those names. A model is saved as the plain model, with the adapter added to its weights, and as the adapter
in peft's format. Must not know data, ranks or training.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from torch import Tensor, nn, zeros
from transformers import PreTrainedModel

from mtloop.config.model import ALL_LINEAR, TuningConfig, split_revision
from mtloop.errors import UserError, missing_package
from mtloop.model.families import attention_names, family_of

ADAPTER_NAME = "adapter"  # the folder within a checkpoint
WEIGHTS_NAME = "adapter_model.safetensors"  # peft's


def choose_trained(model: PreTrainedModel, config: TuningConfig, *, name: str | None) -> list[str]:
    """Freeze parts of a model, or add an adapter to it.

    Args:
        model: Changed in place.
        config: The parts to freeze, or the rank and layers of the adapter.
        name: --model_name_or_path, for the adapter's config; None for a model from scratch.

    Returns:
        A line for the user; none if everything is trained.

    Raises:
        UserError: Modules that the model does not have, nothing left to train, or peft is not installed.
    """
    if hasattr(model, "peft_config"):  # transformers loads a folder of an adapter together with its base model
        raise UserError(
            f"--model_name_or_path {name}: an adapter, not a model. Give the model it belongs to, or a folder in which "
            "both are merged."
        )
    if config.freeze:
        return [freeze(model, config.freeze)]
    if config.lora_rank:
        return [attach_lora(model, config, name=name or "")]
    return []


def freeze(model: PreTrainedModel, parts: list[str]) -> str:
    """Freeze parts of a model: encoder, decoder, embeddings. Return a line that lists them.

    Raises:
        UserError: Nothing is left to train.
    """
    shared = {id(weight) for weight in _embeddings(model, with_positions=False)}
    output = cast(Any, model.get_output_embeddings())
    text = f"frozen: {', '.join(parts)}"
    for part in parts:
        if part == "embeddings":
            weights = _embeddings(model, with_positions=True)
            if output is not None and id(output.weight) in shared:
                text += " (with the output layer, which is tied to the embeddings)"
        else:
            side = model.get_encoder() if part == "encoder" else model.get_decoder()
            # In most models both sides and the output share the token embeddings.
            weights = [weight for weight in side.parameters() if id(weight) not in shared]
        for weight in weights:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UserError(f"--freeze: nothing of the model is left to train (got {','.join(parts)}). Leave a part out.")
    return text


def _embeddings(model: PreTrainedModel, *, with_positions: bool) -> list[nn.Parameter]:
    """List the token embeddings of both sides, and optionally those of positions (T5's biases are in its layers)."""
    sides = [model.get_encoder(), model.get_decoder()]
    owners: list[Any] = [model.get_input_embeddings(), *(side.get_input_embeddings() for side in sides)]
    if with_positions:
        owners += [child for side in sides for child in side.children() if isinstance(child, nn.Embedding)]
    return [owner.weight for owner in owners if owner is not None]


def attach_lora(model: PreTrainedModel, config: TuningConfig, *, name: str) -> str:
    """Add a LoRA adapter to a model and freeze the model's weights. Return a line that describes the adapter.

    Args:
        model: Changed in place; it keeps its class.
        config: Resolved: lora_rank and lora_alpha are set.
        name: --model_name_or_path.

    Raises:
        UserError: peft is not installed, or the model does not have a module.

    Source: Hu et al. 2021 (LoRA), section 4.1; peft 0.21 LoraConfig.
    """
    try:
        from peft import LoraConfig, TaskType, inject_adapter_in_model
    except ImportError as error:
        raise missing_package("--lora_rank", "peft", "lora", error=error) from error
    assert config.lora_rank is not None and config.lora_alpha is not None
    linears = _linear_names(model)
    targets = config.lora_target_modules or _attention_layers(model, linears)
    if targets != [ALL_LINEAR]:
        _check_targets(targets, linears)
    base, revision = split_revision(name)
    lora = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        # A local path must not be published.
        base_model_name_or_path=Path(base).resolve().name if Path(base).is_dir() else base,
        revision=revision,
    )
    inject_adapter_in_model(lora, model)
    num_adapted = sum(name.endswith("lora_A.default.weight") for name, _ in model.named_parameters())
    return (
        f"adapter: LoRA of rank {config.lora_rank}, alpha {config.lora_alpha}, on {num_adapted} layers: "
        f"{', '.join(targets)}"
    )


def _linear_names(model: PreTrainedModel) -> list[str]:
    """List the names of layers that can have an adapter: linear, and not tied to the token embeddings."""
    shared = {id(weight) for weight in _embeddings(model, with_positions=False)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in shared
    ]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _attention_layers(model: PreTrainedModel, linears: list[str]) -> list[str]:
    kinds = {_last(name) for name in linears}
    for pair in attention_names(family_of(model.config)):  # peft 0.21 has no default for Marian
        if kinds.issuperset(pair):
            return list(pair)
    raise UserError(
        "--lora_rank: the names of this model's attention layers are unknown. Give --lora_target_modules, one or more "
        f"of {', '.join(sorted(kinds))}, or {ALL_LINEAR}."
    )


def _check_targets(targets: list[str], linears: list[str]) -> None:
    """Refuse a name that no layer has, or only layers into which an adapter cannot be merged."""
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            kinds = sorted({_last(name) for name in linears})
            raise UserError(
                "--lora_target_modules: the model has no such linear layer into which an adapter can be merged (got "
                f"{target}). Give one or more of {', '.join(kinds)}, or {ALL_LINEAR}."
            )


def adapter_config(model: PreTrainedModel) -> Any:
    """Return the LoraConfig of a model's adapter, None if it has no adapter."""
    return getattr(model, "peft_config", {}).get("default")


def merged_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the plain model, under its own names: W + BA * alpha / r where there is an adapter.

    Args:
        model: With or without an adapter.
        weights: Its state dict, gathered.
    """
    lora = adapter_config(model)
    plain = {name.replace(".base_layer.", "."): weight for name, weight in weights.items() if not _is_adapters(name)}
    for name, a in weights.items():
        if name.endswith(".lora_A.default.weight"):
            layer = name.removesuffix(".lora_A.default.weight")
            b = weights[f"{layer}.lora_B.default.weight"]
            # Moved to the CPU layer by layer: the device need not hold a second model.
            plain[f"{layer}.weight"] = (plain[f"{layer}.weight"] + b @ a * (lora.lora_alpha / lora.r)).cpu()
    return plain


def save_adapter(model: PreTrainedModel, weights: dict[str, Tensor], path: Path) -> None:
    """Write only the adapter, in the format of PeftModel.from_pretrained; do nothing if there is none.

    Args:
        model: Has the adapter's config.
        weights: Its state dict, gathered.
        path: The folder to create.
    """
    lora = adapter_config(model)
    if lora is None:
        return
    path.mkdir()
    own = {_name_in_file(name): weight.contiguous().cpu() for name, weight in weights.items() if _is_adapters(name)}
    save_file(own, path / WEIGHTS_NAME, metadata={"format": "pt"})
    lora = copy.copy(lora)
    lora.inference_mode = True  # as peft saves it
    lora.target_modules = sorted(lora.target_modules)  # a set, whose order must not matter in the file
    lora.save_pretrained(str(path))


def stored_adapter(model: PreTrainedModel, path: Path) -> dict[str, Tensor]:
    """Read an adapter's weights, under the names of a model with an adapter of the same layers and rank.

    Raises:
        OSError: There is no such file.
        ValueError: The adapter has other layers or another rank.
    """
    stored = load_file(path / WEIGHTS_NAME)
    own = {_name_in_file(name): weight for name, weight in model.state_dict().items() if _is_adapters(name)}
    if different := sorted(stored.keys() ^ own.keys()):
        raise ValueError(f"{path} is an adapter of other layers, as {different[0]} shows")
    for name, weight in stored.items():
        if weight.shape != own[name].shape:
            raise ValueError(f"{path} is of another rank: {name} is {list(weight.shape)}, here {list(own[name].shape)}")
    names = {_name_in_file(name): name for name in model.state_dict() if _is_adapters(name)}
    return {names[name]: weight for name, weight in stored.items()}


def unmerged(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return plain weights under the names of a model with an adapter, with an adapter of zeros.

    For an average of checkpoints at the end of a run; a resume reads base and adapter from their files.

    Raises:
        ValueError: The weights are those of another model.
    """
    own = model.state_dict()
    names = {name.replace(".base_layer.", "."): name for name in own}
    for name, weight in weights.items():
        if name not in names or own[names[name]].shape != weight.shape:
            raise ValueError(f"{name} is not a weight of this model, or of another shape")
    nothing = {name: zeros(weight.shape) for name, weight in own.items() if name.endswith(".lora_B.default.weight")}
    return {**{names[name]: weight for name, weight in weights.items()}, **nothing}


def base_fingerprint(model: PreTrainedModel) -> str | None:
    """Return a hash of the weights that an adapter was trained on; None without an adapter."""
    if adapter_config(model) is None:
        return None
    computed = set(model._keys_to_ignore_on_save or ())  # tables of sines, whose last digit depends on the processor
    digest, seen = hashlib.sha256(), set()
    for name, weight in sorted(model.state_dict().items()):
        if not _is_adapters(name) and name not in computed and weight.data_ptr() not in seen:  # tied: once
            seen.add(weight.data_ptr())
            digest.update(name.encode())
            digest.update(weight.contiguous().cpu().numpy())
    return digest.hexdigest()


def _is_adapters(name: str) -> bool:
    return ".lora_" in name


def _name_in_file(name: str) -> str:
    """Return a weight's name in peft's files: within its wrapper, and without the adapter's name."""
    return f"base_model.model.{name.replace('.default.', '.')}"
