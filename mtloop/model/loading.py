"""Load a pretrained model or build a new one, and check that it fits its tokenizer."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    MarianConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mtloop.config.model import ModelConfig, split_revision
from mtloop.errors import UserError, described, refused
from mtloop.model.families import family_of
from mtloop.model.generation_config import as_list, drop_options, read_generation_config
from mtloop.model.vocabularies import target_side

logger = logging.getLogger(__name__)

# For a model with only pickled weights, transformers (5.24) requests a conversion to safetensors from the Hub and
# downloads unused files, in a thread without a timeout that delays the end of the process.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

# Transformer base is Vaswani et al. 2017, table 3; the smaller two keep heads of 64 (32 for tiny) and 4 x feed-forward.
MODEL_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 128, "layers": 2, "heads": 4, "ffn_dim": 512},
    "small": {"d_model": 256, "layers": 3, "heads": 4, "ffn_dim": 1024},
    "base": {"d_model": 512, "layers": 6, "heads": 8, "ffn_dim": 2048},
}
# The embeddings may have more rows than the tokenizer has tokens (T5: 32,128 and 32,100); beyond this difference the
# vocabulary is another.
MAX_SPARE_ROWS = 256


def load_model(
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dropout: float | None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> PreTrainedModel:
    """Load a pretrained seq2seq model in fp32.

    Args:
        name_or_path: Folder or Hub name, also `name@revision`.
        tokenizer: The tokenizer that encodes the data.
        dropout: Replaces the model's dropout; None keeps it.
        attention: transformers' attn_implementation; None is its default.
        trust_remote_code: Whether code of the repository may run.
        say: Called with a line for the options of generation_config.json that are ignored.

    Raises:
        UserError: No such model, no or non-finite weights, not a seq2seq model, or another vocabulary than the
            tokenizer's.
    """
    name, revision = split_revision(name_or_path)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    config = _load_config(name_or_path, "--model_name_or_path", trust_remote_code=trust_remote_code)
    if method := getattr(config, "quantization_config", None):
        kind = method.get("quant_method") if isinstance(method, dict) else method
        raise UserError(
            f"--model_name_or_path {name_or_path}: the weights are quantised, which is not supported (got quant_method "
            f"{kind}). Give the model that they were made from."
        )
    _set_random_rates(config, dropout)
    drop_options(config)
    with refused(lambda error: _loading_advice(name_or_path, "--model_name_or_path", error)):
        generation_config, ignored = read_generation_config(name, revision)
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            name,
            config=config,
            generation_config=generation_config,
            revision=revision,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    if ignored:
        say(f"generation_config.json: {', '.join(ignored)} ignored: not options of a plain beam search")
    _freeze_fixed_modules(model)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    if lacking := sorted(trainable & set(found["missing_keys"])):  # transformers only warns
        raise UserError(
            f"--model_name_or_path {name_or_path}: {len(lacking)} weights of a {type(model).__name__} are missing, "
            f"for example {lacking[0]}. Give a complete seq2seq model."
        )
    # A buffer may hold -inf, as a bias that forbids tokens.
    if bad := nonfinite(dict(model.named_parameters())) + [n for n, b in model.named_buffers() if b.isnan().any()]:
        raise UserError(
            f"--model_name_or_path {name_or_path}: {len(bad)} weights are not finite, for example {bad[0]}. Give "
            "another checkpoint of the model."
        )
    _complete_special_tokens(model, tokenizer, name_or_path)
    _match_vocabulary(model, tokenizer, name_or_path)
    _train_target_rows(model, tokenizer)
    return model


@torch.no_grad()
def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors with a value that is not finite. A host sync, once unless one is found."""
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()]).tolist()
    # A sum of finite values may overflow.
    suspects = [name for name, total in zip(tensors, sums, strict=True) if not math.isfinite(total)]
    return [name for name in suspects if not tensors[name].isfinite().all()]


