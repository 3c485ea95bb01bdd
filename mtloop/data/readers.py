"""File kinds -> packed rows: the generators that fill the cache. Must not know how rows are stored or split."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
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


def record_rows(files: tuple[InputFile, ...], kind: str, columns: Columns, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of files whose rows have named columns; `version` only distinguishes cached results.

    Raises:
        UserError: naming file and line of the first broken row, or a column that no row of a file has.
    """
    index = 0
    for file in files:
        for row in _READERS[kind](file, columns):
            yield pack(index, *columns.pair(row))
            index += 1
    if not index:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{names}: no rows, give a file that holds some (--train_file, --validation_file, --test_file)")


def aligned_rows(source: InputFile, target: InputFile, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of two aligned text files; `version` only distinguishes cached results.

    Raises:
        UserError: for files of different lengths, or without lines.
    """
    index = 0
    pairs = zip_longest(_text_lines(source), _text_lines(target))
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


def _text_lines(file: InputFile) -> Iterator[str]:
    for _, line in read_lines(file):
        yield line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


def _json_rows(file: InputFile, columns: Columns) -> Iterator[Mapping[str, Any]]:
    yield from _objects(file, columns, json_values(file))


def _jsonl_rows(file: InputFile, columns: Columns) -> Iterator[Mapping[str, Any]]:
    yield from _objects(file, columns, json_lines(file))


def _objects(file: InputFile, columns: Columns, values: Iterator[tuple[int, Any]]) -> Iterator[Mapping[str, Any]]:
    """Pass rows on; what no row has is only known at the end, what no flag names at the first row."""
    seen: set[str] = set()
    languages: set[str] = set()
    is_empty = True
    for line, row in values:
        if not isinstance(row, dict):
            raise UserError(f"{file.name}:{line}: a row must be a JSON object, not {type(row).__name__}")
        seen.update(row)
        translation = row.get(TRANSLATION)
        languages.update(translation if isinstance(translation, dict) else ())
        if is_empty and None in columns.names:
            columns.check(file.name, seen, languages)
        is_empty = False
        yield row
    if not is_empty:
        columns.check(file.name, seen, languages)


def _csv_rows(file: InputFile, columns: Columns) -> Iterator[Mapping[str, Any]]:
    yield from _table_rows(file, columns, ",")


def _tsv_rows(file: InputFile, columns: Columns) -> Iterator[Mapping[str, Any]]:
    yield from _table_rows(file, columns, "\t")


def _table_rows(file: InputFile, columns: Columns, delimiter: str) -> Iterator[Mapping[str, Any]]:
    """Read with csv.reader; strict, because it would else take a file cut off inside quotes for complete."""
    lines = (part for _, line in read_lines(file) for part in _AFTER_LONE_CR.split(line) if part)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{file.name}:{line}: broken row ({error}); is a quote left open?") from error
        if fields and not header:
            header = _checked_header(file, line, fields, columns)
        elif fields:
            if len(fields) != len(header):
                raise UserError(f"{file.name}:{line}: {len(fields)} fields, but the header has {len(header)}")
            yield dict(zip(header, fields, strict=True))
        line = reader.line_num + 1


def _checked_header(file: InputFile, line: int, header: list[str], columns: Columns) -> list[str]:
    if len(set(header)) < len(header):
        raise UserError(f"{file.name}:{line}: a column name stands twice in the header: {', '.join(header)}")
    columns.check(file.name, header, ())
    return header


def _parquet_rows(file: InputFile, columns: Columns) -> Iterator[Mapping[str, Any]]:
    try:
        with pq.ParquetFile(file.path, memory_map=True) as table:
            schema = table.schema_arrow
            columns.check(file.name, schema.names, languages_in(schema))
            names = [columns.key(name, schema.names) for name in columns.names]
            wanted = [name for name in (TRANSLATION, *names) if name in schema.names]
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted):
                yield from batch.to_pylist()
    except UserError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{file.name}: cannot be read as Parquet ({first_line})") from error


def languages_in(schema: pa.Schema) -> list[str]:
    """Return the keys of a "translation" column of structs, none where there is no such column."""
    if TRANSLATION not in schema.names:
        return []
    kind = schema.field(TRANSLATION).type
    return [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


_READERS = {"json": _json_rows, "jsonl": _jsonl_rows, "csv": _csv_rows, "tsv": _tsv_rows, "parquet": _parquet_rows}
