"""Damage files at random. A seed decides the change: bytes, a value of a JSON text, a line of YAML, a column, a tensor.

Functions take the random generator and the content, and return the changed content; they never touch a file.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HUGE = "9" * 5_000
# Bytes that separate, end, open or encode something in one of the formats.
BYTES = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b"\n", b"\r\n", b"\t", b",", b'"', b'""',
    b"'", b"{", b"}", b"[", b"]", b":", b"&", b"*", b"!", b"|", b"#", b"\\", b"\\u0000", b"\\ud800", b"\x1b", b"%",
    "\u2028".encode(), "\u0301".encode(), "\U0001f600".encode(), b"NaN", b"-1", b"1e999", HUGE.encode(), b"null",
    b"[" * 2_000, b'{"a":' * 2_000, b"A" * 200_000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**64), 10**30, 0.5, -0.0, 1e300, float("nan"), float("inf"), "",
    " ", "x", "\u0000", "\ud800", "NaN", "null", "../x", "en", "A" * 5_000, [], [0], [None], [-1], ["a"], [[]], [[[]]],
    [{}], ["en", "fr"], [["en", "x"]], {}, {"a": 1}, {"en": "x"}, {"en": None, "fr": []}, {"": ""}, {"translation": {}},
)  # fmt: skip
YAML_VALUES = (
    "", "null", "~", "true", "no", "0", "-1", "1", "2.5", ".nan", ".inf", "-.inf", "nan", "1e300", HUGE, "0x10", "1_0",
    "x", "''", '"\\0"', '"\\ud800"', '"\\xff"', "[]", "[1]", "[[1]]", "{}", "{a: 1}", "{a: {b: 1}}", "[{a: 1}]", "&a x",
    "*a", "&a [*a]", "&a {b: *a}", "!!python/object:os.system x", "!!python/object/apply:os.system [true]",
    "!!binary x", "!!int x", "!!float x", "!!bool x", "!!null x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]",
    "!!timestamp 2001-01-01", "!x y", "2001-01-01", "2001-99-99", "12:30:45", "|\n  a\n  b", ">\n  a", "{<<: 1}",
    "{? [a] : b}", "{a: !!binary aGk=}", "{power: .nan}", "{power: 1e999}", "{power: 2020-02-02}", "{a: !!float x}",
    "[" * 1_000 + "]" * 1_000, "{a: " * 1_000 + "}" * 1_000, "- a", "? a", "%", "@", "`", "a: b: c", "---", "...", "\t",
)  # fmt: skip
YAML_LINES = (
    "<<: *a", "<<: {seed: 1}", "? [a]\n: b", "- a", "---", "...", "%YAML 9.9", "[a]: b", "{a: b}: c", "null: 1",
    "seed: 1\nseed: 2", "\tseed: 1", "!!str seed: 1", "&a seed: *a", "a" * 5_000 + ": 1", "é: 1", "config: demo",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]", "recipe: [a]", "recipe: 1", "hub_token: x",
)  # fmt: skip


def of_bytes(chance: random.Random, content: bytes) -> bytes:
    """Cut, flip, insert, remove, repeat or move bytes, or write the text in another encoding."""
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((1, 2, 8, 64, 4_096)))
    part = content[start:end]
    new = chance.choice(BYTES)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: content[:start],
        lambda: content[start:],
        lambda: content[:start] + content[end:],
        lambda: content[:start] + bytes(chance.randrange(256) for _ in part) + content[end:],
        lambda: content[:start] + bytes(byte ^ 1 << chance.randrange(8) for byte in part[:1]) + content[start + 1 :],
        lambda: content[:start] + new + content[start:],
        lambda: content[:start] + new + content[end:],
        lambda: content[:start] + part * 3 + content[start:],
        lambda: new + content,
        lambda: content + new,
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content.decode("latin-1").encode(chance.choice(("utf-16", "utf-16-le", "utf-32", "utf-8", "utf-7"))),
        lambda: chance.choice((b"", b"\n", b"\x00" * 100, chance.randbytes(200), new)),
    )
    return chance.choice(changes)()


def of_json(chance: random.Random, value: Any) -> Any:
    """Replace, remove, rename, repeat or wrap a value at a random place in a JSON value."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        changed = value.copy()
        how = chance.randrange(8)
        if how == 0:
            del changed[key]
        elif how == 1 and isinstance(value, dict):
            changed[chance.choice(("", "x", "\u0000", "\ud800", key.upper(), chance.choice(keys)))] = changed.pop(key)
        elif how == 1:
            changed.append(changed[key])
        else:
            changed[key] = of_json(chance, value[key])
        return changed
    if chance.random() < 0.1:
        return chance.choice(([value], {"a": value}, [value, value], str(value), [[value] * 3] * 3))
    return chance.choice(VALUES)


def of_json_text(chance: random.Random, content: bytes) -> bytes:
    """Change a value of a JSON text, or its bytes."""
    if chance.random() < 0.3:
        return of_bytes(chance, content)
    return json.dumps(of_json(chance, json.loads(content))).encode()


