"""Choose and load the tokenizer of BLEU."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sacrebleu.metrics import BLEU

from mtloop.errors import UserError, first_line
from mtloop.languages import UNSPACED_SCRIPTS, script_of, script_of_text

_DEFAULT_TOKENIZER = "13a"
# sacreBLEU's own choices, best first; "char" needs no package, and suits every script without spaces.
_TOKENIZERS_BY_SCRIPT = {
    **dict.fromkeys(UNSPACED_SCRIPTS, ("char",)),
    **dict.fromkeys(("Hani", "Hans", "Hant", "Hanb", "Bopo"), ("zh",)),
    **dict.fromkeys(("Jpan", "Hrkt", "Hira", "Kana"), ("ja-mecab", "char")),
    **dict.fromkeys(("Kore", "Hang"), ("ko-mecab", "char")),
}
_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
_DOWNLOAD_TIMEOUT_S = 30.0


def bleu_for(target_lang: str | None, references: Sequence[str]) -> BLEU:
    """Return BLEU with the tokenizer that the script of a language needs, or that of the references if it has none."""
    script = (script_of(target_lang) if target_lang else None) or script_of_text(references)
    *preferred, last = _TOKENIZERS_BY_SCRIPT.get(script or "", (_DEFAULT_TOKENIZER,))
    for name in preferred:
        try:
            return BLEU(tokenize=name)
        except RuntimeError:  # sacreBLEU's error if the tokenizer's optional package is not installed
            continue
    return BLEU(tokenize=last)


def load_bleu(tokenizer: str) -> BLEU:
    """Return BLEU with one of sacreBLEU's tokenizers; some are downloaded at their first use.

    Raises:
        UserError: The tokenizer needs a package, or a download that failed.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)  # sacreBLEU sets none
    try:
        return BLEU(tokenize=tokenizer)
    except (Exception, SystemExit) as error:  # RuntimeError, ImportError, OSError, KeyError of an older version
        remedy = "It is downloaded at its first use: run this with network access, or copy ~/.sacrebleu/models"
        if tokenizer in _PACKAGES:
            remedy = f"Run pip install '{_PACKAGES[tokenizer]}'"
        problem = first_line(error).rstrip(".")
        raise UserError(
            f"--bleu_tokenizer: cannot be loaded: {problem} (got {tokenizer!r}). {remedy}, or give char."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
