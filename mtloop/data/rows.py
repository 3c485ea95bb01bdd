"""Define a row, and the columns that its two texts come from.

Rows are packed as (index, source, target, reason to drop it, note on it). Must not know file formats or the Hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, Value

from mtloop.config.fields import is_unicode
from mtloop.config.inputs import SPLIT_BY_SOURCE
from mtloop.data.row_shapes import TRANSLATION, by_language, repeated_languages
from mtloop.errors import UserError
from mtloop.languages import find_key

# Part of every cache key and fingerprint: raise it when the same input gives other rows than before.
ROWS_VERSION = 2
# The number stored with each row is the position here; 0 is a row that is kept.
REASONS = (
    "kept", "missing_language", "wrong_type", "empty",
    # The states of the entries of a catalogue.
    "header", "obsolete", "untranslated", "fuzzy", "not_translatable",
)  # fmt: skip
# What is doubtful in a row that is kept, which is counted and logged; numbered in the same way.
NOTES = ("", "spans_lines", "doubled_quotes", "several_texts")
NOTE_LINES = {
    "spans_lines": "with a quoted field that spans lines; if the quotes are text, give --quoting none",
    "doubled_quotes": "with a field in quotes that has doubled quotes; if it is quoted as CSV, give --quoting csv",
    "several_texts": "with several texts of a language, of which the first is used; to use all, write a row for each",
}
RAW_FEATURES = Features(
    {
        "index": Value("int64"),
        "source": Value("string"),
        "target": Value("string"),
        "reason": Value("int8"),
        "note": Value("int8"),
    }
)
MAX_SHOWN_CHARS = 80  # of a value in a message
# The texts of a "translation" that is not an object: any value of another type than str would do.
NOT_A_TEXT = 0


@dataclass(frozen=True)
class Columns:
    """The place of the two texts in a row: two named columns, or two languages.

    Attributes:
        source_lang: Language of the source, or its key where that is given apart.
        target_lang: As source_lang.
        source_column: Column of the source.
        target_column: Column of the target.
        flags: Those that named the languages, for messages.
        group_by: ("file",) or ("column", name) to store a key of the row's file or value, for --split_by; () for none.
    """

    source_lang: str | None = None
    target_lang: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    flags: tuple[str, str] = field(default=("--source_lang", "--target_lang"), compare=False)
    group_by: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Any) -> Columns:
        """Return the place that the settings of these names say: the keys, else the languages, else the columns."""
        source, target = (
            f"{side}_{'key' if getattr(settings, f'{side}_key') else 'lang'}" for side in ("source", "target")
        )
        return cls(
            getattr(settings, source),
            getattr(settings, target),
            settings.source_column,
            settings.target_column,
            flags=(f"--{source}", f"--{target}"),
            group_by=tuple(by) if (by := getattr(settings, "split_by", None)) and by[0] != SPLIT_BY_SOURCE else (),
        )

    def __post_init__(self) -> None:
        if bool(self.source_column) != bool(self.target_column):
            given, other = ("source", "target") if self.source_column else ("target", "source")
            value = self.source_column or self.target_column
            raise UserError(f"--{given}_column: given without --{other}_column (got {value}). Give both or neither.")

    @property
    def names(self) -> tuple[str | None, str | None]:
        """Return the source's and the target's column, or language if no column was named."""
        if self.source_column:
            return self.source_column, self.target_column
        return self.source_lang, self.target_lang

    @property
    def group_column(self) -> str | None:
        """Return the column of --split_by."""
        return self.group_by[1] if len(self.group_by) > 1 else None

    @property
    def features(self) -> Features:
        """Return the columns of the packed rows."""
        return Features({**RAW_FEATURES, "group": Value("int64")}) if self.group_by else RAW_FEATURES

    def group(self, row: Mapping[str, Any], file: str) -> dict[str, int | None]:
        """Return the key of a row's group, to be stored with it: {} if none is wanted, None for a row without a value.

        Args:
            row: The row.
            file: Identifies its file.
        """
        if not self.group_by:
            return {}
        value = row.get(self.group_column) if self.group_column is not None else file
        is_missing = value is None or (isinstance(value, str) and not value.strip())
        return {"group": None if is_missing else stable_key(value)}

    def pair(self, row: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the source and target values of a row, None for a missing one."""
        place: Any = row
        if not self.source_column and TRANSLATION in row:
            place = by_language(row[TRANSLATION])
            if place is None:
                return None, None
            if not isinstance(place, Mapping):
                return NOT_A_TEXT, NOT_A_TEXT
        source, target = (place.get(self.key(name, place)) for name in self.names)
        return source, target

    def note(self, row: Mapping[str, Any]) -> int:
        """Return the position in NOTES of what is doubtful in the languages of a row."""
        if self.source_column or TRANSLATION not in row:
            return 0
        repeated = repeated_languages(row[TRANSLATION])
        has_wanted = bool(repeated) and any(self.key(name, repeated) in repeated for name in self.names)
        return NOTES.index("several_texts") if has_wanted else 0

    def key(self, name: str | None, keys: Iterable[str]) -> str | None:
        """Return the key of a row that `name` means: a column as it is, a language in any code (fr, fra_Latn)."""
        return name if name is None or self.source_column else find_key(name, keys) or name

    def check(
        self,
        where: str,
        columns: Collection[str],
        languages: Collection[str],
        *,
        example: Any = None,
        can_number: bool = False,
    ) -> None:
        """Refuse a source without the columns or languages asked for.

        Args:
            where: The file or data set, for the message.
            columns: The columns of the source.
            languages: The keys of its "translation" column; empty without such a column.
            example: A value of the "translation" column that has no languages, for the message.
            can_number: Whether --no_header would give its columns numbers.

        Raises:
            UserError: naming what is missing and what the source has.
        """
        flags = self.flags
        if self.source_column:
            flags, present, what = ("--source_column", "--target_column"), columns, "column"
        elif TRANSLATION in columns:
            if not languages:
                got = " ".join(repr(example)[:MAX_SHOWN_CHARS].split())
                quoting = ", or --quoting csv" if isinstance(example, str) and example.startswith('"') else ""
                raise UserError(
                    f"{where}: no row has languages in its column {TRANSLATION!r} (got {got}). Write it as "
                    f'{{"en": ..., "fr": ...}}, or give --source_column and --target_column{quoting}.'
                )
            present, what = languages, "language"
        else:
            present, what = columns, "column"
        there = ", ".join(sorted(present)[:20]) or "none"
        for flag, name in zip(flags, self.names, strict=True):
            if name is None and what == "language":
                raise UserError(f"{flag}: required for {where}. Choose from its languages: {there}.")
            if name is None:
                remedy = "Name two of its columns with --source_column and --target_column"
                raise UserError(f"{where}: no column {TRANSLATION!r}. {remedy}: {there}.")
            if self.key(name, present) not in present:
                other = "; or give --no_header to number the columns" if can_number and name.isdigit() else ""
                if can_number and len(present) == 1 and any(mark in there for mark in ",;|\t"):
                    other = "; or give --delimiter"
                elif flag.endswith("_lang"):
                    other += f"; where the model has another code, give it to {flag.replace('_lang', '_key')}"
                raise UserError(f"{flag}: no row of {where} has this {what} (got {name}). Choose from: {there}{other}.")
        if self.group_column is not None and self.group_column not in columns:
            there = ", ".join(sorted(columns)[:20])
            raise UserError(
                f"--split_by column: no row of {where} has this column (got {self.group_column}). Choose from: {there}."
            )


