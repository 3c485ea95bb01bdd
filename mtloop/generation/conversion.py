"""A model of transformers -> a folder of CTranslate2: weights, vocabulary, tokenizer and generation settings.

CTranslate2's loaders bring the weights alone. What surrounds them is settled here, because as of CTranslate2 4.8 and
transformers 5.24 its own converter

- refuses BART, mBART and Pegasus (their configs no longer say normalize_before),
- scales the outputs of mT5 and of T5 v1.1, which transformers does not (tie_word_embeddings is always true there),
- starts Marian from a zero embedding, although training moves the padding piece's where embeddings are tied,
- takes the padding piece of M2M100 to be number 1, behind which positions begin,
- refuses tables with more rows than the tokenizer has pieces.
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

from mtloop.errors import UserError, first_line
from mtloop.generation.ctranslate2 import TOKENIZER_DIR, Record, Search
from mtloop.model.families import FAMILIES, family_of
from mtloop.model.generation_config import position_limit
from mtloop.tokenization.loading import target_language_token

# Settings of a generation config that CTranslate2 has no name for, with what means nothing.
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

# Likewise, of those by which pieces are struck out: generate's beam search norms before, CTranslate2 after.
STRIKING_SETTINGS: dict[str, tuple[Any, ...]] = {
    "min_length": (None, 0),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
}


def refusal(model_config: Any) -> str:
    """Say why a model cannot be converted; "" if it can."""
    kind, family = model_config.model_type, family_of(model_config)
    if family.ctranslate2_loader is None:
        convertible = ", ".join(name for name, row in FAMILIES.items() if row.ctranslate2_loader)
        return f"no conversion of a {kind} to CTranslate2; it takes {convertible}"
    attribute, since = family.ctranslate2_needs or (None, None)
    if attribute and not hasattr(model_config, attribute):
        return (
            f"transformers {version('transformers')} computes {kind} otherwise than CTranslate2 does; pip install -U "
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
        network: The model, its generation config settled. It cannot be used afterwards: CTranslate2 scales the weights
            in place when it quantises, and reads them from the CPU's memory.
        tokenizer: Set to its languages.
        model: As the user named it.
        target: Must not exist.
        quantization: One of CTranslate2's; None keeps fp32.
        origin: Run id and step of the model, where they are known.

    Returns:
        The record, not yet written.

    Raises:
        UserError: a model that CTranslate2 does not take.
    """
    network = network.cpu()
    if reason := refusal(network.config):
        raise UserError(f"--model {model}: {reason}")
    search = search_of(network, tokenizer)
    config = network.config.to_dict()
    converter = _Converter(network, tokenizer, search)
    try:
        converter.convert(str(target), quantization=quantization)
    except (ValueError, KeyError, AttributeError, RuntimeError) as error:  # whatever its loaders stumble over
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"--model {model}: CTranslate2 {version('ctranslate2')} cannot convert it ({reason})"
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
    """Tell, a line for each, which generation settings of a model do not mean the same to CTranslate2."""
    found = network.generation_config

    def held(settings: dict[str, tuple[Any, ...]]) -> list[str]:
        return [name for name, unset in settings.items() if getattr(found, name, None) not in unset]

    lines = [f"{name}: CTranslate2 has nothing like it, and goes without" for name in held(FOREIGN_SETTINGS)]
    if found.num_beams != 1:
        what = "CTranslate2 weighs it otherwise among several beams: translations may differ"
        lines += [f"{name}: {what}" for name in held(STRIKING_SETTINGS)]
    return lines


def search_of(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Search:
    """Put a settled generation config into the terms of an export."""
    found = cast(Any, network.generation_config)
    ends = found.eos_token_id if isinstance(found.eos_token_id, list) else [found.eos_token_id]
    return Search(
        num_beams=found.num_beams,
        max_length=found.max_length,
        min_length=found.min_length or 0,
        position_limit=position_limit(network),
        decoder_start_id=found.decoder_start_token_id,
        forced_bos_id=found.forced_bos_token_id,
        language_id=target_language_token(tokenizer),
        eos_ids=ends,
        has_forced_end=found.forced_eos_token_id is not None,
        bad_words=found.bad_words_ids or [],
        length_penalty=1.0 if found.length_penalty is None else found.length_penalty,
        repetition_penalty=found.repetition_penalty or 1.0,
        no_repeat_ngram_size=found.no_repeat_ngram_size or 0,
        stops_early=found.early_stopping is True,
    )


class _Converter(Converter):
    """CTranslate2's converter of a model that is in memory already."""

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, search: Search) -> None:
        self._network, self._tokenizer, self._search = network, tokenizer, search
        self.num_positions: int | None = None

    @torch.no_grad()
    def _load(self) -> Any:
        config = cast(Any, self._network.config)
        encoder = self._network.get_encoder()
        # What a norm before each block and one behind the embedding leave in the model.
        config.normalize_before = hasattr(encoder, "layer_norm")
        config.normalize_embedding = hasattr(encoder, "layernorm_embedding")
        family = family_of(config)
        assert family.ctranslate2_loader is not None
        if family.positions == "extended":
            self._lay_positions_out()
        spec: Any = getattr(loaders, family.ctranslate2_loader)().get_model_spec(self._network)
        if family.positions == "relative":
            is_scaled = getattr(config, "scale_decoder_outputs", False)
            spec.decoder.scale_outputs = config.d_model**-0.5 if is_scaled else OPTIONAL
        else:
            self.num_positions = len(spec.encoder.position_encodings.encodings)
        self._name_pieces(spec)
        return spec

    def _lay_positions_out(self) -> None:
        """Make M2M100's table of sines, which transformers extends as needed, as long as any text may be.

        It begins behind the number of the padding piece; the loader takes that to be 1 and reads `offset`.
        """
        num_positions = max(cast(Any, self._network.config).max_position_embeddings, self._search.max_length)
        for side in (self._network.get_encoder(), self._network.get_decoder()):
            table = side.embed_positions
            table.offset = table.padding_idx + 1
            table.make_weights(num_positions + table.offset, table.embedding_dim, table.padding_idx)

    def _name_pieces(self, spec: Any) -> None:
        tokenizer, search = cast(Any, self._tokenizer), self._search
        vocabulary = {**tokenizer.get_vocab(), **getattr(tokenizer, "lang_token_to_id", {})}
        own_target = getattr(tokenizer, "target_encoder", {}) if getattr(tokenizer, "separate_vocabs", False) else {}
        (num_sources,), num_targets = spec.get_source_vocabulary_size(), spec.get_target_vocabulary_size()
        targets = _pieces(own_target or vocabulary, num_targets)
        spec.register_source_vocabulary(_pieces(vocabulary, num_sources))
        spec.register_target_vocabulary(targets)
        spec.config.unk_token = tokenizer.unk_token
        spec.config.bos_token = tokenizer.bos_token or tokenizer.pad_token
        spec.config.eos_token = targets[search.eos_ids[0]]
        spec.config.decoder_start_token = None if search.starts_with_language else targets[search.decoder_start_id]


def _pieces(vocabulary: Mapping[str, int], num_rows: int) -> list[str]:
    """Return a name for each row of a table; those beyond the tokenizer's pieces get one that no text has."""
    by_id = {number: piece for piece, number in vocabulary.items()}
    return [by_id.get(row, f"<spare {row}>") for row in range(num_rows)]
