"""Load or train the tokenizer, encode rows. The only place that knows sentencepiece and language codes.

Must not know models, ranks or where rows come from. Shape letter: N rows.
"""

from mtloop.tokenization.encoding import Encoded, encode_rows, encode_side
from mtloop.tokenization.identity import have_same_pieces, tokenizer_fingerprint
from mtloop.tokenization.loading import for_languages, load_tokenizer, set_languages, target_language_token
from mtloop.tokenization.prefixes import can_tell_pairs_apart, language_token, remember_prefix, source_prefix
from mtloop.tokenization.training import train_tokenizer

__all__ = [
    "Encoded",
    "can_tell_pairs_apart",
    "encode_rows",
    "encode_side",
    "for_languages",
    "language_token",
    "have_same_pieces",
    "load_tokenizer",
    "remember_prefix",
    "set_languages",
    "source_prefix",
    "target_language_token",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