def pack(index: int, source: Any, target: Any, note: int = 0, reason: int = 0) -> dict[str, Any]:
    """Return the stored row: texts as they are, or, for a row to be dropped, no texts and the reason's number."""
    reason = reason or max(_judge(source), _judge(target), key=(0, 3, 2, 1).__getitem__)
    if reason:
        source = target = None
    return {"index": index, "source": source, "target": target, "reason": reason, "note": note}


def note_lines(notes: Mapping[str, int]) -> list[str]:
    """Describe the doubtful rows, given their number for each of NOTES."""
    return [f"{number:,} rows {NOTE_LINES[note]}" for note, number in notes.items()]


def pack_batch(
    batch: Mapping[str, list[Any]], indices: Iterable[int], columns: Columns, version: int, quoting: str | None
) -> dict[str, Any]:
    """Pack a batch of rows in columns, as `pack` does; `version` only distinguishes cached results.

    `quoting` is that of a table of .csv or .tsv files; None for other rows.
    """
    packed = []
    for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
        row = dict(zip(batch, values, strict=True))
        source, target = columns.pair(row)
        spans_lines = quoting == "csv" and any(isinstance(text, str) and "\n" in text for text in (source, target))
        note = NOTES.index("spans_lines") if spans_lines else columns.note(row)
        packed.append({**pack(index, source, target, note), **columns.group(row, file="")})
    return {name: [row[name] for row in packed] for name in columns.features}


def _judge(text: Any) -> int:
    if text is None:
        return REASONS.index("missing_language")
    if not isinstance(text, str) or not is_unicode(text):
        return REASONS.index("wrong_type")
    if not text or text.isspace():
        return REASONS.index("empty")
    return 0


@dataclass(frozen=True)
class LoadedSplit:
    """The rows of one split as loaded, before any is dropped.

    Attributes:
        rows: With the columns of RAW_FEATURES.
        identity: JSON that is equal on any machine if the rows are equal.
        origin: The source as the report describes it: names, or files with size and sha256.
    """

    rows: Dataset
    identity: Any
    origin: list[dict[str, Any]]


def stable_key(value: Any) -> int:
    """Return a 64-bit key of a JSON value: the same on every machine, for equal values."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
