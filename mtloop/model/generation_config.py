"""Configure how a model generates: its generation config, its positions, the first tokens of its decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.config.settings import FIELDS
from mtloop.errors import UserError, first_line
from mtloop.model.families import family_of
from mtloop.model.vocabularies import target_side

# Settings that generate() and save_pretrained() refuse together with a plain beam search.
SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# Settings that a plain beam search keeps. Any other selects another search or another output.
KEPT_OPTIONS = frozenset((
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "early_stopping", "length_penalty",
    "repetition_penalty", "encoder_repetition_penalty", "exponential_decay_length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
    "renormalize_logits", "remove_invalid_values", "forced_bos_token_id", "forced_eos_token_id", "pad_token_id",
    "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache", "disable_compile", "transformers_version",
))  # fmt: skip
# Values without an effect, in files of earlier versions of transformers.
NEUTRAL = {"num_beam_groups": 1, "num_return_sequences": 1, "guidance_scale": 1.0}


def read_generation_config(name: str, revision: str | None) -> tuple[GenerationConfig | None, list[str]]:
    """Read the generation config of a folder or of the Hub, without the options of other searches.

    transformers validates them all when it loads a model, and refuses some.

    Args:
        name: Folder or Hub name.
        revision: Of the Hub; None for the main branch.

    Returns:
        The options of a plain beam search in generation_config.json, or in the config.json of an earlier version of
        transformers, None if there is neither; and the names of those left out. Those of sampling have no effect
        without do_sample and are not named.

    Raises:
        Exception: whatever an invalid file leads to.
    """
    for file in ("generation_config.json", "config.json"):
        try:
            path = cached_file(name, file, revision=revision)
        except OSError:
            continue
        stored = json.loads(Path(cast(str, path)).read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise TypeError(f"{file} is not a JSON object")
        is_model_config = file == "config.json"
        known = vars(GenerationConfig()).keys() if is_model_config else stored.keys()
        left_out = {name: stored[name] for name in stored.keys() & known if not _is_kept(name, stored[name])}
        kept = {name: value for name, value in stored.items() if name not in left_out}
        found = GenerationConfig.from_model_config(kept) if is_model_config else GenerationConfig.from_dict(kept)
        for name, value in list(vars(found).items()):  # those of a decoder's own config
            if not _is_kept(name, value):
                left_out.setdefault(name, value)
                setattr(found, name, None)
        has_effect = {name for name, value in left_out.items() if value != NEUTRAL.get(name)}
        return found, sorted(has_effect.difference(SAMPLING_OPTIONS))
    return None, []


def drop_options(config: PretrainedConfig) -> None:
    """Remove the options of other searches from a model's config, where earlier versions of transformers kept them."""
    for name in vars(GenerationConfig()):
        if name in vars(config) and not _is_kept(name, getattr(config, name)):
            delattr(config, name)
    config.output_attentions = config.output_hidden_states = False
    config.return_dict, config.torchscript = True, False  # otherwise the outputs are tuples


def _is_kept(name: str, value: object) -> bool:
    return name in KEPT_OPTIONS or name.startswith("_") or value in (None, False)


def check_positions(limit: int | None, *, max_source_length: int, max_target_length: int) -> None:
    """Raise UserError for a length beyond position_limit, naming the flag and the limit."""
    for flag, length in (("--max_source_length", max_source_length), ("--max_target_length", max_target_length)):
        if limit is not None and length > limit:
            raise UserError(f"{flag}: this model has {limit} positions (got {length}). Give at most {limit}.")


def position_limit(config: PretrainedConfig) -> int | None:
    """Return the largest number of tokens that a model's positions allow; None if there is no limit."""
    if family_of(config).positions != "table":
        return None
    return getattr(config, "max_position_embeddings", None)


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
    highest = FIELDS["num_beams"].metadata["maximum"]
    if not (isinstance(generation.num_beams, int) and 1 <= generation.num_beams <= highest):
        raise UserError(
            f"--model_name_or_path: invalid num_beams in its generation_config.json (got {generation.num_beams!r}). "
            "Correct the file, or give --num_beams."
        )
    generation.max_length = max_length
    generation.max_new_tokens = None
    generation.do_sample = False
    generation.num_return_sequences = None
    for name in SAMPLING_OPTIONS:
        setattr(generation, name, None)
    if generation.num_beams == 1:
        generation.early_stopping = generation.length_penalty = None
    _configure_end(model, tokenizer)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if forced := as_list(getattr(generation, name)):
            setattr(generation, name, forced[0])  # one of several, as each engine can force it
    for name, token_id in first_tokens(model, tokenizer, forced_bos_token_id).items():
        setattr(generation, name, token_id)
    try:
        generation.validate(strict=True)
    except Exception as error:  # otherwise the first checkpoint fails
        reason = " ".join(str(error).split()) or first_line(error)
        raise UserError(
            f"--model_name_or_path: its generation_config.json is invalid for beam search ({reason}). Correct the file."
        ) from error
    return generation.num_beams


def as_list(ids: int | list[int] | None) -> list[int]:
    """Return the ids of a setting that is one id, several or none."""
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]


def _configure_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokens that end a translation, the targets' own and the model's, and the one after them.

    Raises:
        UserError: One is not in the vocabulary, or of two vocabularies the targets' own is missing.
    """
    generation, targets = model.generation_config, target_side(tokenizer)
    generation.pad_token_id, source_pad = targets.pad_token_id, tokenizer.pad_token_id
    ends, own = as_list(generation.eos_token_id), targets.eos_token_id
    num_rows = len(cast(torch.nn.Embedding, model.get_input_embeddings()).weight)
    if not all(isinstance(end, int) and end >= 0 and (end < num_rows or targets is not tokenizer) for end in ends):
        raise UserError(
            f"--model_name_or_path: invalid eos_token_id in its generation_config.json (got {ends}, the vocabulary has "
            f"{num_rows:,} rows). Correct the file."
        )
    if targets is not tokenizer and ends and own not in (None, *ends):
        raise UserError(
            f"--model_name_or_path: translations end with another token than {targets.eos_token} of the target "
            f"vocabulary, {own} (got eos_token_id {generation.eos_token_id}). Correct generation_config.json."
        )
    if own is not None and own not in ends:
        ends = [own, *ends]
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    if targets is not tokenizer and generation.bad_words_ids == [[source_pad]]:
        # It means <pad>, not the target token of the same id.
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
