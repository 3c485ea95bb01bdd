"""Find the target side of a tokenizer: Marian and FSMT models may have another vocabulary for the targets.

transformers (5.24) takes the ids of special tokens from the source's vocabulary on both sides: it would end a target
with the source's `</s>`, and drop every target token whose id is that of the source's `<pad>`.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from transformers import PreTrainedTokenizerBase

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


def target_vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int] | None:
    """Return the targets' own vocabulary, token to id; None if it is that of the sources."""
    one = cast(Any, tokenizer)
    found: dict[str, int] | None = None
    if getattr(one, "separate_vocabs", False):  # Marian
        found = one.target_encoder
    elif hasattr(one, "tgt_vocab_file"):  # FSMT
        found = {token: token_id for token_id, token in one.decoder.items()}
    return found if found is not None and found != one.encoder else None


def target_side(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer that encodes targets (as text_target) and decodes translations, with its special ids.

    It is the tokenizer itself, or a view of one with two vocabularies that shares its files. A special token that the
    targets' vocabulary lacks has the id of `<unk>`.
    """
    own = target_vocabulary(tokenizer)
    if own is None:
        return tokenizer
    view: Any = object.__new__(type(tokenizer))  # copy.copy would load the files again
    vars(view).update(vars(tokenizer))
    view.encoder = view.current_encoder = own
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content in own]
    view._added_tokens_decoder = {own[token.content]: token for token in added}
    view._added_tokens_encoder = {token.content: own[token.content] for token in added}
    view.total_vocab_size = max(own.values()) + 1
    if hasattr(view, "tgt_vocab_file"):  # FSMT splits words by the rules of a language
        view.src_lang = view.tgt_lang
    return cast(Tokenizer, view)