def build_model(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int, attention: str | None = None
) -> PreTrainedModel:
    """Build a model with random weights: a Marian of `model_size`, or the model described by `config_name`.

    Args:
        model: Its dropout, if None, is 0.1 for a model_size and the config's own otherwise.
        tokenizer: Has the vocabulary size and the special token ids.
        max_length: Tokens of the longest source or target, the positions needed.
        attention: transformers' attn_implementation; None is its default.

    Raises:
        UserError: No such config, or no model can be built from it.
    """
    config = load_config(model, tokenizer, max_length=max_length)
    _set_random_rates(config, model.dropout)
    config.vocab_size = _num_tokens(tokenizer)
    targets = target_side(tokenizer)
    if hasattr(config, "decoder_vocab_size"):
        config.decoder_vocab_size = config.vocab_size
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, targets.eos_token_id
    if getattr(config, "forced_eos_token_id", None) is not None:
        config.forced_eos_token_id = targets.eos_token_id
    start = getattr(config, "decoder_start_token_id", None)
    if start is None or not 0 <= start < config.vocab_size or targets is not tokenizer:
        config.decoder_start_token_id = targets.pad_token_id
    if targets is not tokenizer:
        if config.model_type != "marian":
            raise UserError(
                f"--tokenizer_name: two vocabularies, but a new {config.model_type} model has one (got "
                f"{tokenizer.name_or_path}). Give --model_size or the config of a Marian model."
            )
        config.share_encoder_decoder_embeddings = False
        config.decoder_vocab_size = max(len(targets), config.pad_token_id + 1)  # it has a row for this id too
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    advice = "Give the config of a translation model, for example Helsinki-NLP/opus-mt-en-fr."
    with refused(
        lambda error: (  # IndexError: M2M100 needs more positions than the padding token's id
            f"--config_name {model.config_name}: no seq2seq model can be built from it ({described(error)}). {advice}"
        )
    ):
        network = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=model.trust_remote_code, **options)
    # As in the converted Marian models: never generate the padding token.
    network.generation_config.bad_words_ids = [[targets.pad_token_id]]
    _train_target_rows(network, tokenizer)
    return network


def load_config(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, max_length: int = 512
) -> PretrainedConfig:
    """Return the config of the named model, or of the model to build, without loading weights.

    Raises:
        UserError: No such config.
    """
    name_or_path = model.model_name_or_path or model.config_name
    if name_or_path is None:
        assert model.model_size is not None and tokenizer is not None
        return _marian_config(model.model_size, tokenizer, max_length=max_length)
    flag = "--model_name_or_path" if model.model_name_or_path else "--config_name"
    return _load_config(name_or_path, flag, trust_remote_code=model.trust_remote_code)


def _load_config(name_or_path: str, flag: str, *, trust_remote_code: bool) -> PretrainedConfig:
    name, revision = split_revision(name_or_path)
    with refused(lambda error: _loading_advice(name_or_path, flag, error)):
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def _loading_advice(name_or_path: str, flag: str, error: BaseException) -> str:
    """Return the line for whatever transformers raises: ImportError, TypeError and SafetensorError were all seen."""
    files = "config.json and model.safetensors" if flag == "--model_name_or_path" else "config.json"
    return (
        f"{flag} {name_or_path}: cannot be loaded ({described(error)}). Give a folder with {files}, or a Hub name "
        f"(offline: run `hf download {split_revision(name_or_path)[0]}` on another machine)."
    )


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
    """Set the dropout of the layers in a config, if given, and disable the skipping of layers.

    A dropout of 0 also disables that of attention weights and activations, which most configs have separately. M2M100
    skips 5 % of the layers; data parallelism fails on weights without a gradient.
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


def _num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of embedding rows that a tokenizer needs; len() does not count M2M100's language tokens."""
    languages: dict[str, int] = getattr(tokenizer, "lang_code_to_id", None) or {}
    return max(len(tokenizer), max(languages.values(), default=0) + 1)


