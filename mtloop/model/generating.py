"""How a model generates: its generation config, its positions, what its decoder sees first."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.errors import UserError
from mtloop.model.families import family_of

# What generate() refuses beside a plain beam search, and save_pretrained with it.
SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_positions(model: PreTrainedModel, *, max_source_length: int, max_target_length: int) -> None:
    """Refuse lengths beyond a model's table of positions.

    Raises:
        UserError: naming the flag and the most that the model takes.
    """
    limit = position_limit(model)
    if limit is None:
        return
    for flag, length in (("--max_source_length", max_source_length), ("--max_target_length", max_target_length)):
        if length > limit:
            raise UserError(f"{flag} {length}: this model has {limit} positions; give at most {limit}")


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest text that a model's table of positions takes, in tokens; None where it takes any."""
    if family_of(model.config).positions != "table":
        return None
    return getattr(model.config, "max_position_embeddings", None)


def settle_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_beams: int | None,
    max_length: int,
    forced_bos_token_id: int | None,
) -> int:
    """Write into the generation config what every export and every evaluation uses.

    Args:
        model: Its generation_config is changed.
        tokenizer: Gives pad and eos.
        num_beams: None keeps the model's own, else 4.
        max_length: Tokens of a translation at most, decoder start included (as the course counts).
        forced_bos_token_id: The target language's token where the model has such, else None.

    Returns:
        The beams that hold.

    Raises:
        UserError: the model's own generation config contradicts a beam search.
    """
    generation = model.generation_config
    generation.num_beams = num_beams or generation.num_beams or 4
    generation.max_length = max_length
    generation.max_new_tokens = None
    generation.do_sample = False
    generation.num_return_sequences = None
    for name in SAMPLING_OPTIONS:
        setattr(generation, name, None)
    if generation.num_beams == 1:
        generation.early_stopping = generation.length_penalty = None
    generation.pad_token_id = tokenizer.pad_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    for name, token_id in first_tokens(model, tokenizer, forced_bos_token_id).items():
        setattr(generation, name, token_id)
    try:
        generation.validate(strict=True)
    except ValueError as error:  # better now than at the first checkpoint
        reason = " ".join(str(error).split())
        raise UserError(f"--model_name_or_path: its generation_config.json cannot be used ({reason})") from error
    return generation.num_beams


def first_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, forced_bos_token_id: int | None
) -> dict[str, int | None]:
    """Return what a translation into the tokenizer's target language begins with, by name in a generation config.

    Args:
        model: Its family decides.
        tokenizer: Set to the language.
        forced_bos_token_id: The language's token where the model has such, else None.
    """
    labels = torch.tensor([tokenizer(text_target="a")["input_ids"]])
    # What training shows the decoder first; mBART's is the language, which the model's config does not name.
    found: dict[str, int | None] = {"decoder_start_token_id": int(shift_right(model, labels)[0, 0])}
    if forced_bos_token_id is not None:
        is_predicted = int(labels[0, 0]) == forced_bos_token_id  # mBART's labels end with the language, others begin so
        found["forced_bos_token_id"] = forced_bos_token_id if is_predicted else None
    return found


def shift_right(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """Make the decoder's input from the labels, as the model's own forward would.

    Args:
        model: Unwrapped; its family decides what comes first (mBART: the language token).
        labels: int64 [B, T], IGNORE_INDEX where nothing counts; in a filler that is everywhere.

    Returns:
        int64 [B, T].
    """
    family, config = family_of(model.config), cast(Any, model.config)
    if family.decoder_start == "model" and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return cast(Any, model).prepare_decoder_input_ids_from_labels(labels=labels)
    if family.decoder_start == "last label":
        last = (labels != IGNORE_INDEX).sum(dim=1, keepdim=True).clamp(min=1) - 1
        first = labels.gather(1, last)
    else:
        first = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    shifted = torch.cat([first, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, config.pad_token_id)


def static_mask(attention_mask: Tensor) -> Tensor:
    """On XLA turn a mask into what transformers makes of it, which it would first look into: a wait and a program each.

    Args:
        attention_mask: int64 [B, S], 1 at real tokens.

    Returns:
        On XLA float [B, 1, 1, S] to be added to eager attention's scores, elsewhere the mask itself.
    """
    return additive_mask(attention_mask) if attention_mask.device.type == "xla" else attention_mask


def additive_mask(attention_mask: Tensor) -> Tensor:
    """Return 0 where attention_mask, int64 [B, S], is 1 and the lowest fp32 number elsewhere: float [B, 1, 1, S]."""
    is_padding = attention_mask[:, None, None, :] == 0
    return torch.where(is_padding, torch.finfo(torch.float32).min, 0.0)
