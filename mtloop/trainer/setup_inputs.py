"""Read what a run is made of: model configuration, tokenizer, languages, then the rows. What is cheap comes first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from mtloop.checkpoint.listing import open_folder
from mtloop.config.fields import LEAVE_ONE_OUT
from mtloop.config.model import ModelConfig
from mtloop.config.settings import Config, changed
from mtloop.data.load import Corpus, describe, load_corpus
from mtloop.data.splits import leak_line
from mtloop.errors import UserError, rename_flag
from mtloop.model.generation_config import check_positions, position_limit
from mtloop.model.loading import load_config
from mtloop.model.vocabularies import target_side
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import (
    can_tell_pairs_apart,
    for_languages,
    language_token,
    load_tokenizer,
    source_prefix,
)
from mtloop.tokenization.protection import MASKS, add_masks, check_masks, is_protected, mask, mask_target
from mtloop.tokenization.training import train_tokenizer
from mtloop.trainer.report import check_eval_engine


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Language pair of a run and the encoding of its rows.

    Attributes:
        name: For example en-fr; "" if the run has a single pair.
        target_lang: As given; None where columns are named instead.
        tokenizer: Set to the languages of the pair.
        prefix: Prepended to every source; None for nothing.
    """

    name: str
    source_lang: str | None
    target_lang: str | None
    tokenizer: PreTrainedTokenizerBase
    prefix: str | None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Hold what a run is built from.

    Attributes:
        model: The settings, with verified folders for the names of run folders and checkpoints.
        tokenizer: Set to the languages of the first pair.
        pairs: At least one.
        corpora: The rows of each pair.
    """

    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    pairs: list[Pair]
    corpora: list[Corpus]


def read_inputs(config: Config, folder: RunFolder, runtime: Runtime, *, is_new: bool) -> tuple[Inputs, Config]:
    """Read tokenizer and model configuration, then the rows, which take longest. Collective.

    Returns:
        The inputs, and the configuration with the prefix of a single pair.

    Raises:
        UserError: No such model or tokenizer, not a translation model, unknown languages, or a mistake in the data.
    """
    recorded = {} if is_new else runtime.on_main(lambda: folder.data_report)
    model = runtime.one_first(lambda: open_model(config.model))
    if model.train_tokenizer:
        if model.config_name:
            check_translates(config, runtime.one_first(lambda: load_config(model)))
        corpora = load_corpora(config, runtime, recorded)
        tokenizer = trained_tokenizer(config, corpora, folder, runtime, is_new=is_new)
        pairs = resolve_pairs(config, model, tokenizer, runtime)
    else:
        tokenizer = named_tokenizer(config, str(model.tokenizer_name or model.model_name_or_path), runtime)
        if config.data.protect and not is_protected(tokenizer):
            tokenizer = masking_tokenizer(config, tokenizer, folder, runtime, is_new=is_new)
        pairs = resolve_pairs(config, model, tokenizer, runtime)
        corpora = load_corpora(config, runtime, recorded)
    inputs = Inputs(model=model, tokenizer=tokenizer, pairs=pairs, corpora=corpora)
    return inputs, config if config.data.pairs else changed(config, source_prefix=pairs[0].prefix)


def open_model(model: ModelConfig) -> ModelConfig:
    """Return the settings of a model with the folders to load for its names, as open_folder.

    Raises:
        UserError: for a corrupt folder.
    """
    names = ("model_name_or_path", "config_name", "tokenizer_name")
    given = {name: value for name in names if (value := getattr(model, name)) is not None}
    opened: dict[str, Any] = {name: open_folder(value, no_verify=model.no_verify) for name, value in given.items()}
    return dataclasses.replace(model, **opened)


def load_corpora(config: Config, runtime: Runtime, recorded: dict[str, Any]) -> list[Corpus]:
    """Load the rows of each pair, once a machine; print the dropped rows, and what train and others share. Collective.

    Args:
        config: Of the run.
        runtime: The ranks.
        recorded: Content of data.json of a resumed run: rows are read from the same sources.
    """
    names = config.data.pair_names or ("",)

    def load() -> list[Corpus]:
        return [
            load_corpus(
                data,
                sources=recorded.get("pairs", {}).get(name, recorded).get("sources"),
                say=runtime.say,
            )
            for name, data in zip(names, config.data.of_pairs(), strict=True)
        ]

    corpora = runtime.one_first(load)
    found = runtime.on_main(lambda: [corpus.compared() for corpus in corpora])
    compared = [dataclasses.replace(corpus, overlaps=of_pair) for corpus, of_pair in zip(corpora, found, strict=True)]
    for name, corpus in zip(names, compared, strict=True):
        is_cut = any("cut_from" in source for source in corpus.report["sources"]["valid"])
        leaks = [
            leak_line(split, one.shares, can_split_by=split == "valid" and is_cut and not config.data.split_by)
            for split, one in corpus.overlaps.items()
        ]
        runtime.say(*(f"{name} {line}".lstrip() for line in [*describe(corpus.report), *leaks]))
    return compared


def trained_tokenizer(
    config: Config, corpora: list[Corpus], folder: RunFolder, runtime: Runtime, *, is_new: bool
) -> PreTrainedTokenizerBase:
    """Train a tokenizer on the training split, once a run; it is set to the first pair. Collective."""
    model, data = config.model, config.data
    source_lang, target_lang = data.languages[0]
    if is_new or not folder.tokenizer_dir.is_dir():
        runtime.say(f"training a tokenizer with {model.vocab_size:,} tokens ...")
        targets = list(dict.fromkeys(str(target) for _, target in data.languages))

        def train() -> None:
            assert model.vocab_size is not None
            train_tokenizer(
                _texts(corpora, is_protected=data.protect is not None),
                vocab_size=model.vocab_size,
                output_dir=folder.tokenizer_dir,
                source_lang=source_lang,
                target_lang=target_lang,
                language_tokens=[language_token(target) for target in targets] if len(targets) > 1 else [],
                is_protected=data.protect is not None,
            )

        runtime.on_main(train)
    return named_tokenizer(config, str(folder.tokenizer_dir), runtime)


def masking_tokenizer(
    config: Config, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, runtime: Runtime, *, is_new: bool
) -> PreTrainedTokenizerBase:
    """Add masks to a tokenizer, once a run; it is set to the first pair. Collective.

    Raises:
        UserError: A tokenizer that cannot have masks, or a model whose embeddings of them would not be trained.
    """
    tuning, flag = config.tuning, ""
    if config.model.model_name_or_path:
        flag = "lora_rank" if tuning.lora_rank else "freeze" if "embeddings" in (tuning.freeze or []) else ""
    if flag:
        raise UserError(
            f"--protect: the masks are new to the model, and --{flag} does not train its embeddings (got "
            f"{config.model.model_name_or_path}). {LEAVE_ONE_OUT}"
        )
    if is_new or not folder.tokenizer_dir.is_dir():
        runtime.on_main(lambda: add_masks(tokenizer, folder.tokenizer_dir))
    found = named_tokenizer(config, str(folder.tokenizer_dir), runtime)
    check_masks(found, target_side(found))
    runtime.say(f"protected: {len(MASKS)} masks were added to the vocabulary of {tokenizer.name_or_path}")
    return found


def named_tokenizer(config: Config, name: str, runtime: Runtime) -> PreTrainedTokenizerBase:
    """Load a tokenizer and set it to the first pair. Collective."""
    source_lang, target_lang = config.data.languages[0]

    def load() -> PreTrainedTokenizerBase:
        trust = config.model.trust_remote_code
        try:
            return load_tokenizer(name, source_lang=source_lang, target_lang=target_lang, trust_remote_code=trust)
        except UserError as error:  # which names both flags
            flag = "--tokenizer_name" if config.model.tokenizer_name else "--model_name_or_path"
            raise rename_flag(error, flag) from error

    return runtime.one_first(load)


def _texts(corpora: list[Corpus], *, is_protected: bool) -> Iterator[str]:
    for corpus in corpora:
        for row in corpus.train:
            source, target = row["source"], row["target"]
            yield mask(source) if is_protected else source
            yield mask_target(target, source) if is_protected else target


def resolve_pairs(
    config: Config, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> list[Pair]:
    """Resolve the tokenizer and prefix of each pair; check the model's configuration against the settings. Collective.

    Raises:
        UserError: for a language unknown to the tokenizer, several target languages for a model of one, a model that
            does not translate, lengths beyond its positions, or an --eval_engine that does not take it.
    """
    data = config.data
    model_config = runtime.one_first(lambda: load_config(model, tokenizer))
    check_translates(config, model_config)
    if len({target for _, target in data.languages}) > 1 and not can_tell_pairs_apart(model_config, tokenizer):
        raise UserError(
            f"--pairs {data.pairs}: this {model_config.model_type} model has one target language. Give an mBART, "
            "M2M100, NLLB, mT5 or multilingual Marian model, or train from scratch with --train_tokenizer."
        )
    pairs = []
    for source_lang, target_lang in data.languages:
        prefix = data.source_prefix
        if prefix is None:
            several = len(data.languages) > 1
            prefix = source_prefix(model_config, tokenizer, source_lang, target_lang, is_one_of_several=several)
        pairs.append(
            Pair(
                name=f"{source_lang}-{target_lang}" if data.pairs else "",
                source_lang=source_lang,
                target_lang=target_lang,
                tokenizer=for_languages(tokenizer, source_lang, target_lang) if data.pairs else tokenizer,
                prefix=prefix,
            )
        )
    runtime.say(*filter(None, (_described(pair, is_given=data.source_prefix is not None) for pair in pairs)))
    return pairs


def check_translates(config: Config, model_config: PretrainedConfig) -> None:
    """Check what a model's configuration says against the settings, before data and weights are read.

    Raises:
        UserError: naming the flag.
    """
    data = config.data
    for flag in ("model_name_or_path", "config_name"):
        if not (name := getattr(config.model, flag)):
            continue
        kind = model_config.model_type
        own_classes = getattr(model_config, "auto_map", None) or {}
        if (
            kind not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
            and AutoModelForSeq2SeqLM.__name__ not in own_classes
        ):
            raise UserError(
                f"--{flag} {name}: not an encoder-decoder (got a {kind} model). Give a translation model, for example "
                "Helsinki-NLP/opus-mt-en-fr."
            )
        longest = max(data.max_target_length, config.evaluation.val_max_target_length or 0)
        limit = position_limit(model_config)
        check_positions(limit, max_source_length=data.max_source_length, max_target_length=longest)
    check_eval_engine(config, model_config)


def _described(pair: Pair, *, is_given: bool) -> str:
    """Describe the encoding of a pair: the tokenizer's language codes and the prefix."""
    parts = []
    if hasattr(pair.tokenizer, "src_lang") and hasattr(pair.tokenizer, "tgt_lang"):
        parts.append(f"languages {pair.tokenizer.src_lang} to {pair.tokenizer.tgt_lang}")
    if pair.prefix and not is_given:
        parts.append(f"every source begins with {pair.prefix!r}")
    return f"{pair.name}: {'; '.join(parts)}".removeprefix(": ") if parts else ""
