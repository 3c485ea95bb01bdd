"""Read the rows of files of every kind: unchanged, packed for the cache, or as texts to translate.

Must not know where the cache is.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtloop.config.inputs import Dialect
from mtloop.data.catalogues import entries
from mtloop.data.files import CATALOGUE, InputFile, read_lines, text_lines, without_ending
from mtloop.data.jsontext import json_values
from mtloop.data.row_shapes import TRANSLATION, languages_in, languages_of, rows_of
from mtloop.data.rows import NOTES, REASONS, Columns, pack
from mtloop.errors import UserError, first_line

_PARQUET_BATCH = 1000
# csv.reader expects the lines of open(newline=""), where a lone \r ends a line too.
_AFTER_LONE_CR = re.compile(r"(?<=\r)(?!\n)")
# A text may be longer than the 131,072 characters that the csv module allows; this is the most that it can allow.
csv.field_size_limit(2**31 - 1)


class Records:
    """The rows of a file with named columns, one after the other, unchanged.

    Attributes:
        file: The file that is read.
        names: The columns found so far: all those of a table, once its first row or its end was read.
        languages: The keys of the "translation" column found so far.
        is_table: Whether all rows have the same columns, which the file names.
        example: A value of the "translation" column without languages, if there is one.
        schema: Of a Parquet or Arrow file, once it is open.
        note: The position in NOTES of the doubtful quotes of the last row of a table.
        reason: The position in REASONS of why the last entry of a catalogue is not used.
    """

    def __init__(
        self, file: InputFile, kind: str, columns: Columns | None = None, dialect: Dialect | None = None
    ) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            file: The file to read.
            kind: json, jsonl, csv, tsv, parquet, arrow or catalogue.
            columns: The only columns to read from a Parquet or Arrow file, and the languages of a catalogue; None for
                all.
            dialect: The form of the file; None for the usual one.
        """
        self.file, self.kind, self.columns, self.dialect = file, kind, columns, dialect or Dialect()
        self.names: dict[str, None] = {}  # in the order of their appearance
        self.languages: set[str] = set()
        self.is_table = kind in ("csv", "tsv", "parquet", "arrow")
        self.example: Any = None
        self.schema: pa.Schema | None = None
        self.note = self.reason = 0
        self._is_struct = False

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (file and line, row).

        Raises:
            UserError: naming file and line of the first malformed row.
        """
        if self.kind in ("parquet", "arrow"):
            return self._arrow_rows()
        if self.is_table:
            return self._table_rows()
        if self.kind == CATALOGUE:
            return self._entries()
        return self._objects(json_values(self.file, has_data=self.kind == "json"))

    def _objects(self, values: Iterator[tuple[int, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        head = list(islice(values, 2))
        if len(head) == 1:  # perhaps a table in one value
            head = [(line, row) for line, value in head for row in rows_of(value)]
        for line, row in chain(head, values):
            where = f"{self.file.name}:{line}"
            if not isinstance(row, dict):
                raise UserError(
                    f"{where}: expected a JSON object as a row (got {type(row).__name__}). "
                    'Write each row as {"source": ..., "target": ...}.'
                )
            self.names.update(dict.fromkeys(row))
            self._find_languages(row)
            yield where, row

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        columns = self.columns or Columns()
        languages = columns.source_lang, columns.target_lang
        for where, row, state in entries(self.file, *languages, keep_fuzzy=self.dialect.keep_fuzzy):
            self.reason = REASONS.index(state)
            self.names.update(dict.fromkeys(row))
            self._find_languages(row)
            yield where, row

    @property
    def has_languages(self) -> bool:
        """Return True if all keys of the "translation" column are known before the last row."""
        return self.is_table and (TRANSLATION not in self.names or self._is_struct)

    def _find_languages(self, row: dict[str, Any]) -> None:
        found = languages_of(row.get(TRANSLATION))
        self.languages.update(found)
        if not found:
            self.example = self.example or row.get(TRANSLATION)

    def _table_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        is_quoted = self.dialect.is_quoted(self.kind)
        other = "none" if is_quoted else "csv"
        for line, fields, note in self._quoted_fields() if is_quoted else self._plain_fields():
            where = f"{self.file.name}:{line}"
            if not self.names:
                if self.dialect.no_header:
                    self.names = {str(number): None for number in range(1, len(fields) + 1)}
                else:
                    self.names = dict.fromkeys(fields)
                    if len(self.names) < len(fields):
                        raise UserError(
                            f"{where}: duplicate column in the header (got {', '.join(fields)}). "
                            "Rename one of them, or give --no_header."
                        )
                    continue
            if len(fields) != len(self.names):
                first = "first row" if self.dialect.no_header else "header"
                raise UserError(
                    f"{where}: expected {len(self.names)} fields, as in the {first} (got {len(fields)}). "
                    f"Correct this row, or give --delimiter or --quoting {other}."
                )
            self.note = NOTES.index(note)
            row = dict(zip(self.names, fields, strict=True))
            self._find_languages(row)
            yield where, row

    def _quoted_fields(self) -> Iterator[tuple[int, list[str], str]]:
        """Yield (line, fields, note) with csv.reader; strict, or it accepts a file that is truncated inside quotes."""
        lines = (part for _, line in read_lines(self.file) for part in _AFTER_LONE_CR.split(line) if part)
        reader = csv.reader(lines, delimiter=self.dialect.separator(self.kind), strict=True)
        line = 1
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(
                    f"{self.file.name}:{line}: malformed row ({error}). "
                    "Check it for an unclosed quote, or give --quoting none."
                ) from error
            if fields:
                yield line, fields, "spans_lines" if reader.line_num > line else ""
            line = reader.line_num + 1

    def _plain_fields(self) -> Iterator[tuple[int, list[str], str]]:
        """Yield (line, fields, note) of a table without quoting: a line is a row, a quote is text."""
        separator = self.dialect.separator(self.kind)
        for number, line in read_lines(self.file):
            if text := without_ending(line):
                fields = text.split(separator)
                has_doubled = '""' in text and any(map(_is_quoted_as_csv, fields))
                yield number, fields, "doubled_quotes" if has_doubled else ""

    def _arrow_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        number = 0
        name = "Parquet" if self.kind == "parquet" else "Arrow"
        try:
            with self._open_batches() as (self.schema, batches):
                for batch in batches:
                    batch.validate(full=True)  # a corrupt offset would end the process
                    for row in batch.to_pylist():
                        number += 1
                        if not self._is_struct:
                            self._find_languages(row)
                        yield f"{self.file.name}: row {number}", row
        except UserError:
            raise
        except Exception as error:  # pyarrow: its own, OSError, UnicodeDecodeError, OverflowError of a date were seen
            raise UserError(
                f"{self.file.name}: cannot read it as {name} ({first_line(error)}). Write or download it again."
            ) from error

    @contextmanager
    def _open_batches(self) -> Iterator[tuple[pa.Schema, Iterator[Any]]]:
        """Open a Parquet file, or one of `Dataset.save_to_disk`; yield its schema and its rows in batches."""
        if self.kind == "parquet":
            with pq.ParquetFile(self.file.path, memory_map=True) as table:
                wanted = self._wanted(table.schema_arrow)
                yield table.schema_arrow, table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted)
        else:
            with pa.memory_map(self.file.path) as source, pa.ipc.open_stream(source) as stream:
                wanted = self._wanted(stream.schema)
                yield stream.schema, (batch if wanted is None else batch.select(wanted) for batch in stream)

    def _wanted(self, schema: pa.Schema) -> list[str] | None:
        """Note the columns and languages of a file; return the columns to read, None for all."""
        self.names = dict.fromkeys(schema.names)
        self.languages = set(languages_in(schema))
        self._is_struct = bool(self.languages)
        if self.columns is None:
            return None
        keys = [self.columns.key(name, self.names) for name in self.columns.names]
        return [name for name in dict.fromkeys((TRANSLATION, *keys, self.columns.group_column)) if name in self.names]


def _is_quoted_as_csv(field: str) -> bool:
    """Return True for a field in quotes that has quotes inside, all of them doubled."""
    inner = field[1:-1]
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"'
    return is_quoted and '""' in inner and '"' not in inner.replace('""', "")


def record_rows(
    files: tuple[InputFile, ...], kind: str, columns: Columns, dialect: Dialect, version: int
) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of files with named columns; `version` only distinguishes cached results.

    Raises:
        UserError: naming file and line of the first malformed row, or a column that no row of a file has.
    """
    index = 0
    can_number = kind in ("csv", "tsv") and not dialect.no_header
    for file in files:
        records = Records(file, kind, columns, dialect)
        is_checked, is_read = False, False
        for where, row in records:
            is_read = True
            if not is_checked and (records.has_languages or None in columns.names):  # otherwise known only at the end
                columns.check(file.name, records.names, records.languages, can_number=can_number)
                is_checked = True
            source, target = columns.pair(row)
            if isinstance(source, (list, dict)) and isinstance(target, (list, dict)):
                found, numbers = type(source).__name__, f"{len(source)} and {len(target)}"
                raise UserError(
                    f"{where}: expected two texts in a row, not {found}s of texts (got {numbers}). "
                    "Write one row for each pair."
                )
            packed = pack(index, source, target, records.note or columns.note(row), records.reason)
            yield {**packed, **columns.group(row, file.sha256)}
            index += 1
        if is_read or records.names:
            columns.check(file.name, records.names, records.languages, example=records.example, can_number=can_number)
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