def of_json_lines(chance: random.Random, content: bytes) -> bytes:
    """Change a value in one of the JSON lines, or the bytes; some changes are made to each line."""
    if chance.random() < 0.4:
        return of_bytes(chance, content)
    rows = [json.loads(line) for line in content.splitlines()]
    if chance.random() < 0.3:
        seed = chance.random()
        rows = [of_json(random.Random(seed), row) for row in rows]
    else:
        at = chance.randrange(len(rows))
        rows[at] = of_json(chance, rows[at])
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def of_yaml(chance: random.Random, content: bytes) -> bytes:
    """Change a value or a line of a flat YAML mapping, or its bytes."""
    if chance.random() < 0.3:
        return of_bytes(chance, content)
    lines = content.decode().splitlines()
    at = chance.randrange(len(lines))
    how = chance.randrange(4)
    if how == 0:
        lines.insert(at, chance.choice(YAML_LINES))
    elif how == 1:
        lines[at] = (
            chance.choice(("  ", "- ", "\t", "? ", "!x ", "&a ", "")) + lines[at] + chance.choice((":", "'", ""))
        )
    else:
        lines[at] = f"{lines[at].partition(':')[0]}: {chance.choice(YAML_VALUES)}"
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def of_table(chance: random.Random, content: bytes) -> bytes:
    """Change a cell or a row of a table of lines, or its bytes."""
    if chance.random() < 0.5:
        return of_bytes(chance, content)
    separator = b"\t" if b"\t" in content else b","
    rows = [line.split(separator) for line in content.splitlines()]
    row = chance.choice(rows)
    at = chance.randrange(len(row))
    if chance.random() < 0.3:
        row.insert(at, chance.choice(row))
    else:
        row[at] = chance.choice((*BYTES, b'"x', b'x"', b'"a""b"', b"{'en': 1}", b"{[]: 1}", b"[([], 1)]", b"", b" "))
    return b"\n".join(map(separator.join, rows)) + b"\n"


def columns_of(chance: random.Random, num_rows: int) -> pa.Table:
    """Return a table with columns `en`, `fr` and perhaps `translation`, of random types."""

    def texts(name: str) -> list[str]:
        return [f"{name} {number}" for number in range(num_rows)]

    pairs = [{"en": f"a {number}", "fr": f"b {number}"} for number in range(num_rows)]
    languages = {"language": ["en", "fr"], "translation": ["a", "b"]}
    kinds: Sequence[Callable[[str], pa.Array]] = (
        lambda name: pa.array(texts(name)),
        lambda name: pa.array(texts(name), pa.large_string()),
        lambda name: pa.array(texts(name)).dictionary_encode(),
        lambda name: pa.array([text.encode() + b"\xff" for text in texts(name)], pa.binary()),
        lambda name: pa.array(range(num_rows), pa.int64()),
        lambda name: pa.array([float("nan")] * num_rows),
        lambda name: pa.array([2**62] * num_rows, pa.timestamp("ns")),
        lambda name: pa.array([2**62] * num_rows, pa.timestamp("s")),
        lambda name: pa.array([2**30] * num_rows, pa.date32()),
        lambda name: pa.array([2**40 + 1] * num_rows, pa.time64("ns")),
        lambda name: pa.array([2**62] * num_rows, pa.duration("us")),
        lambda name: pa.array([None] * num_rows, pa.null()),
        lambda name: pa.array([None] * num_rows, pa.string()),
        lambda name: pa.array([[text] for text in texts(name)]),
        lambda name: pa.array(pairs),
        lambda name: pa.array([json.dumps(pair) for pair in pairs]),
        lambda name: pa.array([[("en", "a"), ("fr", "b")]] * num_rows, pa.map_(pa.string(), pa.string())),
        lambda name: pa.array([[(1, "a"), (2, "b")]] * num_rows, pa.map_(pa.int64(), pa.string())),
        lambda name: pa.array([languages] * num_rows),
        lambda name: pa.array([{"language": [["en"]], "translation": ["a"]}] * num_rows),
        lambda name: pa.array([{}] * num_rows, pa.struct([])),
        lambda name: pa.array(["[([], 1)]"] * num_rows),
    )  # fmt: skip
    names = [*chance.choice((("en", "fr"), ("translation",), ("en", "fr", "translation"), ("en", "en"), ("EN", "fr")))]
    return pa.table([chance.choice(kinds)(name) for name in names], names=names)


def of_parquet(chance: random.Random, content: bytes) -> bytes:
    """Change the types or names of the columns of a Parquet file, or its bytes."""
    if chance.random() < 0.5:
        return of_bytes(chance, content)
    changed = io.BytesIO()
    try:
        pq.write_table(columns_of(chance, chance.choice((0, 1, 20))), changed)
    except pa.ArrowException:  # a type that Parquet lacks
        return of_bytes(chance, content)
    return changed.getvalue()


def of_arrow(chance: random.Random, content: bytes) -> bytes:
    """Change the types or names of the columns of an Arrow stream, or its bytes."""
    if chance.random() < 0.5:
        return of_bytes(chance, content)
    table, changed = columns_of(chance, chance.choice((0, 1, 20))), io.BytesIO()
    with pa.ipc.new_stream(changed, table.schema) as stream:
        stream.write_table(table)
    return changed.getvalue()


def of_safetensors(chance: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, a tensor's shape, type or values, or the bytes."""
    if chance.random() < 0.4:
        return of_bytes(chance, content)
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    name, how = chance.choice(names), chance.randrange(7)
    if how == 0:
        header = of_json(chance, header)
    elif how == 1:  # the other tensors stay where they are
        del header[name]
    elif how == 2:
        header[f"{name}x"] = header.pop(name)
    elif how == 3:
        header[name]["shape"] = chance.choice((header[name]["shape"][::-1], [*header[name]["shape"], 1], [-1], [2**62]))
    elif how == 4:
        header[name]["dtype"] = chance.choice(("I32", "U32", "F16", "F64", "BOOL", "F8_E4M3", "x", "", None))
    else:
        start, end = header[name]["data_offsets"]
        values = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x00"))
        data = data[:start] + values * ((end - start) // 4) + data[end:]
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def of_named(chance: random.Random, name: str, content: bytes) -> bytes:
    """Change the content of a file as its name says: JSON, JSON lines or YAML."""
    changes = {"json": of_json_text, "jsonl": of_json_lines, "yaml": of_yaml}
    return changes.get(name.rpartition(".")[2], of_bytes)(chance, content)
