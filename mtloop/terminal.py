"""Measure, wrap and colour text for a terminal. Must not know what is printed."""

from __future__ import annotations

import os
import shutil
import textwrap
import unicodedata
from typing import TextIO

# Of a log: without a terminal nobody's window is too narrow.
LOG_COLUMNS = 120
STYLES = {"bold": "1", "red": "31", "green": "32"}


def terminal_columns() -> int:
    """Return the width to print in: COLUMNS, else that of the terminal on standard output, else LOG_COLUMNS."""
    return shutil.get_terminal_size((LOG_COLUMNS, 24)).columns


def has_colors(stream: TextIO | None) -> bool:
    """Return True if a stream is a terminal that shows colours, and NO_COLOR is not set (https://no-color.org)."""
    return bool(
        stream and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    )


def styled(text: str, style: str, stream: TextIO | None) -> str:
    """Return the text in one of STYLES, "" for none, if the stream shows colours."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and has_colors(stream) else text


def wrapped(label: str, text: str, columns: int) -> list[str]:
    """Return a label and a text as lines of at most `columns`; the later ones are indented by the label."""
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)  # takes two columns
    width = max(20, columns - len(label)) // (2 if is_wide else 1)
    lines = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    return [f"{label}{lines[0]}".rstrip(), *(" " * len(label) + line for line in lines[1:])]
