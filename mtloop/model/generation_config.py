"""Configure how a model generates: its generation config, its positions, the first tokens of its decoder."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.errors import UserError
from mtloop.model.families import family_of
from mtloop.model.vocabularies import target_side

# Settings that generate() and save_pretrained() refuse together with a plain beam search.
SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_positions(limit: int | None, *, max_source_length: int, max_target_length: int) -> None:
    """Raise UserError for a length beyond position_limit(model), naming the flag and the limit."""
    for flag, length in (("--max_source_length", max_source_length), ("--max_target_length", max_target_length)):
        if limit is not None and length > limit:
            raise UserError(f"{flag}: this model has {limit} positions (got {length}). Give at most {limit}.")


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the largest number of tokens that a model's positions allow; None if there is no limit."""
    if family_of(model.config).positions != "table":
        return None
    return getattr(model.config, "max_position_embeddings", None)


def configure_generation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_beams: int | None,
    max_length: int,
    forced_bos_token_id: int | None,
) -> int:
    """Set the generation config that every evaluation and every export uses.

    Args:
        model: Its generation_config is changed.
        tokenizer: Has the padding and end tokens.
        num_beams: None keeps the model's number of beams, or 4 if it has none.
        max_length: Maximum tokens of a translation, decoder start included (as the course counts).
        forced_bos_token_id: The target language's token if the model has one, else None.

    Returns:
        The number of beams.

    Raises:
        UserError: The model's generation config contradicts a beam search.
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
    _configure_end(generation, tokenizer)
    for name, token_id in first_tokens(model, tokenizer, forced_bos_token_id).items():
        setattr(generation, name, token_id)
    try:
        generation.validate(strict=True)
    except ValueError as error:  # otherwise the first checkpoint fails
        reason = " ".join(str(error).split())
        raise UserError(
            f"--model_name_or_path: its generation_config.json is invalid for beam search ({reason}). Correct the file."
        ) from error
    return generation.num_beams


def _configure_end(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokens after a translation, of the targets' vocabulary.

    Raises:
        UserError: Translations end with another token than the targets.
    """
    targets = target_side(tokenizer)
    generation.pad_token_id, source_pad = targets.pad_token_id, tokenizer.pad_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = targets.eos_token_id
    if targets is tokenizer:
        return
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if targets.eos_token_id not in (None, *ends):
        raise UserError(
            f"--model_name_or_path: translations end with another token than {targets.eos_token} of the target "
            f"vocabulary, {targets.eos_token_id} (got eos_token_id {generation.eos_token_id}). Correct "
            "generation_config.json."
        )
    if generation.bad_words_ids == [[source_pad]]:  # means <pad>, not the target token of the same id
        has_pad = targets.pad_token_id != targets.unk_token_id
        generation.bad_words_ids = [[targets.pad_token_id]] if has_pad else None


def first_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, forced_bos_token_id: int | None
) -> dict[str, int | None]:
    """Return the first tokens of a translation into the tokenizer's target language, by generation config name.

    Args:
        model: Its family determines the decoder start.
        tokenizer: Set to the target language.
        forced_bos_token_id: The language's token if the model has one, else None.
    """
    labels = torch.tensor([target_side(tokenizer)(text_target="a")["input_ids"]])
    # As in training: mBART starts with the language, which its config does not name.
    found: dict[str, int | None] = {"decoder_start_token_id": int(shift_right(model, labels)[0, 0])}
    if forced_bos_token_id is not None:
        is_predicted = int(labels[0, 0]) == forced_bos_token_id  # mBART's labels end with it
        found["forced_bos_token_id"] = forced_bos_token_id if is_predicted else None
    return found


def shift_right(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """Return the decoder's input for given labels, as the model's own forward makes it.

    Args:
        model: Unwrapped; its family determines the first token (mBART: the language token).
        labels: int64 [B, T], IGNORE_INDEX at positions that do not count; in a filler row that is all of them.

    Returns:
        int64 [B, T].
    """
    family, config = family_of(model.config), cast(Any, model.config)
    if family.decoder_start == "model" and hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return cast(Any, model).prepare_decoder_input_ids_from_labels(labels=labels)
    if family.decoder_start == "last label":
        last = (labels != IGNORE_INDEX).sum(dim=1, keepdim=True).clamp(min=1) - 1  # a filler row has no real label
        first = labels.gather(1, last)
    else:
        first = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    shifted = torch.cat([first, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, config.pad_token_id)
