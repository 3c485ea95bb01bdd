"""Load a pretrained model, or build one, and check it against its tokenizer."""

from __future__ import annotations

import logging
import os
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    MarianConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mtloop.config.inputs import ModelConfig, split_revision
from mtloop.errors import UserError, first_line
from mtloop.model.families import family_of

logger = logging.getLogger(__name__)

# For a model with pickled weights alone, transformers (5.24) asks the Hub for a bot's conversion to safetensors, and
# downloads what it does not use, in a thread without a timeout that the end of the process waits for.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

# Transformer base is Vaswani et al. 2017, table 3; the smaller two keep heads of 64 (32 for tiny) and 4 x feed-forward.
MODEL_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 128, "layers": 2, "heads": 4, "ffn_dim": 512},
    "small": {"d_model": 256, "layers": 3, "heads": 4, "ffn_dim": 1024},
    "base": {"d_model": 512, "layers": 6, "heads": 8, "ffn_dim": 2048},
}
# A model's table may be padded beyond its tokenizer (T5: 32,128 rows for 32,100 pieces); more than this is another
# vocabulary.
MAX_SPARE_ROWS = 256


def load_model(
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dropout: float | None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a pretrained seq2seq model in fp32.

    Args:
        name_or_path: Folder or Hub name, also `name@revision`.
        tokenizer: The tokenizer that the data was encoded with.
        dropout: Replaces the model's own where given.
        attention: transformers' attn_implementation; None leaves its choice.
        trust_remote_code: Whether code of the repository may run.

    Raises:
        UserError: no such model, no weights, not a seq2seq model, or another vocabulary than the tokenizer's.
    """
    name, revision = split_revision(name_or_path)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        _set_random_rates(config, dropout)
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"--model_name_or_path {name_or_path}: cannot be loaded ({first_line(error)}); give a folder with "
            f"config.json and model.safetensors, or a Hub name (without network: `hf download {name}` elsewhere)"
        ) from error
    _freeze_fixed_modules(model)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    if lacking := sorted(trainable & set(found["missing_keys"])):  # transformers draws them at random, with a warning
        raise UserError(
            f"--model_name_or_path {name_or_path}: its file lacks {len(lacking)} weights of a {type(model).__name__}, "
            f"such as {lacking[0]}; give a whole seq2seq model"
        )
    _match_vocabulary(model, tokenizer, name_or_path)
    return model


def build_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    model_size: str | None,
    config_name: str | None,
    dropout: float | None,
    max_length: int,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a model with random weights: a Marian of `model_size`, or what `config_name` describes.

    Args:
        tokenizer: Gives the vocabulary size and the special ids.
        model_size: A key of MODEL_SIZES; used when config_name is None.
        config_name: Folder or Hub name of a config, also `name@revision`.
        dropout: 0.1 when None and a model_size is built; the config's own otherwise.
        max_length: Tokens of the longest source or target: the positions needed.
        attention: transformers' attn_implementation; None leaves its choice.
        trust_remote_code: Whether code of the repository may run.

    Raises:
        UserError: no such config, or none that suits the tokenizer.
    """
    described = ModelConfig(
        config_name=config_name, model_size=cast(Any, model_size), trust_remote_code=trust_remote_code
    )
    config = load_config(described, tokenizer, max_length=max_length)
    _set_random_rates(config, dropout)
    config.vocab_size = _num_pieces(tokenizer)
    if hasattr(config, "decoder_vocab_size"):
        config.decoder_vocab_size = config.vocab_size
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    if getattr(config, "forced_eos_token_id", None) is not None:
        config.forced_eos_token_id = tokenizer.eos_token_id
    start = getattr(config, "decoder_start_token_id", None)
    if start is None or not 0 <= start < config.vocab_size:
        config.decoder_start_token_id = tokenizer.pad_token_id
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        model = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=trust_remote_code, **options)
    except (ValueError, IndexError) as error:  # IndexError: M2M100 wants more positions than the padding piece's id
        raise UserError(
            f"--config_name {config_name}: no seq2seq model can be built from it ({first_line(error)}); give the "
            "config of a translation model, such as a Marian's"
        ) from error
    # As the converted Marian models have it: the padding piece is no translation.
    model.generation_config.bad_words_ids = [[tokenizer.pad_token_id]]
    return model


