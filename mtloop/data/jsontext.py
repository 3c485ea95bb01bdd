"""Read JSON files value by value: one row in memory at a time, and errors with their line number.

An array is decoded element by element, because json.load would hold a whole file in the memory of each process.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from mtloop.data.files import InputFile, check_magic, not_decodable, read_lines, reading
from mtloop.errors import UserError

_CHUNK = 1 << 16
# A longer value is a syntax error: an unclosed bracket would otherwise extend to the end of the file.
_MAX_VALUE_CHARS = 1 << 24
_MAX_TABLE_CHARS = 1 << 28  # of a value that is a whole file
_SPACE = " \t\r\n"


def json_lines(file: InputFile) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for one JSON value a line; blank lines are skipped.

    Raises:
        UserError: "path:LINE: ..." for invalid JSON.
    """
    for number, line in read_lines(file):
        line = line.rstrip(_SPACE)
        if not line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _invalid(file, number, _reason(error)) from error
        yield number, value


def json_values(file: InputFile, *, has_data: bool) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for an array, an object with an array "data" if it may be one, or the values.

    A value takes a line, unless the first one has line breaks inside.

    Raises:
        UserError: "path:LINE: ..." for invalid JSON.
    """
    with reading(file) as stream:
        text = _JsonText(file, stream)
        is_array = text.peek() == "["
        if is_array or (has_data and text.peek() == "{" and text.enter_data()):
            yield from text.elements()
            text.leave(is_array)
            return
    with reading(file) as stream:
        text = _JsonText(file, stream)
        if text.has_broken_value():
            while text.peek():
                yield text.line, text.value(_MAX_TABLE_CHARS)
            return
    yield from json_lines(file)


class _JsonText:
    """Read a JSON text forward, value by value, through a buffer.

    Attributes:
        line: The number of the present line, from 1.
    """

    def __init__(self, file: InputFile, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._buffer, self._at, self.line = "", 0, 1

    def peek(self) -> str:
        """Move past white space and return the next character, "" at the end."""
        while True:
            end = self._at
            while end < len(self._buffer) and self._buffer[end] in _SPACE:
                end += 1
            self._advance(end)
            if end < len(self._buffer):
                return self._buffer[end]
            if not self._fill():
                return ""

    def take(self, char: str) -> None:
        """Move past `char`, which must come next."""
        if self.peek() != char:
            self._fail(self.line, f"expected {char!r}")
        self._advance(self._at + 1)

    def has_broken_value(self) -> bool:
        """Return True if the line that comes next ends within a value, as a line of indented JSON does."""
        self.peek()
        while (end := self._buffer.find("\n", self._at)) < 0 and len(self._buffer) - self._at < _CHUNK and self._fill():
            pass
        line, rest = self._buffer[self._at : end].rstrip(), self._buffer[end:].lstrip()
        # A comma before another row is a mistake in a line.
        return end >= 0 and (line.endswith(("{", "[")) or (line.endswith(",") and not rest.startswith("{")))

    def value(self, max_chars: int = _MAX_VALUE_CHARS) -> Any:
        """Decode the next value and move past it; one over `max_chars` characters is an error."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._buffer) - self._at < max_chars and self._fill():
                    continue
                message, position = _reason(error), self._at
                if isinstance(error, json.JSONDecodeError):
                    message, position = error.msg, error.pos
                self._fail(self.line + self._buffer.count("\n", self._at, position), message)
            # A number may continue in the next chunk.
            if end < len(self._buffer) or not self._fill():
                self._advance(end)
                return value

    def enter_data(self) -> bool:
        """Move into the array "data" of the object that comes next; False if the object has none."""
        self.take("{")
        while self.peek() == '"':
            key = self.value()
            self.take(":")
            if key == "data" and self.peek() == "[":
                return True
            self.value()
            if self.peek() != ",":
                return False
            self.take(",")
        return False

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Yield (line number, value) of the array that comes next and move past it."""
        self.take("[")
        while self.peek() != "]":
            line = self.line
            yield line, self.value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def leave(self, is_array: bool) -> None:
        """Refuse a text that does not end properly after its array: it may be truncated."""
        while not is_array and self.peek() == ",":
            self.take(",")
            self.value()
            self.take(":")
            self.value()
        if not is_array:
            self.take("}")
        if self.peek():
            self._fail(self.line, "text after the end of the array")

    def _advance(self, end: int) -> None:
        self.line += self._buffer.count("\n", self._at, end)
        self._at = end

    def _fill(self) -> bool:
        """Read more; False at the end. Doubling keeps the repeated attempts at a long value linear in its length."""
        rest = self._buffer[self._at :]
        raw = self._stream.read(max(_CHUNK, len(rest)))
        if not self._buffer:
            check_magic(self._file, raw)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.line + rest.count("\n") + error.object.count(b"\n", 0, error.start)
            raise not_decodable(self._file, line, error) from error
        if not raw:
            return False
        self._buffer, self._at = rest + text, 0
        return True

    def _fail(self, line: int, message: str) -> NoReturn:
        raise _invalid(self._file, line, message)


def _invalid(file: InputFile, line: int, reason: str) -> UserError:
    return UserError(f"{file.name}:{line}: invalid JSON ({reason}). Correct this line.")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
