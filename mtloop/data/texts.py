"""Read the texts to translate, of a file of any kind that train.py reads. Must not know models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtloop.config.inputs import Dialect
from mtloop.data.entries import LEFT_OUT
from mtloop.data.files import CATALOGUE, STDIN, InputFile, kind_of, read_text, without_ending
from mtloop.data.readers import Records
from mtloop.data.row_shapes import TRANSLATION, by_language
from mtloop.data.rows import NOTES, REASONS, Columns
from mtloop.errors import UserError
from mtloop.languages import find_key


@dataclass(frozen=True)
class Entry:
    """One text of a file to translate.

    Attributes:
        text: The text.
        origin: Its row, or the ending of its line.
        where: File and line, for messages.
    """

    text: str
    origin: dict[str, Any] | str
    where: str = ""


class Texts:
    """The texts to translate of a file of any kind that train.py reads; in a text file, one a line.

    Attributes:
        records: The rows of a file with columns; None for a text file.
        notes: The number of rows read so far for each of NOTES.
    """

    def __init__(
        self,
        name: str,
        *,
        column: str | None,
        source_lang: str | None,
        source_key: str | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            name: A path, or - for the lines of standard input.
            column: The column of the text; None looks for the source language, "source" and "text".
            source_lang: Language code; also the key in a row's "translation".
            source_key: The only key to look for, in a row or its "translation"; None for the above.
            dialect: The form of a csv or tsv file; None for the usual one.
        """
        self._file, self._column = InputFile(name, name), column
        self._source_key, self._source_lang = source_key, source_key or source_lang
        kind = "text" if name == STDIN else kind_of("FILE", [name], [self._source_lang])
        columns = Columns(source_lang=self._source_lang) if kind == CATALOGUE else None
        self.records = None if kind == "text" else Records(self._file, kind, columns, dialect)
        self.notes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            UserError: naming file and line.
        """
        if self.records is None:
            for number, line in read_text(self._file):
                text = without_ending(line)
                yield Entry(text, line[len(text) :], f"{self._file.name}:{number}")
            return
        for where, row in self.records:
            if REASONS[self.records.reason] in LEFT_OUT:
                continue
            if self.records.note:
                self.notes[NOTES[self.records.note]] += 1
            yield Entry(self._text_of(row, where), row, where)

    def _text_of(self, row: dict[str, Any], where: str) -> str:
        column, source_lang = self._column, self._source_lang
        languages = by_language(row.get(TRANSLATION)) if column is None else None
        place: Mapping[str, Any] = languages if isinstance(languages, Mapping) else row
        named = column or self._source_key
        names = [named] if named else [name for name in (source_lang, "source", "text") if name]
        found = next((name for name in names if name in place), None)
        if found is None and source_lang and not column:
            found = find_key(source_lang, place)
        if found is None:
            there = ", ".join(map(str, place)) or "none"
            key = "--source_key" if self._source_key else "--source_lang"
            remedy = "Give --source_column" if column else f"Give {key} or --source_column"
            raise UserError(f"{where}: no column {' or '.join(names)}. {remedy}; the columns are {there}.")
        text = place[found]
        if not isinstance(text, str):
            got = json.dumps(text, default=str)[:60]
            raise UserError(f"{where}: {found} must be a text (got {got}). Correct this row, or give --source_column.")
        return text
