"""Write translations in the order of their texts: lines, JSON, tables and Parquet, with the columns of the input."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mtloop.config.inputs import Dialect
from mtloop.data.files import kind_of
from mtloop.data.readers import Records
from mtloop.data.texts import Entry
from mtloop.errors import UserError, first_line

if TYPE_CHECKING:
    from mtloop.translate.translator import Translation

# The columns that a row gets.
HYPOTHESIS, SCORE = "hypothesis", "score"
SEPARATOR = " ||| "  # Moses's format of n-best lists


class Writer:
    """Writes translations in the format of the output's name: lines, JSON, a table or Parquet; packed for .gz.

    Lines keep the endings of the file they came from; n-best lists and scores are written as Moses does:
    `number ||| translation ||| score`. In a table each of several translations has a row, elsewhere a row has a list.
    A table has the form of the input if that is of the same kind, else the usual one of its kind.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        n_best: int = 1,
        with_scores: bool = False,
        overwrites: bool = False,
        languages: Sequence[str | None] = (),
    ) -> None:
        """Prepare to write.

        Args:
            file: Opened in binary mode; the caller closes it.
            name: Its name tells its kind.
            n_best: Translations of each text.
            with_scores: Whether scores are written.
            overwrites: Whether a column of the input may be replaced.
            languages: As in kind_of.
        """
        self._raw = file
        self._file: Any = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if name.lower().endswith(".gz") else file
        self._kind = kind_of("-o", [name], languages)
        self._n_best, self._with_scores, self._overwrites = n_best, with_scores, overwrites
        self._number = 0
        self._header: list[str] = []
        self._dialect = Dialect()
        self._table: pq.ParquetWriter | None = None

    @property
    def _own_columns(self) -> list[str]:
        return [HYPOTHESIS, SCORE] if self._with_scores else [HYPOTHESIS]

    def write(
        self, entries: Iterable[Entry], translations: Iterable[list[Translation]], records: Records | None
    ) -> None:
        """Write a block of entries; `records` are the rows that they stand in.

        Raises:
            UserError: for a column that would be replaced, and for rows that the kind cannot hold.
        """
        pairs = list(zip(entries, translations, strict=True))
        if self._kind == "text":
            for entry, candidates in pairs:
                self._file.write(self._lines(entry, candidates).encode("utf-8"))
                self._number += 1
        else:
            places = [(entry.where, row) for entry, candidates in pairs for row in self._rows(entry, candidates)]
            rows = [row for _, row in places]
            if self._kind in ("json", "jsonl"):
                self._write_json(rows)
            else:
                self._header = self._header or self._open_table(rows, records)
                for where, row in places:
                    if new := [name for name in row if name not in self._header]:
                        raise UserError(
                            f"{where}: a column that the first row lacks (got {new[0]!r}). Give -o FILE.jsonl."
                        )
                (self._write_parquet if self._kind == "parquet" else self._write_table)(rows)
            self._number += len(rows)
        if self._file is self._raw:
            self._file.flush()

    def finish(self, records: Records | None) -> None:
        """Write the header of an output without rows, and the end of a format that has one."""
        if not self._number and self._kind in ("csv", "tsv", "parquet"):
            self.write([], [], records)
        if self._kind == "json":
            self._file.write(b"\n]\n" if self._number else b"[]\n")
        if self._table is not None:
            self._table.close()
        if self._file is not self._raw:
            self._file.close()

    def _lines(self, entry: Entry, candidates: list[Translation]) -> str:
        ending = entry.origin if isinstance(entry.origin, str) else "\n"
        # A translation is always one line.
        texts = [" ".join(candidate.text.splitlines()) for candidate in candidates]
        if self._n_best == 1 and not self._with_scores:
            return texts[0] + ending
        lines = []
        for text, candidate in zip(texts, candidates, strict=True):
            fields = [str(self._number), text] + ([f"{candidate.score:.4f}"] if self._with_scores else [])
            lines.append(SEPARATOR.join(fields) + (ending or "\n"))
        return "".join(lines)

    def _rows(self, entry: Entry, candidates: list[Translation]) -> list[dict[str, Any]]:
        row = entry.origin if isinstance(entry.origin, dict) else {"source": entry.text}
        if taken := [name for name in self._own_columns if name in row and not self._overwrites]:
            raise UserError(
                f"{entry.where}: the input has this column already (got {taken[0]!r}). "
                "Replace it with --overwrite_column."
            )
        texts = [candidate.text for candidate in candidates]
        scores = [round(candidate.score, 4) for candidate in candidates]
        if self._kind in ("csv", "tsv"):
            cells = ((one.text, f"{one.score:.4f}") for one in candidates)
            return [{**row, **dict(zip(self._own_columns, both, strict=False))} for both in cells]
        values = (texts, scores) if self._n_best > 1 else (texts[0], scores[0])
        return [{**row, **dict(zip(self._own_columns, values, strict=False))}]

    def _write_json(self, rows: Sequence[dict[str, Any]]) -> None:
        for number, row in enumerate(rows, start=self._number):
            line = json.dumps(row, ensure_ascii=False, default=str)
            try:
                content = line.encode("utf-8")
            except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot hold
                content = json.dumps(row, default=str).encode("ascii")
            if self._kind == "jsonl":
                self._file.write(content + b"\n")
            else:
                self._file.write((b",\n" if number else b"[\n") + content)

    def _open_table(self, rows: Sequence[dict[str, Any]], records: Records | None) -> list[str]:
        """Write the header; return the columns."""
        if self._kind == "parquet":
            schema = self._schema(rows, records)
            self._table = pq.ParquetWriter(self._raw, schema)
            return list(schema.names)
        if records is not None and records.kind == self._kind:
            self._dialect = records.dialect
        names = [*records.names] if records is not None and records.is_table else [*rows[0]] if rows else ["source"]
        header = list(dict.fromkeys([*names, *self._own_columns]))
        if not self._dialect.no_header:
            self._write_cells([header])
        return header

    def _write_table(self, rows: Sequence[dict[str, Any]]) -> None:
        separator = self._dialect.separator(self._kind)
        cells = []
        for row in rows:
            if not self._dialect.is_quoted(self._kind):  # where a translation is always one field of one line
                row = {**row, HYPOTHESIS: " ".join(row[HYPOTHESIS].splitlines()).replace(separator, " ")}
            cells.append([_cell(row.get(name)) for name in self._header])
        self._write_cells(cells)

    def _write_cells(self, rows: list[list[str]]) -> None:
        separator = self._dialect.separator(self._kind)
        text = io.StringIO()
        if self._dialect.is_quoted(self._kind):
            csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
        for row in [] if self._dialect.is_quoted(self._kind) else rows:
            if bad := [cell for cell in row if separator in cell or "\n" in cell or cell.endswith("\r")]:
                raise UserError(
                    f"-o: a table without quoting cannot hold a newline or the delimiter (got {bad[0][:60]!r}). "
                    "Give -o FILE.jsonl or FILE.csv."
                )
            text.write(separator.join(row) + "\n")
        self._file.write(text.getvalue().encode("utf-8"))

    def _write_parquet(self, rows: Sequence[dict[str, Any]]) -> None:
        assert self._table is not None
        try:
            self._table.write_table(pa.Table.from_pylist(list(rows), schema=self._table.schema))
        except pa.ArrowException as error:
            raise UserError(
                f"-o: row {self._number + 1} or below has other types than the first ({first_line(error)}). Give -o "
                "FILE.jsonl."
            ) from error

    def _schema(self, rows: Sequence[dict[str, Any]], records: Records | None) -> pa.Schema:
        """Return the types of the columns: the input's as its file has them or its first rows show, and ours."""
        text, number = pa.string(), pa.float64()
        types = {HYPOTHESIS: text, SCORE: number}
        if self._n_best > 1:
            types = {name: pa.list_(one) for name, one in types.items()}
        if records is not None and records.schema is not None:
            fields = list(records.schema)
        else:
            names = records.names if records is not None else ["source"]
            found = pa.Table.from_pylist(list(rows)).schema if rows else pa.schema(dict.fromkeys(names, text))
            fields = list(found)
        kept = [field for field in fields if field.name not in self._own_columns]
        return pa.schema([*kept, *((name, types[name]) for name in self._own_columns)])


def _cell(value: Any) -> str:
    """Write a value into a cell of a table."""
    if value is None or isinstance(value, str):
        return value or ""
    is_json = isinstance(value, (dict, list, bool, int, float))
    return json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)
