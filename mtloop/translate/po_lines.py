"""Write lines of gettext catalogues: wrapped texts, flags, comments. Must not know what is translated."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from mtloop.translate.filling import COMMENT

# Of gettext, without the quotes; translate-toolkit breaks lines at a column, and at newlines alone if it is far away.
_WIDTH, NO_WRAP = 77, 1 << 30
# Texts that say how a file is wrapped, at most, and the shortest of them.
_NUM_WRAPPED, _MIN_WRAPPED = 2000, 60
# Files that several programs wrote are wrapped in several ways.
_CLEARLY = 1.1
MSGSTR = re.compile(rb"\s*msgstr(?:\[(\d+)\])?")


def wrap_width(units: list[Any]) -> int:
    """Return the column at which most texts of a file are wrapped."""
    from translate.storage.pypo import PoWrapper, quoteforpo, unquotefrompo

    written: list[list[str]] = []
    for unit in units:
        if not unit.isobsolete() and not unit.isheader() and len(written) < _NUM_WRAPPED:
            targets = unit.msgstr.values() if isinstance(unit.msgstr, dict) else [unit.msgstr]
            written += [lines for lines in (unit.msgid, *targets) if sum(map(len, lines)) > _MIN_WRAPPED]
    longest = max((_columns(line) - 2 for lines in written if len(lines) > 2 for line in lines), default=_WIDTH)
    texts = [(lines, unquotefrompo(lines)) for lines in written]

    def num_equal(width: int) -> int:
        return sum(quoteforpo(text, PoWrapper(width)) == lines for lines, text in texts)

    usual, (other, width) = num_equal(_WIDTH), max((num_equal(width), width) for width in (NO_WRAP, longest))
    return width if other > _CLEARLY * usual else _WIDTH


def quoted(keyword: str, text: str, width: int) -> list[str]:
    """Return the lines of a msgstr, wrapped as gettext does."""
    from translate.storage.pypo import PoWrapper, quoteforpo

    lines = quoteforpo(text, PoWrapper(width)) or ['""']
    if len(lines) == 1 and _columns(f"{keyword} {lines[0]}") > width + 2:
        lines = ['""', *lines]
    return [f"{keyword} {lines[0]}", *lines[1:]]


def _columns(text: str) -> int:
    """Return the width of a text in a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def forms_of(lines: list[bytes]) -> dict[int | None, list[bytes]]:
    """Return the lines of each msgstr."""
    forms: dict[int | None, list[bytes]] = {}
    form: int | None = None
    for line in lines:
        if match := MSGSTR.match(line):
            form = int(match[1]) if match[1] else None
        forms.setdefault(form, []).append(line)
    return forms


def _flags(line: bytes) -> list[bytes]:
    """Return the flags of a line of comments."""
    is_flags = line.lstrip().startswith(b"#,")
    return [flag.strip() for flag in line.lstrip()[2:].split(b",")] if is_flags else []


def marked(head: list[bytes], *, is_fuzzy: bool) -> list[bytes]:
    """Return the comments of an entry with or without the flag fuzzy, and then without the previous msgid."""
    was_fuzzy = any(b"fuzzy" in _flags(line) for line in head)
    if is_fuzzy == was_fuzzy:
        return head
    if is_fuzzy:
        place = next((number for number, line in enumerate(head) if _flags(line)), None)
        if place is not None:
            return [*head[:place], b"#, fuzzy," + head[place].lstrip()[2:], *head[place + 1 :]]
        place = next((number for number, line in enumerate(head) if line.lstrip().startswith(b"#|")), len(head))
        return [*head[:place], b"#, fuzzy", *head[place:]]
    return list(_without_fuzzy(head))


def _without_fuzzy(head: list[bytes]) -> Iterator[bytes]:
    for line in head:
        flags = _flags(line)
        if b"fuzzy" in flags:
            if others := [flag for flag in flags if flag != b"fuzzy"]:
                yield b"#, " + b", ".join(others)
        elif not line.lstrip().startswith(b"#|"):
            yield line


def commented(head: list[bytes], comments: list[bytes]) -> list[bytes]:
    """Return the comments of an entry with ours behind those of translators; earlier ones of ours are removed."""
    ours = f"# {COMMENT}".encode()
    head = [line for line in head if not line.lstrip().startswith(ours)]
    of_translators = (number for number, line in enumerate(head) if re.match(rb"\s*#(?:\s|$)", line))
    place = max(of_translators, default=-1) + 1
    return [*head[:place], *comments, *head[place:]]
