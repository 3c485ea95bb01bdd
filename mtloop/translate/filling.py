"""Choose the entries of a catalogue to fill, and turn a translation into the text of one. Must not know formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mtloop.data.entries import LEFT_OUT
from mtloop.data.files import InputFile
from mtloop.errors import UserError
from mtloop.languages import base_code, find_key, is_iso_639

if TYPE_CHECKING:
    from mtloop.translate.translator import Translation

# Begins the comment that says what an entry lacks.
COMMENT = "mtloop: "
# Neither XML nor a catalogue should contain them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class FillOptions:
    """Say which entries are filled, and how they are marked.

    Attributes:
        target_lang: The language of the translations; None if the model does not say it.
        retranslate: Whether every entry is translated.
        retranslate_fuzzy: Whether fuzzy entries are translated, as untranslated ones are.
        no_fuzzy: Whether entries are filled without the mark that they need a review. Those that lost a placeholder
            get it all the same.
    """

    target_lang: str | None = None
    retranslate: bool = False
    retranslate_fuzzy: bool = False
    no_fuzzy: bool = False

    def selects(self, state: str) -> bool:
        """Return True if an entry of this state, see rows.REASONS, is filled."""
        if state in LEFT_OUT:
            return False
        return state == "untranslated" or self.retranslate or (self.retranslate_fuzzy and state == "fuzzy")


class Document(Protocol):
    """A catalogue to fill.

    Attributes:
        num_entries: Its entries that can be translated.
        num_chosen: Those that are filled.
        sources: The texts of these, in their order; they may repeat.
        notes: What a user should know of the file, in one line each.
    """

    num_entries: int
    notes: list[str]

    @property
    def num_chosen(self) -> int: ...

    @property
    def sources(self) -> list[str]: ...

    def fill(self, translations: Mapping[str, Translation]) -> tuple[bytes, int]:
        """Return the filled file, and the number of entries that need a review because something is missing.

        Args:
            translations: The translation of each of `sources` that is not blank.
        """


def check_language(file: InputFile, line: int, language: str, target_lang: str | None) -> None:
    """Refuse a catalogue of another target language.

    Raises:
        UserError: naming file and line.
    """
    if target_lang and is_iso_639(language) and not find_key(target_lang, [language]):
        raise UserError(
            f"{file.name}:{line}: the catalogue's language is {language}, not {target_lang}. Leave the file out, or "
            "give another --model or --target_lang."
        )


def short_code(language: str) -> str:
    """Return a language's code as gettext writes it: pt_BR, sr@latin; fr for fra_Latn and fr_XX."""
    code = language.replace("-", "_")
    is_own = re.fullmatch(r"[a-z]{2,3}(_(?!XX)[A-Z]{2})?(@\w+)?", code)
    return code if is_own and len(code.partition("_")[0].partition("@")[0]) == 2 else base_code(language)


def text_of(source: str, translations: Mapping[str, Translation]) -> tuple[str, list[str]]:
    """Return the text that fills an entry, with the white space at the edges of its source, and what is missing."""
    inner = source.strip()
    if not inner:
        return source, []
    translation = translations[source]
    text = _CONTROL.sub("", translation.text).strip()
    if not text:
        return "", ["the translation is empty"]
    problems = list(translation.lost)
    if translation.is_source_cut:
        problems.append("the source was too long for the model, and cut")
    elif translation.is_cut:
        problems.append("the translation may be unfinished")
    elif translation.is_forced and not problems:
        problems.append("check the places of the placeholders")
    start = source.index(inner)
    return source[:start] + text + source[start + len(inner) :], problems
