"""Change the text of a JSON or YAML file at random, as a disk, an editor or another program may."""

from __future__ import annotations

import json
import random
from typing import Any

# Values of wrong types, and numbers that are none.
ODD: tuple[Any, ...] = (
    None, True, -1, 10**30, 1.5, "", "x", "\ud800", [], {}, [[]], {"a": []}, float("nan"), float("inf"), "1e999",
    "../../x",
)  # fmt: skip


def mutated(content: bytes, choice: random.Random) -> bytes:
    """Return a file's content with one change: of a value, a key, a line, or bytes."""
    text = content.decode(errors="replace")
    way = choice.randrange(10)
    if way < 6 and (changed := _with_odd_value(text, choice)) is not None:
        return changed.encode("utf-8", "surrogatepass")
    if way == 6:
        return content[: choice.randrange(len(content) + 1)]
    if way == 7:
        return choice.choice(
            [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\x00" * 64, b"\xff\xfe", b"1e999", b"null", b"[]"]
        )
    if way == 8 and text:
        lines = text.splitlines(keepends=True)
        lines.insert(choice.randrange(len(lines) + 1), choice.choice(lines))
        del lines[choice.randrange(len(lines))]
        return "".join(lines).encode()
    changed = bytearray(content or b"x")
    for _ in range(choice.randrange(1, 4)):
        changed[choice.randrange(len(changed))] = choice.randrange(256)
    return bytes(changed)


def _with_odd_value(text: str, choice: random.Random) -> str | None:
    """Replace or remove one value of a JSON file, or of one line of JSON; None for other text."""
    lines = text.splitlines(keepends=True)
    number = choice.randrange(len(lines)) if lines else 0
    try:
        value, is_whole = json.loads(text), True
    except ValueError:
        try:
            value, is_whole = json.loads(lines[number]), False
        except (ValueError, IndexError):
            return None
    places = list(_places(value))
    if not places:
        return None
    parent, key = choice.choice(places)
    if isinstance(parent, dict) and choice.random() < 0.3:
        del parent[key]
    else:
        parent[key] = choice.choice(ODD)
    if is_whole:
        return json.dumps(value)
    lines[number] = json.dumps(value) + "\n"
    return "".join(lines)


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
