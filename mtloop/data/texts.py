"""The texts of a file that is to be translated, in order, with the rows that they stand in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtloop.data.files import STDIN, InputFile, kind_of, read_lines
from mtloop.data.readers import Records, without_ending
from mtloop.data.rows import TRANSLATION
from mtloop.errors import UserError
from mtloop.languages import find_key


@dataclass(frozen=True)
class Entry:
    """One text of a file.

    Attributes:
        text: What is translated.
        origin: The row that it stood in, or its line's ending.
        where: File and line, for messages.
    """

    text: str
    origin: dict[str, Any] | str
    where: str = ""


class Texts:
    """The texts of a file of any kind that train.py reads, a line each of a text file.

    Attributes:
        records: The rows of a file with columns; None of a text file.
    """

    def __init__(self, name: str, *, column: str | None, source_lang: str | None) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            name: A path, or - for the lines of standard input.
            column: Where the text of a row stands; None looks for the source language, "source" and "text".
            source_lang: Language code; also the key in a row's "translation".
        """
        self._file, self._column, self._source_lang = InputFile(name, name), column, source_lang
        kind = "text" if name == STDIN else kind_of("FILE", [name])
        self.records = None if kind == "text" else Records(self._file, kind)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            UserError: naming file and line.
        """
        if self.records is None:
            for number, line in read_lines(self._file):
                text = without_ending(line)
                yield Entry(text, line[len(text) :], f"{self._file.name}:{number}")
            return
        for where, row in self.records:
            yield Entry(self._text_of(row, where), row, where)

    def _text_of(self, row: dict[str, Any], where: str) -> str:
        column, source_lang = self._column, self._source_lang
        languages = row.get(TRANSLATION)
        place: Mapping[str, Any] = languages if column is None and isinstance(languages, Mapping) else row
        names = [column] if column else [name for name in (source_lang, "source", "text") if name]
        found = next((name for name in names if name in place), None)
        if found is None and source_lang and not column:
            found = find_key(source_lang, place)
        if found is None:
            there = ", ".join(map(str, place)) or "none"
            remedy = "give --source_column" if column else "give --source_lang or --source_column"
            raise UserError(f"{where}: no column {' or '.join(names)}; {remedy}; there: {there}")
        text = place[found]
        if not isinstance(text, str):
            raise UserError(f"{where}: {found} is no text but {json.dumps(text, default=str)[:60]}")
        return text
