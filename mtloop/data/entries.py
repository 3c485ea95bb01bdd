"""Define an entry of a catalogue: its row and its states, and the errors of its file. Must not know formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtloop.data.files import InputFile, reading
from mtloop.data.row_shapes import TRANSLATION
from mtloop.errors import UserError, missing_package

KEPT = "kept"
# The states of entries that have nothing to translate.
LEFT_OUT = ("header", "obsolete", "not_translatable")
COLUMNS = (TRANSLATION, "context", "comment", "references", "file")
# A catalogue that is read as a whole takes up to 40 times its size; those of real programs have up to 20 MB.
_MAX_BYTES = 100 << 20
_MAX_SHOWN = 200

# (file and line, row, state) of each entry.
Entries = Iterator[tuple[str, dict[str, Any], str]]


def row_of(file: InputFile, translation: dict[str, str], context: str, comment: str, references: str) -> dict[str, Any]:
    """Return the row of an entry."""
    return dict(zip(COLUMNS, (translation, context, comment, references, file.name), strict=True))


def content_of(file: InputFile) -> bytes:
    """Return the bytes of a catalogue, unpacked.

    Raises:
        UserError: for one that is too large, or cannot be read.
    """
    with reading(file) as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{file.name}:1: a catalogue of over {_MAX_BYTES >> 20} MiB. Split it into several files.")
    return content


@contextmanager
def needing_toolkit(file: InputFile) -> Iterator[None]:
    """Name the package that a file needs if an import fails."""
    try:
        yield
    except ImportError as error:
        raise missing_package(file.name, "translate-toolkit", "l10n", error=error) from error


def malformed(file: InputFile, line: int, what: str, problem: str) -> UserError:
    """Return the error of a file that cannot be read."""
    shown = " ".join(problem[:_MAX_SHOWN].split())
    return UserError(f"{file.name}:{line}: malformed {what} ({shown}). Correct it, or leave the file out.")
