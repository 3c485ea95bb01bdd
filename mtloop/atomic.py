"""Write files and folders atomically, and read JSON that a kill may have truncated.

Handles paths and bytes; must not know their content. A writer fills a hidden partial path next to the target and
renames it, so a reader never sees half a file. Partial paths of a killed process are removed by sweep().
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mtloop.errors import UserError, behind_link, first_line, unwritable

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


def read_record(path: Path, shape: Shape, *, remedy: str = "Restore the file, or remove it.") -> dict[str, Any]:
    """Read a JSON object of a shape; return {} if the file is missing.

    Raises:
        UserError: naming the file, and the line or the entry that is invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: invalid JSON ({error.msg}). {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}). {remedy}") from error
    if problem := problem_of(record, shape):
        raise UserError(f"{path}: {problem}. {remedy}")
    found: dict[str, Any] = record
    return found


# (path, line) of each warning that was printed: files are read repeatedly.
_warned: set[tuple[str, int]] = set()


def read_json_lines(
    path: Path, check: Callable[[Any], str] = lambda value: problem_of(value, {})
) -> list[dict[str, Any]]:
    """Read the JSON objects of a file of lines; return [] if the file is missing.

    Args:
        path: The file. Invalid lines are left out with a warning; the last line may be cut without one, since a kill
            leaves it so.
        check: Returns why a value is invalid, "" if it is valid, see checker; by default any object is valid.
    """
    records = []
    # Not splitlines, which also splits at U+2028, valid inside JSON strings.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        problem = ""
        try:
            record = json.loads(line)
            problem = check(record)
            if not problem:
                records.append(record)
        except (ValueError, RecursionError):
            problem = "invalid JSON" if line.strip() and number < len(lines) else ""
        if problem and (str(path), number) not in _warned:
            _warned.add((str(path), number))
            print(f"mtloop: warning: {path}:{number}: {problem}; the line is left out", file=sys.stderr)
    return records


# The shape of JSON values: int (a whole number of at least 0), float (a finite number), str, bool or None; (A, B) for
# one of several; [A] for a list; {str: A} for an object of any names; {"name": A, "other?": B} for an object with these
# entries, of which "other" may be missing, and any others.
Shape = Any
MAX_NUMBER = 1e300


def checker(shape: Shape) -> Callable[[Any], str]:
    """Return a function that says how a JSON value differs from a shape, "" if it does not."""
    return lambda value: problem_of(value, shape)


_NAMES = {int: "a whole number of at least 0", float: "a finite number", str: "text", bool: "true or false"}


def problem_of(value: Any, shape: Shape, name: str = "") -> str:
    """Return the entry in which a JSON value differs from a shape, and how; "" if it does not."""
    if isinstance(shape, tuple):
        problems = [problem_of(value, one, name) for one in shape]
        return "" if "" in problems else problems[0]
    if isinstance(shape, dict):
        return _problem_of_object(value, shape, name)
    if isinstance(shape, list):
        items = enumerate(value) if isinstance(value, list) else ()
        problems = [problem_of(item, shape[0], f"{name}[{number}]") for number, item in items]
        expected, is_valid = "a list", isinstance(value, list)
        if is_valid:
            return next(filter(None, problems), "")
    elif shape is None:
        expected, is_valid = "null", value is None
    elif shape in (int, float):
        is_number = type(value) is int or (type(value) is float and shape is float)
        expected = _NAMES[shape]
        is_valid = is_number and (-MAX_NUMBER if shape is float else 0) <= value <= MAX_NUMBER
    else:
        # Half a surrogate pair can be written in JSON, and nowhere else.
        is_half = isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)
        expected, is_valid = _NAMES[shape], type(value) is shape and not is_half
    return "" if is_valid else f"{name or 'the whole'}: expected {expected} (got {json.dumps(value)[:40]})"


def _problem_of_object(value: Any, shape: dict[Any, Shape], name: str) -> str:
    if not isinstance(value, dict):
        return f"{name or 'the whole'}: expected an object (got {json.dumps(value)[:40]})"
    prefix = f"{name}." if name else ""
    for key, of_key in shape.items():
        if key is str:
            problems = [problem_of(item, of_key, f"{prefix}{own}") for own, item in value.items()]
        elif key.removesuffix("?") in value:
            problems = [problem_of(value[key.removesuffix("?")], of_key, prefix + key.removesuffix("?"))]
        else:
            problems = [] if key.endswith("?") else [f"{prefix}{key} is missing"]
        if problem := next(filter(None, problems), ""):
            return problem
    return ""


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`, flushed to disk. Raises RunFailed as write_bytes does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by `content`, flushed to disk.

    Raises:
        RunFailed: naming the file and the reason.
    """
    partial = partial_name(path)
    try:
        with partial.open("wb") as file:
            _lock(file.fileno())
            file.write(content)
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


def hold(partial: Path) -> int:
    """Lock a partial file or folder against sweep_partials of other processes; return the descriptor to close.

    The lock ends with the process, however it ends.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    _lock(descriptor)
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; another process has it, or a file system without locks
        return False
    return True


def sweep_partials(target: Path) -> None:
    """Remove what killed processes left of `target`, and finish their rename; what is held stays."""
    for old in target.parent.glob(f"{OLD}{glob.escape(target.name)}-????????"):
        _finish_rename(old, target)
    for path in target.parent.glob(f".tmp-{glob.escape(target.name)}-????????"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if _lock(descriptor):
                    _remove(path)
            finally:
                os.close(descriptor)


def _finish_rename(old: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(old, target)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a partial folder to fill; publish it as `target` on success, remove it on an error.

    Where `target` is a link to a folder, that folder is replaced.

    Raises:
        OSError: if it cannot be created, flushed or renamed.
    """
    target = behind_link(target)
    sweep_partials(target)
    partial = partial_name(target)
    partial.mkdir(parents=True)
    descriptor = hold(partial)
    try:
        yield partial
        sync_tree(partial)
        publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


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
        _finish_rename(old, parent / old.name.removeprefix(OLD).rpartition("-")[0])
    for pattern in (".tmp-*", ".trash-*"):
        for path in parent.glob(pattern):
            _remove(path)


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
