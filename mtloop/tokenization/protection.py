"""Mask what a program reads in a text, such as %1, tags and URLs, by tokens that a model copies, and restore it.

The tokenizer of a protected model has the masks in its vocabulary and records it in tokenizer_config.json: whatever
encodes or decodes with it masks and restores. Must not know rows or models.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerBase

from mtloop.atomic import new_folder
from mtloop.errors import UserError
from mtloop.model.vocabularies import target_vocabulary
from mtloop.placeholders import CODE, KINDS, spans

# Of the 14,387 texts of KDE with a placeholder, 38 have more than 16 different ones; their others stay text.
MASKS = tuple(f"<ph{number}>" for number in range(16))
# What is masked.
PROTECTED = (*CODE, "newline")
# The entry of tokenizer_config.json, and its value: that of --protect.
RECORD, PLACEHOLDERS = "protect", "placeholders"

_LINE_BREAK = re.compile(r"[^\S\n]*\n\s*")  # a tokenizer of sentencepiece may turn it into a space
_LIKE_A_MASK = re.compile(r"<ph\d+>")
_MASK = re.compile(rf"( ?)({_LIKE_A_MASK.pattern})")
# Keys of a tokenizer's vocab_files_names whose files are models of sentencepiece that it loads itself.
_SENTENCEPIECE_FILES = ("source_spm", "target_spm", "spm_file")
_USER_DEFINED = 4  # sentencepiece's type of a piece that is matched before anything is normalised or split


def is_protected(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if texts are masked for this tokenizer."""
    return tokenizer.init_kwargs.get(RECORD) == PLACEHOLDERS


def mask_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of the masks; [] if texts are not masked for this tokenizer."""
    return [tokenizer.get_vocab()[token] for token in MASKS] if is_protected(tokenizer) else []


def identity() -> str:
    """Return a digest of what decides how a text is masked."""
    patterns = [(name, KINDS[name].pattern) for name in CODE]
    return hashlib.sha256(repr((MASKS, _LINE_BREAK, patterns)).encode()).hexdigest()


def mask(source: str) -> str:
    """Return a source with masks for its placeholders and line breaks, without white space at its edges."""
    return _replace(source, *_numbering(source))


def mask_target(target: str, source: str) -> str:
    """Return a target with the masks of its source; what the source lacks stays text."""
    return _replace(target, *_numbering(source))


def restore(hypothesis: str, source: str) -> str:
    """Return a translation with the texts of the source for their masks, and with the white space at its edges.

    A mask that the source does not have, or not as often, is removed, with a space before it.
    """
    by_text, by_key = _numbering(source)
    texts = {mask: text for text, mask in by_text.items()}
    left = Counter(found[1] for found in _MASK.findall(_replace(source, by_text, by_key)))

    def put_back(found: re.Match[str]) -> str:
        space, mask = found.groups()
        left[mask] -= 1
        return space + texts[mask] if mask in texts and left[mask] >= 0 else ""

    text = _MASK.sub(put_back, hypothesis).strip()
    inner = source.strip()
    start = source.index(inner)
    return source[:start] + text + source[start + len(inner) :] if text else text


def _places(text: str) -> list[tuple[int, str, str | None]]:
    """Return start, text and, of a tag, the key of the places to mask, none inside another."""
    found = [(one.start, one.text, one.key if one.kind == "tag" else None) for one in spans(text)]
    more = [pattern for sign, pattern in (("\n", _LINE_BREAK), ("<ph", _LIKE_A_MASK)) if sign in text]
    if more:
        found += [(match.start(), match[0], None) for pattern in more for match in pattern.finditer(text)]
        found.sort(key=lambda one: (one[0], -len(one[1])))
    kept: list[tuple[int, str, str | None]] = []
    for one in found:  # a line may break within a tag
        if not kept or one[0] >= kept[-1][0] + len(kept[-1][1]):
            kept.append(one)
    return kept


def _numbering(source: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the masks of a source by the text they replace, and by the key of a tag, whose attributes may differ."""
    places = _places(source.strip())
    texts = dict.fromkeys(text for _, text, _ in places)
    # What looks like a mask must not stay text: there are as many masks as such texts.
    by_text = dict(zip(sorted(texts, key=lambda text: text not in MASKS), MASKS, strict=False))
    by_key: dict[str, str] = {}
    for _, text, key in places:
        if key is not None and text in by_text:
            by_key.setdefault(key, by_text[text])
    return by_text, by_key


