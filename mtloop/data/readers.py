"""Read the rows of files of every kind: unchanged, packed for the cache, or as texts to translate.

Must not know where the cache is.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtloop.data.files import STDIN, InputFile, kind_of, read_lines
from mtloop.data.jsontext import json_lines, json_values
from mtloop.data.rows import TRANSLATION, Columns, pack
from mtloop.errors import UserError
from mtloop.languages import find_key

_PARQUET_BATCH = 1000
# csv.reader expects the lines of open(newline=""), where a lone \r ends a line too.
_AFTER_LONE_CR = re.compile(r"(?<=\r)(?!\n)")


class Records:
    """The rows of a file with named columns, one after the other, unchanged.

    Attributes:
        file: The file that is read.
        names: The columns found so far: all those of a table, once its first row or its end was read.
        languages: The keys of the "translation" column found so far.
        is_table: Whether all rows have the same columns, which the file names.
        schema: Of a Parquet file, once it is open.
    """

    def __init__(self, file: InputFile, kind: str, columns: Columns | None = None) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            file: The file to read.
            kind: json, jsonl, csv, tsv or parquet.
            columns: The only columns to read from a Parquet file; None for all.
        """
        self.file, self.kind, self.columns = file, kind, columns
        self.names: dict[str, None] = {}  # in the order of their appearance
        self.languages: set[str] = set()
        self.is_table = kind in ("csv", "tsv", "parquet")
        self.schema: pa.Schema | None = None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (file and line, row).

        Raises:
            UserError: naming file and line of the first malformed row.
        """
        if self.kind == "parquet":
            return self._parquet_rows()
        if self.is_table:
            return self._table_rows("," if self.kind == "csv" else "\t")
        return self._objects(json_values(self.file) if self.kind == "json" else json_lines(self.file))

    def _objects(self, values: Iterator[tuple[int, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for line, row in values:
            where = f"{self.file.name}:{line}"
            if not isinstance(row, dict):
                raise UserError(
                    f"{where}: expected a JSON object as a row (got {type(row).__name__}). "
                    'Write each row as {"source": ..., "target": ...}.'
                )
            self.names.update(dict.fromkeys(row))
            translation = row.get(TRANSLATION)
            self.languages.update(translation if isinstance(translation, dict) else ())
            yield where, row

    def _table_rows(self, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read with csv.reader; strict, because otherwise it accepts a file that is truncated inside quotes."""
        lines = (part for _, line in read_lines(self.file) for part in _AFTER_LONE_CR.split(line) if part)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        line = 1
        while True:
            where = f"{self.file.name}:{line}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{where}: malformed row ({error}). Check it for an unclosed quote.") from error
            if fields and not self.names:
                self.names = dict.fromkeys(fields)
                if len(self.names) < len(fields):
                    raise UserError(
                        f"{where}: duplicate column in the header (got {', '.join(fields)}). Rename one of them."
                    )
            elif fields:
                if len(fields) != len(self.names):
                    raise UserError(
                        f"{where}: expected {len(self.names)} fields, as in the header (got {len(fields)}). "
                        "Correct this row."
                    )
                yield where, dict(zip(self.names, fields, strict=True))
            line = reader.line_num + 1

    def _parquet_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            with pq.ParquetFile(self.file.path, memory_map=True) as table:
                self.schema = table.schema_arrow
                self.names = dict.fromkeys(self.schema.names)
                self.languages = set(languages_in(self.schema))
                wanted = None
                if self.columns is not None:
                    keys = [self.columns.key(name, self.names) for name in self.columns.names]
                    wanted = [name for name in (TRANSLATION, *keys) if name in self.names]
                number = 0
                for batch in table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{self.file.name}: row {number}", row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(
                f"{self.file.name}: cannot read it as Parquet ({first_line}). Write or download it again."
            ) from error


def record_rows(files: tuple[InputFile, ...], kind: str, columns: Columns, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of files with named columns; `version` only distinguishes cached results.

    Raises:
        UserError: naming file and line of the first malformed row, or a column that no row of a file has.
    """
    index = 0
    for file in files:
        records = Records(file, kind, columns)
        is_checked, is_read = False, False
        for _, row in records:
            is_read = True
            if not is_checked and (records.is_table or None in columns.names):  # otherwise known only at the end
                columns.check(file.name, records.names, records.languages)
                is_checked = True
            yield pack(index, *columns.pair(row))
            index += 1
        if is_read or records.names:
            columns.check(file.name, records.names, records.languages)
    if not index:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{names}: no rows. Give a file with rows to --train_file, --validation_file or --test_file.")


def aligned_rows(source: InputFile, target: InputFile, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of two aligned text files; `version` only distinguishes cached results.

    Raises:
        UserError: for files of different lengths, or without lines.
    """
    index = 0
    pairs = zip_longest(text_lines(source), text_lines(target))
    for source_text, target_text in pairs:
        if source_text is None or target_text is None:
            longer = index + 1 + sum(1 for _ in pairs)
            counts = (index, longer) if source_text is None else (longer, index)
            raise UserError(
                f"{source.name}: aligned files must have the same number of lines (got {counts[0]}, and {counts[1]} in "
                f"{target.name}). Give two files that are aligned line by line."
            )
        yield pack(index, source_text, target_text)
        index += 1
    if not index:
        raise UserError(f"{source.name}, {target.name}: no lines. Give two files with text.")


def text_lines(file: InputFile) -> Iterator[str]:
    """Yield the lines of a text file without their endings."""
    for _, line in read_lines(file):
        yield without_ending(line)


def without_ending(line: str) -> str:
    """Remove the end of a line: \\n or \\r\\n alone; a form feed or U+2028 within a text is kept."""
    return line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


def languages_in(schema: pa.Schema) -> list[str]:
    """Return the keys of a "translation" column of structs; none without such a column."""
    if TRANSLATION not in schema.names:
        return []
    kind = schema.field(TRANSLATION).type
    return [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


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
    """

    def __init__(self, name: str, *, column: str | None, source_lang: str | None) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            name: A path, or - for the lines of standard input.
            column: The column of the text; None looks for the source language, "source" and "text".
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
            remedy = "Give --source_column" if column else "Give --source_lang or --source_column"
            raise UserError(f"{where}: no column {' or '.join(names)}. {remedy}; the columns are {there}.")
        text = place[found]
        if not isinstance(text, str):
            got = json.dumps(text, default=str)[:60]
            raise UserError(f"{where}: {found} must be a text (got {got}). Correct this row, or give --source_column.")
        return text
