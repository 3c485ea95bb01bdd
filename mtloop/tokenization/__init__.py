"""Layer 1: load or train the tokenizer, encode rows. The only place that knows sentencepiece and language codes.

Must not know models, ranks or where rows come from. Shape letter: N rows.
"""

from mtloop.tokenization.encoding import Encoded, encode_rows, encode_side
from mtloop.tokenization.identity import tokenizer_fingerprint
from mtloop.tokenization.loading import load_tokenizer, target_language_token
from mtloop.tokenization.training import train_tokenizer

__all__ = [
    "Encoded",
    "encode_rows",
    "encode_side",
    "load_tokenizer",
    "target_language_token",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
