"""Tell whether two tokenizers are the same, by what they do and not by where their files are."""

import hashlib
import json
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 (hex) over all that decides which ids a text gets.

    Class, vocabulary, special and added tokens, languages, and the pieces and scores of sentencepiece models or the
    whole of a Rust tokenizer. Equal in every folder and process, because neither paths nor file bytes enter.
    """
    identity = {
        "class": type(tokenizer).__name__,
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "target_vocabulary": sorted(getattr(tokenizer, "target_encoder", {}).items()),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added_tokens": [(i, repr(token)) for i, token in sorted(tokenizer.added_tokens_decoder.items())],
        "languages": [
            getattr(tokenizer, name, None) for name in ("src_lang", "tgt_lang", "source_lang", "target_lang")
        ],
        "switches": [tokenizer.truncation_side, getattr(tokenizer, "split_special_tokens", None)],
        "pieces": [
            _pieces_and_scores(getattr(tokenizer, name, None)) for name in ("spm_source", "spm_target", "sp_model")
        ],
        "backend": _backend_state(tokenizer),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def have_same_pieces(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether each id means the same piece: what models that are mixed must share, however their texts are cut."""
    vocabularies = [
        (tokenizer.get_vocab(), getattr(tokenizer, "target_encoder", {}) or {}) for tokenizer in (one, other)
    ]
    return vocabularies[0] == vocabularies[1]


def _pieces_and_scores(model: Any) -> list[tuple[str, float]]:
    if not isinstance(model, sentencepiece.SentencePieceProcessor):
        return []
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def _backend_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    # Left behind by the last call with truncation or padding.
    return {name: value for name, value in state.items() if name not in ("truncation", "padding")}
