"""Files of texts, read a block at a time and written in the same order: lines, JSON lines, and tables."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mtloop.errors import UserError
from mtloop.languages import find_key

if TYPE_CHECKING:
    from mtloop.translate.translator import Translation

STDIN = "-"
# The column that a row of a table gets.
HYPOTHESIS = "hypothesis"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".json")
SEPARATOR = " ||| "  # Moses's format of n-best lists


@dataclass(frozen=True)
class Entry:
    """One text of a file.

    Attributes:
        text: What is translated.
        origin: What it stood in: a line's ending, a JSON object, or a table's row.
    """

    text: str
    origin: Any


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file to read, or take standard input.

    Raises:
        UserError: naming the file and the reason.
    """
    if name == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115  # closed below, outside of what is caught here
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    with file:
        yield file


def kind_of(name: str) -> str:
    """Tell lines, JSON lines and tables apart by the name: "text", "json", or a table's delimiter."""
    suffix = Path(name).suffix.lower()
    if suffix in JSON_SUFFIXES:
        return "json"
    return DELIMITERS.get(suffix, "text")


def read_entries(file: BinaryIO, name: str, *, column: str | None, source_lang: str | None) -> Iterator[Entry]:
    """Yield the texts of a file, in order.

    Args:
        file: Opened in binary mode.
        name: Its name tells its kind; part of messages.
        column: Where the text of a row stands; None looks for the source language, "source" and "text".
        source_lang: Language code; also the key in a row's "translation".

    Raises:
        UserError: naming file and line.
    """
    kind = kind_of(name)
    if kind == "text":
        yield from _read_lines(file, name)
    elif kind == "json":
        for number, entry in enumerate(_read_lines(file, name), start=1):
            if entry.text.strip():
                yield _json_entry(entry.text, f"{name}:{number}", column, source_lang)
    else:
        yield from _read_table(file, name, kind, column, source_lang)


def _read_lines(file: BinaryIO, name: str) -> Iterator[Entry]:
    """Only \\n and \\r\\n end a line: a form feed or U+2028 within a text stays where it is."""
    for number, line in enumerate(file, start=1):
        ending = b"\r\n" if line.endswith(b"\r\n") else b"\n" if line.endswith(b"\n") else b""
        content = line[: len(line) - len(ending)]
        if number == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        try:
            yield Entry(content.decode("utf-8"), ending.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: no UTF-8 (byte {error.start + 1}); convert the file first") from error


def _json_entry(line: str, where: str, column: str | None, source_lang: str | None) -> Entry:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: no JSON ({error}); a .jsonl holds one object a line") from error
    if not isinstance(row, dict):
        raise UserError(f'{where}: no object, as {{"source": "..."}}')
    languages = row.get("translation")
    place = languages if column is None and isinstance(languages, dict) else row
    return Entry(_text_of(place, where, column, source_lang), row)


def _text_of(row: dict[str, Any], where: str, column: str | None, source_lang: str | None) -> str:
    names = [column] if column else [name for name in (source_lang, "source", "text") if name]
    found = next((name for name in names if name in row), None)
    if found is None and source_lang and not column:
        found = find_key(source_lang, row)
    if found is None:
        there = ", ".join(map(str, row)) or "none"
        remedy = "give --source_column" if column else "give --source_lang or --source_column"
        raise UserError(f"{where}: no column {' or '.join(names)}; {remedy}; there: {there}")
    if not isinstance(row[found], str):
        raise UserError(f"{where}: {found} is no text but {json.dumps(row[found])[:60]}")
    return row[found]


def _read_table(
    file: BinaryIO, name: str, delimiter: str, column: str | None, source_lang: str | None
) -> Iterator[Entry]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        for row in reader:
            where = f"{name}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: {'more' if None in row else 'fewer'} fields than the first line names")
            yield Entry(_text_of(row, where, column, source_lang), row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read as a table ({error})") from error
    finally:
        text.detach()


class Writer:
    """Writes translations as the output's name asks: lines, JSON lines, or a table.

    Lines keep the endings of the file they came from; n-best lists and scores are written as Moses does:
    `number ||| translation ||| score`.
    """

    def __init__(self, file: BinaryIO, name: str, *, n_best: int, with_scores: bool) -> None:
        self._file = file
        self._kind = kind_of(name)
        self._n_best, self._with_scores = n_best, with_scores
        self._number = 0
        self._has_header = False

    def write(self, entries: Iterable[Entry], translations: Iterable[list[Translation]]) -> None:
        """Write a block of entries."""
        for entry, candidates in zip(entries, translations, strict=True):
            self._file.write(self._format(entry, candidates).encode("utf-8"))
            self._number += 1
        self._file.flush()

    def _format(self, entry: Entry, candidates: list[Translation]) -> str:
        if self._kind == "json":
            row = entry.origin if isinstance(entry.origin, dict) else {"source": entry.text}
            return json.dumps({**row, **self._columns(candidates)}, ensure_ascii=False) + "\n"
        if self._kind != "text":
            return self._table_row(entry, candidates)
        ending = entry.origin if isinstance(entry.origin, str) else "\n"
        # A translation never breaks a line of its own.
        texts = [" ".join(candidate.text.splitlines()) for candidate in candidates]
        if self._n_best == 1 and not self._with_scores:
            return texts[0] + ending
        lines = []
        for text, candidate in zip(texts, candidates, strict=True):
            fields = [str(self._number), text] + ([f"{candidate.score:.4f}"] if self._with_scores else [])
            lines.append(SEPARATOR.join(fields) + (ending or "\n"))
        return "".join(lines)

    def _columns(self, candidates: list[Translation]) -> dict[str, Any]:
        texts = [candidate.text for candidate in candidates]
        scores = [round(candidate.score, 4) for candidate in candidates]
        columns: dict[str, Any] = {HYPOTHESIS: texts[0] if self._n_best == 1 else texts}
        return {**columns, "score": scores[0] if self._n_best == 1 else scores} if self._with_scores else columns

    def _table_row(self, entry: Entry, candidates: list[Translation]) -> str:
        row = entry.origin if isinstance(entry.origin, dict) else {"source": entry.text}
        lines = io.StringIO()
        for candidate in candidates:
            score = {"score": f"{candidate.score:.4f}"} if self._with_scores else {}
            whole = {**row, HYPOTHESIS: candidate.text, **score}
            table = csv.DictWriter(lines, list(whole), delimiter=self._kind, lineterminator="\n")
            if not self._has_header:
                table.writeheader()
                self._has_header = True
            table.writerow(whole)
        return lines.getvalue()