def load_config(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 512) -> PretrainedConfig:
    """Return the config of the model that is named, or will be built. It tells the family before weights are loaded.

    Raises:
        UserError: no such config.
    """
    name_or_path = model.model_name_or_path or model.config_name
    if name_or_path is None:
        assert model.model_size is not None
        return _marian_config(model.model_size, tokenizer, max_length=max_length)
    flag = "model_name_or_path" if model.model_name_or_path else "config_name"
    name, revision = split_revision(name_or_path)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--{flag} {name_or_path}: cannot be loaded ({first_line(error)})") from error


def _marian_config(model_size: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> MarianConfig:
    size = MODEL_SIZES[model_size]
    return MarianConfig(
        d_model=size["d_model"],
        encoder_layers=size["layers"],
        decoder_layers=size["layers"],
        encoder_attention_heads=size["heads"],
        decoder_attention_heads=size["heads"],
        encoder_ffn_dim=size["ffn_dim"],
        decoder_ffn_dim=size["ffn_dim"],
        activation_function="swish",
        scale_embedding=True,
        max_position_embeddings=max(512, max_length),
        vocab_size=len(tokenizer),
        decoder_start_token_id=cast(int, tokenizer.pad_token_id),
    )


def _set_random_rates(config: PretrainedConfig, dropout: float | None) -> None:
    """Set the dropout of the layers where given, and never skip a layer; before the model is built from the config.

    Dropout of 0 also turns off that of attention weights and activations, which have rates of their own in most
    configs. Layers are not skipped (M2M100 skips 5 %), because data parallelism fails on weights without a gradient.
    """
    rates: dict[str, float] = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    if dropout is not None:
        rates |= {"dropout": dropout, "dropout_rate": dropout}
    if dropout == 0:
        rates |= {"attention_dropout": 0.0, "activation_dropout": 0.0}
    for name, rate in rates.items():
        if hasattr(config, name):
            setattr(config, name, rate)


def _freeze_fixed_modules(model: PreTrainedModel) -> None:
    """Freeze the modules that the family never trains."""
    frozen = family_of(model.config).frozen
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in frozen:
            module.requires_grad_(False)


def _num_pieces(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows that a table needs; len() does not count M2M100's language tokens."""
    languages: dict[str, int] = getattr(tokenizer, "lang_code_to_id", None) or {}
    return max(len(tokenizer), max(languages.values(), default=0) + 1)


def _match_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Resize the embeddings for added tokens; refuse a tokenizer of another vocabulary."""
    num_rows = len(cast(torch.nn.Embedding, model.get_input_embeddings()).weight)
    for kind in ("pad", "eos"):
        of_model, of_tokenizer = (getattr(owner, f"{kind}_token_id") for owner in (model.config, tokenizer))
        if of_model is not None and of_model != of_tokenizer:
            raise UserError(
                f"--tokenizer_name, with model {name}: the {kind} token is {of_tokenizer} in the tokenizer, "
                f"{of_model} in the model: the vocabularies disagree; use the model's own tokenizer"
            )
    num_pieces = _num_pieces(tokenizer)
    if tokenizer.vocab_size > num_rows or num_rows - num_pieces > MAX_SPARE_ROWS:
        raise UserError(
            f"--tokenizer_name, with model {name}: {num_pieces:,} pieces in the tokenizer, {num_rows:,} "
            "rows in the model: the vocabularies disagree; use the model's own tokenizer"
        )
    if num_pieces > num_rows:
        logger.info("embeddings resized from %d to %d rows for added tokens", num_rows, num_pieces)
        model.resize_token_embeddings(num_pieces)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """List the layers of encoder and decoder, in the order of the forward.

    Not by `_no_split_modules`: Marian's is empty, and a sharded Marian would silently be one unit, gathered whole.

    Raises:
        UserError: for a model whose encoder or decoder is no stack of layers.
    """
    layers: list[nn.Module] = []
    for side in (model.get_encoder(), model.get_decoder()):
        stacks = [child for child in side.children() if isinstance(child, nn.ModuleList)]
        longest = max(stacks, key=len, default=nn.ModuleList())
        if not len(longest):
            raise UserError(
                f"--shard_model: {type(side).__name__} of a {model.config.model_type} model is no stack of layers; "
                "train it unsharded, with accelerate_configs/multi_gpu.yaml"
            )
        layers += longest
    return layers
