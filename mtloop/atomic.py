"""Write files and folders atomically, and read JSON that a kill may have truncated.

Handles paths and bytes; must not know their content. A writer fills a hidden partial path next to the target and
renames it, so a reader never sees half a file. Partial paths of a killed process are removed by sweep().
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtloop.errors import unwritable

OLD = ".old-"


def json_text(record: Any) -> str:
    """Return a record as indented JSON that ends in a newline."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def json_line(record: Any) -> str:
    """Return a record as one line of JSON, with its newline."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if the file is missing or corrupt."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file of lines; skip truncated lines. Return [] if the file is missing."""
    records = []
    # Not splitlines, which also splits at U+2028, valid inside JSON strings.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`, flushed to disk.

    Raises:
        RunFailed: naming the file and the reason.
    """
    partial = partial_name(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a folder that is gone or read-only refuses this too
            partial.unlink()
        raise unwritable(path, error) from error


def write_json(path: Path, record: Any) -> None:
    """Replace a file by a record as indented JSON. Raises RunFailed as write_text does."""
    write_text(path, json_text(record))


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Replace a file by one line of JSON for each record. Raises RunFailed as write_text does."""
    write_text(path, "".join(map(json_line, records)))


def append_json_line(path: Path, record: Any) -> None:
    """Append a record to a file of JSON lines, flushed to disk, after ending a truncated line.

    Raises:
        OSError: if the file cannot be written.
    """
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def partial_name(target: Path) -> Path:
    """Return a hidden path next to `target`, to be written and renamed."""
    return target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a partial folder to fill; publish it as `target` on success, remove it on an error.

    Raises:
        OSError: if it cannot be created, flushed or renamed.
    """
    partial = partial_name(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_tree(partial)
        publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, target: Path) -> None:
    """Rename a folder that was flushed to disk to `target`, replacing an existing one.

    After a kill between the two renames, sweep() restores the old folder.
    """
    old = None
    if target.exists():
        old = target.with_name(f"{OLD}{target.name}-{uuid.uuid4().hex[:8]}")
        os.replace(target, old)
    os.replace(partial, target)
    sync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove partial files and folders of killed processes from a folder, and finish their renames."""
    for old in parent.glob(f"{OLD}*"):
        target = parent / old.name.removeprefix(OLD).rpartition("-")[0]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, target)
    for pattern in (".tmp-*", ".trash-*"):
        for path in parent.glob(pattern):
            if path.is_symlink() or path.is_file():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)


def discard(path: Path) -> None:
    """Rename and remove a folder, so that a kill leaves no half of it under its name."""
    trash = path.with_name(f".trash-{path.name}-{uuid.uuid4().hex[:8]}")
    os.replace(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def link(name: Path, target: Path) -> None:
    """Point the symbolic link `name` at the folder `target` next to it, atomically."""
    partial = partial_name(name)
    with contextlib.suppress(OSError):  # a file system without links, which are a convenience only
        partial.symlink_to(target.name)
        os.replace(partial, name)


def sync_tree(path: Path) -> None:
    """Flush a folder and everything in it to disk, each folder after its files."""
    for entry in sorted(path.rglob("*"), reverse=True):
        sync(entry)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Drop a flushed file from the page cache, so that it is next read from the disk."""
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
