"""Folders that appear and disappear in one rename, whenever the process is killed. Must not know what is in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

OLD = ".old-"


def partial_name(target: Path) -> Path:
    """A name beside `target` to write under: hidden, and swept at the next start if this process dies."""
    return target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")


def publish(partial: Path, target: Path) -> None:
    """Rename a whole folder to its name; what stood there goes. The folder's own files are flushed already.

    A kill between the two renames leaves no folder under the name: recover() then brings the old one back.
    """
    old = None
    if target.exists():
        old = target.with_name(f"{OLD}{target.name}-{uuid.uuid4().hex[:8]}")
        os.replace(target, old)
    os.replace(partial, target)
    sync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def recover(parent: Path) -> None:
    """Finish what a kill in the middle of publish() left: the old folder returns where there is no new one."""
    for old in parent.glob(f"{OLD}*"):
        target = parent / old.name.removeprefix(OLD).rpartition("-")[0]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, target)


def discard(path: Path) -> None:
    """Remove a folder, out of sight first: a kill in between must not leave half of it under its name."""
    trash = path.with_name(f".trash-{path.name}-{uuid.uuid4().hex[:8]}")
    os.replace(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def link(name: Path, target: Path) -> None:
    """Point the link `name` at the folder `target` beside it, in one rename."""
    beside = partial_name(name)
    with contextlib.suppress(OSError):  # a file system without links: the names are a convenience
        beside.symlink_to(target.name)
        os.replace(beside, name)


def for_each_file(path: Path, work: Callable[[str, Path], None]) -> None:
    """Call work(path within the folder, path) for every file under a folder, in the order of the names."""
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        work(file.relative_to(path).as_posix(), file)


def sync_tree(path: Path) -> None:
    """Flush a folder and all in it to disk, each folder after its files: the names in it are its content."""
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
    """Drop a flushed file from the page cache, so that the next reader sees what the disk holds."""
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
