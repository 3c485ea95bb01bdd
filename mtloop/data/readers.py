"""The rows of files of every kind, as they stand in them, and packed for the cache. Must not know where that is."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtloop.data.files import InputFile, read_lines
from mtloop.data.jsontext import json_lines, json_values
from mtloop.data.rows import TRANSLATION, Columns, pack
from mtloop.errors import UserError

_PARQUET_BATCH = 1000
# csv.reader wants to be fed as from open(newline=""), where a lone \r ends a line too.
_AFTER_LONE_CR = re.compile(r"(?<=\r)(?!\n)")


class Records:
    """The rows of a file with named columns, one after the other, each as it stands in the file.

    Attributes:
        file: What is read.
        names: The columns that were met: of a table all of them, once its first row or its end was reached.
        languages: The keys of the "translation" column, likewise.
        is_table: Whether all rows have the same columns, which the file names.
        schema: Of a Parquet file, once it is open.
    """

    def __init__(self, file: InputFile, kind: str, columns: Columns | None = None) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            file: What to read.
            kind: json, jsonl, csv, tsv or parquet.
            columns: Read those alone from a Parquet file; None for all.
        """
        self.file, self.kind, self.columns = file, kind, columns
        self.names: dict[str, None] = {}  # in the order they were met
        self.languages: set[str] = set()
        self.is_table = kind in ("csv", "tsv", "parquet")
        self.schema: pa.Schema | None = None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (where it stands, row).

        Raises:
            UserError: naming file and line of the first broken row.
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
                raise UserError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
            self.names.update(dict.fromkeys(row))
            translation = row.get(TRANSLATION)
            self.languages.update(translation if isinstance(translation, dict) else ())
            yield where, row

    def _table_rows(self, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Read with csv.reader; strict, because it would else take a file cut off inside quotes for complete."""
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
                raise UserError(f"{where}: broken row ({error}); is a quote left open?") from error
            if fields and not self.names:
                self.names = dict.fromkeys(fields)
                if len(self.names) < len(fields):
                    raise UserError(f"{where}: a column name stands twice in the header: {', '.join(fields)}")
            elif fields:
                if len(fields) != len(self.names):
                    raise UserError(f"{where}: {len(fields)} fields, but the header has {len(self.names)}")
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
            raise UserError(f"{self.file.name}: cannot be read as Parquet ({first_line})") from error


def record_rows(files: tuple[InputFile, ...], kind: str, columns: Columns, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of files whose rows have named columns; `version` only distinguishes cached results.

    Raises:
        UserError: naming file and line of the first broken row, or a column that no row of a file has.
    """
    index = 0
    for file in files:
        records = Records(file, kind, columns)
        is_checked, is_read = False, False
        for _, row in records:
            is_read = True
            if not is_checked and (records.is_table or None in columns.names):  # else known at the end alone
                columns.check(file.name, records.names, records.languages)
                is_checked = True
            yield pack(index, *columns.pair(row))
            index += 1
        if is_read or records.names:
            columns.check(file.name, records.names, records.languages)
    if not index:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{names}: no rows, give a file that holds some (--train_file, --validation_file, --test_file)")


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
                f"{source.name} has {counts[0]} lines and {target.name} has {counts[1]}: "
                "aligned files must have equally many"
            )
        yield pack(index, source_text, target_text)
        index += 1
    if not index:
        raise UserError(f"{source.name}, {target.name}: no lines")


def text_lines(file: InputFile) -> Iterator[str]:
    for _, line in read_lines(file):
        yield without_ending(line)


def without_ending(line: str) -> str:
    """Cut off what ends a line: only \\n and \\r\\n do; a form feed or U+2028 within a text stays where it is."""
    return line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


def languages_in(schema: pa.Schema) -> list[str]:
    """Return the keys of a "translation" column of structs, none where there is no such column."""
    if TRANSLATION not in schema.names:
        return []
    kind = schema.field(TRANSLATION).type
    return [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
