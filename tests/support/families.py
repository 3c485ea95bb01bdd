"""Make a tiny random model of each family, with a real tokenizer of its class trained on given texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartTokenizer,
    M2M100Config,
    M2M100Tokenizer,
    MarianConfig,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    MT5Config,
    NllbTokenizer,
    PegasusConfig,
    PegasusTokenizer,
    PLBartConfig,
    PretrainedConfig,
    T5Config,
    T5Tokenizer,
    UMT5Config,
)

from mtloop.tokenization.training import train_tokenizer

LANGUAGES = ("en", "fr")
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # the head of fairseq's vocabularies


@dataclass(frozen=True)
class Family:
    """Expected properties of a family.

    Attributes:
        first_token: First token of a translation into French after the decoder start; None for a token of text.
        start_token: The decoder start.
        prefix: The prefix of every source.
    """

    first_token: str | None = None
    start_token: str = "<pad>"
    prefix: str | None = None


FAMILIES = {
    "marian": Family(),
    "marian-multilingual": Family(prefix=">>fra<< "),
    "t5": Family(prefix="translate English to French: "),
    "madlad": Family(prefix="<2fr> "),
    "mt5": Family(),
    "umt5": Family(),
    "bart": Family(start_token="</s>"),
    "plbart": Family(start_token="</s>"),
    "pegasus": Family(),
    "mbart": Family(start_token="fr_XX"),  # the language is the start: nothing is forced
    "mbart50": Family(start_token="</s>", first_token="fr_XX"),
    "m2m_100": Family(start_token="</s>", first_token="__fr__"),
    "nllb": Family(start_token="</s>", first_token="fra_Latn"),
}


def make_family(name: str, folder: Path, texts: Sequence[str]) -> Path:
    """Write a model with random weights and its tokenizer in the layout of a published model; return the folder."""
    torch.manual_seed(0)
    model_dir = folder / name
    tokenizer = make_tokenizer(name, folder / f"{name}-vocabulary", texts)
    tokenizer.save_pretrained(model_dir)
    num_rows = max(len(tokenizer), *getattr(tokenizer, "lang_code_to_id", {"": 0}).values()) + 8
    config = _config(name, num_rows, tokenizer)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(model_dir)
    return model_dir


def make_tokenizer(name: str, folder: Path, texts: Sequence[str]) -> Any:
    """Return the tokenizer of a published model, trained on the texts; it uses the folder."""
    languages = [">>fra<<", ">>deu<<"] if name == "marian-multilingual" else []
    marian = train_tokenizer(
        texts, vocab_size=240, output_dir=folder, source_lang="en", target_lang="fr", language_tokens=languages
    )
    if name.startswith("marian"):
        return marian
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    scored = [(model.id_to_piece(i), model.get_score(i)) for i in range(2, model.get_piece_size())]
    fairseq = [(special, 0.0) for special in SPECIALS] + scored
    if name in ("t5", "mt5", "umt5", "madlad"):
        languages = ["<2en>", "<2fr>", "<2de>"] if name == "madlad" else []
        head = [(special, 0.0) for special in ("<pad>", "</s>", "<unk>", *languages)]
        return T5Tokenizer(vocab=head + scored, extra_ids=10)
    if name == "pegasus":
        head = [("<pad>", 0.0), ("</s>", 0.0), ("<mask_1>", 0.0), ("<mask_2>", 0.0), ("<unk>", 0.0)]
        return PegasusTokenizer(vocab=head + scored, offset=5)
    if name == "mbart":
        return MBartTokenizer(vocab=fairseq)
    if name == "mbart50":
        return MBart50Tokenizer(vocab=fairseq)
    if name in ("bart", "plbart"):
        return _bart(texts)
    if name == "nllb":
        return _nllb(texts)
    assert name == "m2m_100"
    (folder / "m2m.json").write_text(json.dumps({token: i for i, (token, _) in enumerate(fairseq)}))
    return M2M100Tokenizer(str(folder / "m2m.json"), str(folder / "source.spm"))


def _bart(texts: Sequence[str]) -> BartTokenizer:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=[*SPECIALS, "<mask>"], show_progress=False)
    state = json.loads(trained.to_str())["model"]
    return BartTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def _nllb(texts: Sequence[str]) -> NllbTokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    )
    state = json.loads(trained.to_str())["model"]
    return NllbTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def _config(name: str, num_rows: int, tokenizer: Any) -> PretrainedConfig:
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = {"vocab_size": num_rows, "pad_token_id": pad, "eos_token_id": eos}
    size = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 128))}
    size |= {"d_model": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
    # Random weights learn in few updates where nothing is dropped and the embeddings are not shrunk.
    size |= {"dropout": 0.0, "scale_embedding": True}
    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    if name.startswith("marian"):
        # Published models have exactly one row for each token.
        return MarianConfig(**{**ids, "vocab_size": len(tokenizer)}, **size, decoder_start_token_id=pad)
    if name in ("t5", "mt5", "umt5", "madlad"):
        kind = {"mt5": MT5Config, "umt5": UMT5Config}.get(name, T5Config)
        return kind(**ids, **t5, decoder_start_token_id=pad)
    if name == "pegasus":
        return PegasusConfig(**ids, **size, decoder_start_token_id=pad)
    if name == "bart":
        return BartConfig(**ids, **size, bos_token_id=tokenizer.bos_token_id, decoder_start_token_id=eos)
    if name == "plbart":
        return PLBartConfig(**ids, **size, bos_token_id=tokenizer.bos_token_id, decoder_start_token_id=eos)
    if name in ("mbart", "mbart50"):
        return MBartConfig(**ids, **size, decoder_start_token_id=eos)
    return M2M100Config(**ids, **size, decoder_start_token_id=eos)
