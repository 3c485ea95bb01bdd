"""Convert a model of transformers to a folder of CTranslate2: weights, vocabulary, tokenizer and generation settings.

CTranslate2's loaders read the weights only. The rest is done here, because the converter of CTranslate2 4.8, with
transformers 5.24,

- refuses BART, mBART and Pegasus (their configs no longer have normalize_before),
- scales the outputs of mT5 and of T5 v1.1, which transformers does not (tie_word_embeddings is always true there),
- starts Marian from a zero embedding, although training changes the padding token's if embeddings are tied,
- assumes that the padding token of M2M100, after which positions begin, has id 1,
- refuses embeddings with more rows than the tokenizer has tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from ctranslate2.converters import transformers as loaders
from ctranslate2.converters.converter import Converter
from ctranslate2.specs.model_spec import OPTIONAL
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.errors import UserError, described
from mtloop.generation.ctranslate2 import TOKENIZER_DIR, Record, Search
from mtloop.model.families import FAMILIES, family_of
from mtloop.model.generation_config import as_list, position_limit
from mtloop.model.vocabularies import target_vocabulary
from mtloop.tokenization.loading import target_language_token

# Settings of a generation config that CTranslate2 does not support, with the values that have no effect.
FOREIGN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None,),
    "min_new_tokens": (None, 0),
    "renormalize_logits": (None, False),
}

# The same for settings that forbid tokens: generate's beam search normalizes before, CTranslate2 after.
FORBIDDING_SETTINGS: dict[str, tuple[Any, ...]] = {
    "min_length": (None, 0),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
}


def refusal(model_config: Any) -> str:
    """Return the reason why a model cannot be converted, "" if it can."""
    kind, family = model_config.model_type, family_of(model_config)
    if family.ctranslate2_loader is None:
        convertible = ", ".join(name for name, row in FAMILIES.items() if row.ctranslate2_loader)
        return f"a model of type {kind} cannot be converted to CTranslate2 (only {convertible})"
    attribute, since = family.ctranslate2_needs or (None, None)
    if attribute and not hasattr(model_config, attribute):
        return (
            f"transformers {version('transformers')} computes {kind} differently from CTranslate2; pip install -U "
            f"transformers, {since} or later"
        )
    return ""


def convert(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    target: Path,
    *,
    quantization: str | None,
    origin: tuple[str | None, int | None] = (None, None),
) -> Record:
    """Write the export of a model into a new folder.

    Args:
        network: The model, with a configured generation config. It cannot be used afterwards: CTranslate2 reads the
            weights from the CPU's memory and scales them in place when it quantizes.
        tokenizer: Set to its languages.
        model: Its name, as the user gave it.
        target: Must not exist.
        quantization: One of CTranslate2's; None keeps fp32.
        origin: Run id and optimizer step of the model, if known.

    Returns:
        The record, not yet written.

    Raises:
        UserError: A model that CTranslate2 does not support.
    """
    network = network.cpu()
    if reason := refusal(network.config):
        raise UserError(f"--model {model}: {reason}. Translate with transformers instead.")
    search = search_of(network, tokenizer)
    config = network.config.to_dict()
    converter = _Converter(network, tokenizer, search)
    try:
        converter.convert(str(target), quantization=quantization)
    except OSError:  # of the target
        raise
    except Exception as error:  # anything its loaders raise
        raise UserError(
            f"--model {model}: CTranslate2 {version('ctranslate2')} cannot convert it ({described(error)}). Translate "
            "with transformers instead."
        ) from error
    tokenizer.save_pretrained(target / TOKENIZER_DIR)
    type(network.config).from_dict(config).save_pretrained(target / TOKENIZER_DIR)  # tells AutoTokenizer the class
    return Record(
        model=model,
        run_id=origin[0],
        step=origin[1],
        quantization=quantization,
        versions={name: version(name) for name in ("ctranslate2", "transformers", "torch")},
        search=replace(search, position_limit=converter.num_positions or search.position_limit),
    )


def differences(network: PreTrainedModel) -> list[str]:
    """Return a line for each generation setting of a model that CTranslate2 ignores or applies differently."""
    found = network.generation_config

    def held(settings: dict[str, tuple[Any, ...]]) -> list[str]:
        return [name for name, unset in settings.items() if getattr(found, name, None) not in unset]

    lines = [f"{name}: not supported by CTranslate2, which ignores it" for name in held(FOREIGN_SETTINGS)]
    if found.num_beams != 1:
        effect = "CTranslate2 applies it differently among several beams: translations may differ"
        lines += [f"{name}: {effect}" for name in held(FORBIDDING_SETTINGS)]
    return lines


def search_of(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Search:
    """Return a configured generation config in the form of an export."""
    found = cast(Any, network.generation_config)
    return Search(
        num_beams=found.num_beams,
        max_length=found.max_length,
        min_length=found.min_length or 0,
        position_limit=position_limit(network.config),
        decoder_start_id=found.decoder_start_token_id,
        forced_bos_id=found.forced_bos_token_id,
        language_id=target_language_token(tokenizer),
        eos_ids=sorted(as_list(found.eos_token_id), key=lambda end: end != found.forced_eos_token_id),
        has_forced_end=found.forced_eos_token_id is not None,
        bad_words=found.bad_words_ids or [],
        length_penalty=1.0 if found.length_penalty is None else found.length_penalty,
        repetition_penalty=found.repetition_penalty or 1.0,
        no_repeat_ngram_size=found.no_repeat_ngram_size or 0,
        stops_early=found.early_stopping is True,
    )


class _Converter(Converter):
    """CTranslate2's converter for a model that is already in memory."""

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, search: Search) -> None:
        self._network, self._tokenizer, self._search = network, tokenizer, search
        self.num_positions: int | None = None

    @torch.no_grad()
    def _load(self) -> Any:
        config = cast(Any, self._network.config)
        encoder = self._network.get_encoder()
        # The loaders read these; the modules show which norms the model has.
        config.normalize_before = hasattr(encoder, "layer_norm")
        config.normalize_embedding = hasattr(encoder, "layernorm_embedding")
        family = family_of(config)
        assert family.ctranslate2_loader is not None
        if family.positions == "extended":
            self._extend_positions()
        spec: Any = getattr(loaders, family.ctranslate2_loader)().get_model_spec(self._network)
        if family.positions == "relative":
            is_scaled = getattr(config, "scale_decoder_outputs", False)
            spec.decoder.scale_outputs = config.d_model**-0.5 if is_scaled else OPTIONAL
        else:
            self.num_positions = len(spec.encoder.position_encodings.encodings)
        self._name_tokens(spec)
        return spec

    def _extend_positions(self) -> None:
        """Make M2M100's table of sines, which transformers extends as needed, as long as the longest text.

        It begins after the padding token's id; the loader assumes that it is 1 and reads `offset`.
        """
        num_positions = max(cast(Any, self._network.config).max_position_embeddings, self._search.max_length)
        for side in (self._network.get_encoder(), self._network.get_decoder()):
            table = side.embed_positions
            table.offset = table.padding_idx + 1
            table.make_weights(num_positions + table.offset, table.embedding_dim, table.padding_idx)

    def _name_tokens(self, spec: Any) -> None:
        tokenizer, search = cast(Any, self._tokenizer), self._search
        vocabulary = {**tokenizer.get_vocab(), **getattr(tokenizer, "lang_token_to_id", {})}
        (num_sources,), num_targets = spec.get_source_vocabulary_size(), spec.get_target_vocabulary_size()
        targets = _tokens(target_vocabulary(tokenizer) or vocabulary, num_targets)
        spec.register_source_vocabulary(_tokens(vocabulary, num_sources))
        spec.register_target_vocabulary(targets)
        spec.config.unk_token = tokenizer.unk_token
        spec.config.bos_token = tokenizer.bos_token or tokenizer.pad_token
        spec.config.eos_token = targets[search.eos_ids[0]]
        spec.config.decoder_start_token = None if search.starts_with_language else targets[search.decoder_start_id]


def _tokens(vocabulary: Mapping[str, int], num_rows: int) -> list[str]:
    """Return a name for each row of the embeddings; rows without a token get a name that no text contains."""
    by_id = {token_id: token for token, token_id in vocabulary.items()}
    return [by_id.get(row, f"<spare {row}>") for row in range(num_rows)]