def _replace(text: str, by_text: dict[str, str], by_key: dict[str, str]) -> str:
    text = text.strip()
    if not by_text:
        return text
    parts, position = [], 0
    for start, place, key in _places(text):
        found = by_text.get(place) or by_key.get(key or "")
        if found is not None:
            parts += [text[position:start], found]
            position = start + len(place)
    return "".join([*parts, text[position:]])


def add_masks(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer with the masks behind its vocabulary; load_tokenizer loads it.

    Args:
        tokenizer: That of a pretrained model. It must not be used afterwards.
        folder: To create.

    Raises:
        UserError: The tokenizer has two vocabularies.
    """
    if target_vocabulary(tokenizer) is not None:
        raise UserError(
            f"--protect: a tokenizer with a vocabulary for each side cannot get masks (got {tokenizer.name_or_path}). "
            "Leave --protect out, or give a model with one vocabulary."
        )
    models = [name for key, name in tokenizer.vocab_files_names.items() if key in _SENTENCEPIECE_FILES]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MASKS])
    tokenizer.init_kwargs[RECORD] = PLACEHOLDERS
    if models:  # it would split at the masks, and lose the spaces around them
        tokenizer.init_kwargs["split_special_tokens"] = tokenizer.split_special_tokens = True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as partial:
        tokenizer.save_pretrained(partial)
        for name in models:
            with (partial / name).open("ab") as file:
                file.write(b"".join(map(_piece, MASKS)))


def _piece(token: str) -> bytes:
    """Return a user-defined piece in the form of a model of sentencepiece, to be appended to one.

    Source: sentencepiece_model.proto: ModelProto.pieces is field 1, with piece 1, score 2 and type 3. Messages in
    protobuf's encoding may be concatenated.
    """
    content = token.encode()
    entry = bytes([0x0A, len(content)]) + content + bytes([0x15, 0, 0, 0, 0, 0x18, _USER_DEFINED])
    return bytes([0x0A, len(entry)]) + entry


def keep_spaces(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer of Rust keep the spaces around masks: it would put one behind each, and drop those before.

    Its classes of transformers 5 make their own pre-tokenizer, whatever their file says.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "Metaspace" not in repr(backend.pre_tokenizer):
        return
    if "WhitespaceSplit" in repr(backend.pre_tokenizer):  # T5's, mBART's
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        backend.normalizer = normalizers.Sequence([one for one in (backend.normalizer, spaces) if one is not None])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)


def check_masks(tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    """Try whether a tokenizer carries masks, with the spaces around them.

    Raises:
        UserError: It does not.
    """
    word = _carried(tokenizer, target, ["a"])[0]
    first, second = MASKS[0], MASKS[-1]
    texts = [
        form.format(a=word, x=first, y=second)
        for form in (
            "{a}{x}{a}",
            "{a} {x} {a}",
            "{x}",
            "{x} {y}",
            "{x}{y}",
            "{x}{a}{y} {a}",
            "{a} {x}{a}",
            "{a}{x} {a}",
        )
    ]
    for text, carried in zip(texts, _carried(tokenizer, target, texts), strict=True):
        if text != carried:
            raise UserError(
                f"--protect: a {type(tokenizer).__name__} does not keep the masks and the spaces around them (got "
                f"{carried!r} for {text!r}). Leave --protect out, or give another model."
            )


def _carried(tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """Return what is left of texts that are encoded as sources and decoded as translations."""
    ids = tokenizer(list(texts))["input_ids"]
    return list(target.batch_decode(ids, skip_special_tokens=True))
