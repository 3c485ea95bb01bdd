"""What a row is: where its two texts stand, and the reasons for which it is dropped. Must not know files or the Hub."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Features, Value

from mtloop.errors import UserError
from mtloop.languages import find_key

# Part of every cache key and fingerprint: raise it when the same input gives other rows than before.
ROWS_VERSION = 2
# The number stored with each row is the position here; 0 is a row that is kept.
REASONS = ("kept", "missing_language", "wrong_type", "empty")
RAW_FEATURES = Features(
    {"index": Value("int64"), "source": Value("string"), "target": Value("string"), "reason": Value("int8")}
)
TRANSLATION = "translation"
# Stands for a "translation" that is no object: any value of another type than str would do.
NOT_A_TEXT = 0


@dataclass(frozen=True)
class Columns:
    """Where the two texts of a row stand: two named columns, or two languages."""

    source_lang: str | None = None
    target_lang: str | None = None
    source_column: str | None = None
    target_column: str | None = None

    def __post_init__(self) -> None:
        if bool(self.source_column) != bool(self.target_column):
            given, other = ("source", "target") if self.source_column else ("target", "source")
            value = self.source_column or self.target_column
            raise UserError(f"--{given}_column {value}: give --{other}_column as well, or neither")

    @property
    def names(self) -> tuple[str | None, str | None]:
        """The source's and the target's column, or language where no column was named."""
        if self.source_column:
            return self.source_column, self.target_column
        return self.source_lang, self.target_lang

    def pair(self, row: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the source and target values of a row, None where there is none."""
        place: Any = row
        if not self.source_column and TRANSLATION in row:
            place = row[TRANSLATION]
            if place is None:
                return None, None
            if not isinstance(place, Mapping):
                return NOT_A_TEXT, NOT_A_TEXT
        source, target = (place.get(self.key(name, place)) for name in self.names)
        return source, target

    def key(self, name: str | None, keys: Iterable[str]) -> str | None:
        """Return the key of a row that `name` means: a column as it stands, a language in any code (fr, fra_Latn)."""
        return name if name is None or self.source_column else find_key(name, keys) or name

    def check(self, where: str, columns: Collection[str], languages: Collection[str]) -> None:
        """Refuse a source whose rows cannot have what is wanted.

        Args:
            where: The file or data set, for the message.
            columns: The columns there.
            languages: The keys of the "translation" column; empty where there is no such column.

        Raises:
            UserError: naming what is missing and what is there.
        """
        flags = ("--source_lang", "--target_lang")
        if self.source_column:
            flags, present, what = ("--source_column", "--target_column"), columns, "column"
        elif TRANSLATION in columns:
            present, what = languages, "language"
        else:
            present, what = columns, "column"
        there = ", ".join(sorted(present)[:20]) or "none"
        for flag, name in zip(flags, self.names, strict=True):
            if name is None and what == "language":
                raise UserError(f"{flag} is not given: {where} has the languages {there}")
            if name is None:
                remedy = "name the two columns with --source_column and --target_column"
                raise UserError(f"{where} has no column {TRANSLATION!r}: {remedy} (columns there: {there})")
            if self.key(name, present) not in present:
                raise UserError(f"{flag} {name}: no row of {where} has this {what}; there: {there}")


def pack(index: int, source: Any, target: Any) -> dict[str, Any]:
    """Return the stored row: texts as they are, or, for a row to be dropped, no texts and the reason's number."""
    reason = max(_judge(source), _judge(target), key=(0, 3, 2, 1).__getitem__)
    if reason:
        source = target = None
    return {"index": index, "source": source, "target": target, "reason": reason}


def pack_batch(
    batch: Mapping[str, list[Any]], indices: Iterable[int], columns: Columns, version: int
) -> dict[str, Any]:
    """Do what `pack` does for a batch of rows in columns; `version` only distinguishes cached results."""
    packed = []
    for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
        packed.append(pack(index, *columns.pair(dict(zip(batch, values, strict=True)))))
    return {name: [row[name] for row in packed] for name in RAW_FEATURES}


def _judge(text: Any) -> int:
    if text is None:
        return REASONS.index("missing_language")
    if not isinstance(text, str) or not _is_unicode(text):
        return REASONS.index("wrong_type")
    if not text or text.isspace():
        return REASONS.index("empty")
    return 0


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON can spell half a surrogate pair, Arrow cannot store one."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