def _complete_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Set the special tokens that a config or a tokenizer lacks, as for an EncoderDecoder of two BERTs, from the other.

    A BERT tokenizer ends a text with [SEP] and names no end token: it gets the model's.

    Raises:
        UserError: naming what to set in config.json.
    """
    config, generation = cast(Any, model.config), cast(Any, model.generation_config)
    targets = target_side(tokenizer)
    for kind, token_id in (
        ("pad", tokenizer.pad_token_id),
        ("decoder_start", generation.decoder_start_token_id),
        ("eos", targets.eos_token_id if generation.eos_token_id is None else generation.eos_token_id),
    ):
        if getattr(config, f"{kind}_token_id", None) is None:
            setattr(config, f"{kind}_token_id", token_id)
    missing = []
    if family_of(config).decoder_start != "last label" and config.decoder_start_token_id is None:
        missing.append("decoder_start_token_id, for two BERTs the id of [CLS]")
    if targets is tokenizer and tokenizer.eos_token_id is None:
        last = tokenizer("a")["input_ids"][-1]
        if last in as_list(config.eos_token_id):
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(last)
        else:
            missing.append("eos_token_id, for two BERTs the id of [SEP]")
    if missing:
        raise UserError(
            f"--model_name_or_path {name}: tokens that begin or end a translation are missing. Set in its config.json "
            f"{'; '.join(missing)}."
        )


def _match_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Extend the embeddings for added tokens; refuse a tokenizer with another vocabulary."""
    num_rows = len(cast(torch.nn.Embedding, model.get_input_embeddings()).weight)
    targets = target_side(tokenizer)
    for kind, side in (("pad", tokenizer), ("eos", targets)):
        of_model, of_tokenizer = (getattr(owner, f"{kind}_token_id") for owner in (model.config, side))
        if None not in (of_model, of_tokenizer) and of_tokenizer not in as_list(of_model):  # FSMT's has no end
            remedy = "Use the model's own tokenizer"
            if side is not tokenizer:
                remedy += f", or set {kind}_token_id in its config.json to that of the target vocabulary"
            raise UserError(
                f"--tokenizer_name: the vocabularies disagree (got {kind} token {of_tokenizer}, model {name} has "
                f"{of_model}). {remedy}."
            )
    num_tokens = _num_tokens(tokenizer)
    if tokenizer.vocab_size > num_rows or num_rows - num_tokens > MAX_SPARE_ROWS:
        raise UserError(
            f"--tokenizer_name: the vocabularies disagree (got {num_tokens:,} tokens, model {name} has {num_rows:,} "
            "rows). Use the model's own tokenizer."
        )
    if targets is not tokenizer:
        _match_targets(model, tokenizer, name)
    if num_tokens > num_rows:
        logger.info("embeddings resized from %d to %d rows for added tokens", num_rows, num_tokens)
        model.resize_token_embeddings(num_tokens)


def _match_targets(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a model that cannot have the second vocabulary of a tokenizer."""
    targets, num_rows = target_side(tokenizer), len(cast(Any, model.get_decoder()).embed_tokens.weight)
    if len(targets) > num_rows:
        raise UserError(
            f"--tokenizer_name: the vocabularies disagree (got {len(targets):,} target tokens, model {name} has "
            f"{num_rows:,} rows for them). Use the model's own tokenizer."
        )
    # Marian's decoder ignores the padding id; others mask the target token that has it.
    if model.config.model_type != "marian" and targets.pad_token_id != tokenizer.pad_token_id:
        raise UserError(
            f"--tokenizer_name: a {model.config.model_type} model needs the same id of {tokenizer.pad_token} in both "
            f"vocabularies (got {tokenizer.pad_token_id} and {targets.pad_token_id}). Use the model's own tokenizer."
        )


def _train_target_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the decoder's embedding of a target token learn whose id is that of the source's padding."""
    targets = target_side(tokenizer)
    if targets is not tokenizer:
        cast(Any, model.get_decoder()).embed_tokens.padding_idx = targets.pad_token_id


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """List the layers of encoder and decoder, in the order of the forward.

    `_no_split_modules` cannot be used: Marian's is empty, and a sharded Marian would be one unit, gathered whole.

    Raises:
        UserError: The encoder or decoder is not a stack of layers.
    """
    layers: list[nn.Module] = []
    for side in (model.get_encoder(), model.get_decoder()):
        stacks = [child for child in side.children() if isinstance(child, nn.ModuleList)]
        longest = max(stacks, key=len, default=nn.ModuleList())
        if not len(longest):
            raise UserError(
                f"--shard_model: the {type(side).__name__} of a {model.config.model_type} model is not a stack of "
                "layers. Train it unsharded, with multi_gpu.yaml."
            )
        layers += longest
    return layers
