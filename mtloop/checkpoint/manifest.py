"""Write, read and verify the manifest of a checkpoint or of final/: its identity, and size and sha256 of each file.

Handles files and hashes; must not know tensors, models or ranks. A folder is valid if its manifest is unchanged and
every listed file has the listed size and hash. Plain copies (`cp -r`, rsync) stay valid. A file that the manifest does
not list is not part of the checkpoint and never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtloop.atomic import Shape, problem_of, read_json, write_json
from mtloop.errors import RunFailed, UserError, first_line
from mtloop.run_folder import step_named

FORMAT_VERSION = 2
MANIFEST_NAME = "training/manifest.json"  # of a checkpoint
FINAL_MANIFEST_NAME = "mtloop_manifest.json"  # of final/, which has no training/
CHUNK_BYTES = 2**20
SHAPE: Shape = {
    "step?": int, "epoch?": int, "cursor?": int, "files": {str: {"size": int, "sha256": str}},
}  # fmt: skip
# A file that is younger may change again without another time stamp.
SETTLED_S = 2.0
MAX_REMEMBERED = 10_000


class CorruptCheckpoint(Exception):
    """Raised for a checkpoint that differs from what was written; the text is the reason, in one line."""


class HashedFile:
    """A new file that is hashed while it is written; a stream for torch.save."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> dict[str, Any]:
        """Flush to disk, close, and return the entry of the file in the manifest."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        return {"size": self._size, "sha256": self._hash.hexdigest()}


def hash_file(path: Path) -> dict[str, Any]:
    """Read a file and return its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries in the manifest of all files below a folder, by path."""
    return {name: hash_file(folder / name) for name in _names_of_files(folder)}


def _names_of_files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def manifest_path(folder: Path) -> Path:
    """Return the place of the manifest of a checkpoint, or of final/ or a copy of it."""
    return folder / (MANIFEST_NAME if is_checkpoint(folder) else FINAL_MANIFEST_NAME)


def is_checkpoint(folder: Path) -> bool:
    """Return True for a checkpoint, also for one that has lost files; False for final/ and other model folders."""
    return (folder / "training").is_dir() or _is_of_run(folder)


def _is_of_run(folder: Path) -> bool:
    return folder.parent.name == "checkpoints" and step_named(folder.name) is not None


def write_manifest(checkpoint: Path, record: dict[str, Any]) -> None:
    """Write the manifest with the hash of its content, flushed to disk.

    Args:
        checkpoint: The folder of a checkpoint, or final/.
        record: JSON values; `files` maps the path of each file within the checkpoint to its size and sha256.
    """
    whole = {"format_version": FORMAT_VERSION, **record}
    whole["sha256"] = _own_hash(whole)
    with manifest_path(checkpoint).open("w", encoding="utf-8") as file:
        file.write(_text_of(whole))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint or of final/.

    Raises:
        CorruptCheckpoint: if it cannot be read or has changed since it was written.
        UserError: for a checkpoint of another format.
    """
    path = manifest_path(checkpoint)
    name = path.relative_to(checkpoint)
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        if (checkpoint / "training" / "state.json").exists():  # of format 1, which had no manifest
            raise UserError(f"{checkpoint}: unsupported format (got 1). Give another --output_dir.") from None
        raise CorruptCheckpoint(f"{name} is missing") from None
    except OSError as error:
        raise CorruptCheckpoint(f"{name} cannot be read ({first_line(error)})") from error
    except (ValueError, RecursionError):
        raise CorruptCheckpoint(f"{name} is not valid JSON") from None
    is_hashed = isinstance(record, dict) and record.get("sha256") == _own_hash(record)
    if is_hashed and isinstance(version := record.get("format_version"), int) and version > FORMAT_VERSION:
        raise UserError(
            f"{checkpoint}: written by a newer version of mtloop (checkpoint format {version}, this "
            f"version reads {FORMAT_VERSION}). Install that version, or give another --output_dir."
        )
    if not is_hashed or text != _text_of(record):  # compared to the last space
        raise CorruptCheckpoint(f"{name} has changed since it was written")
    if problem := _problem_of(record, checkpoint):
        raise CorruptCheckpoint(f"{name}: {problem}")
    return record


def _problem_of(record: dict[str, Any], checkpoint: Path) -> str:
    """Return what makes a manifest invalid that is as it was written, such as a path outside of its folder."""
    if problem := problem_of(record, SHAPE):
        return problem
    if _is_of_run(checkpoint) and checkpoint.name != f"step_{record.get('step')}":
        return f"of step {record.get('step')}, not of {checkpoint.name}"
    outside = [name for name in record["files"] if Path(name).is_absolute() or ".." in Path(name).parts]
    return f"files: {outside[0]!r} is outside of the folder" if outside else ""


def find_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, {} if it cannot be read."""
    try:
        return read_manifest(checkpoint)
    except (CorruptCheckpoint, UserError):
        return {}


def check_sizes(checkpoint: Path, record: dict[str, Any]) -> None:
    """Compare the sizes of the files of a checkpoint with its manifest, without reading them.

    Raises:
        CorruptCheckpoint: naming the first file that is missing or has another size.
    """
    for name, expected in record["files"].items():
        try:
            size = (checkpoint / name).stat().st_size
        except FileNotFoundError:
            raise CorruptCheckpoint(f"{name} is missing") from None
        except OSError as error:
            raise CorruptCheckpoint(f"{name} cannot be read ({first_line(error)})") from error
        if size != expected["size"]:
            raise CorruptCheckpoint(f"{name} has {size:,} bytes, expected {expected['size']:,}")


def listed_files(folder: Path, pattern: str) -> list[Path]:
    """List the files of a folder that match: of a checkpoint or final/ those in its manifest, of another folder all."""
    listed = find_manifest(folder).get("files")
    found = sorted(folder.glob(pattern))
    return [file for file in found if listed is None or file.relative_to(folder).as_posix() in listed]


def unlisted_files(checkpoint: Path, record: dict[str, Any]) -> list[str]:
    """List the files of a checkpoint that its manifest does not list."""
    own = manifest_path(checkpoint).relative_to(checkpoint).as_posix()
    return [name for name in _names_of_files(checkpoint) if name != own and name not in record["files"]]


def check_files(checkpoint: Path, *, hash_file: Callable[[Path], dict[str, Any]] = hash_file) -> dict[str, Any]:
    """Compare every file of a checkpoint with the manifest, byte by byte; return the manifest.

    Args:
        checkpoint: The folder of a checkpoint, or final/.
        hash_file: Returns the entry of a file; that of a HashMemory reads unchanged files once only.

    Raises:
        CorruptCheckpoint: naming the first file that differs.
        UserError: for a checkpoint of another format.
    """
    record = read_manifest(checkpoint)
    check_sizes(checkpoint, record)
    for name, expected in record["files"].items():
        try:
            found = hash_file(checkpoint / name)
        except OSError as error:
            raise CorruptCheckpoint(f"{name} cannot be read ({first_line(error)})") from error
        if found != expected:
            raise CorruptCheckpoint(f"{name} has changed since it was written (sha256 differs)")
    return record


class HashMemory:
    """Hashes of files, remembered between processes for the state of a file: device, inode, size and times.

    Args:
        path: The file that holds them; it need not exist, and may be read-only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = read_json(path)
        self._num_known = len(self._known)

    def hash_file(self, path: Path) -> dict[str, Any]:
        """Return the entry of a file in the manifest; read the file unless its state is known."""
        before = _state_of(path)
        size, sha256 = path.stat().st_size, self._known.get(before)
        if isinstance(sha256, str):
            return {"size": size, "sha256": sha256}
        entry = hash_file(path)
        if before == _state_of(path) and time.time() - path.stat().st_ctime > SETTLED_S:
            self._known[before] = entry["sha256"]
        return entry

    def save(self) -> None:
        """Write what is new; a folder that cannot be written only costs the next process time."""
        if len(self._known) == self._num_known:
            return
        newest = dict(list(self._known.items())[-MAX_REMEMBERED:])
        with contextlib.suppress(OSError, RunFailed):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, newest)


def check_files_once(checkpoint: Path) -> dict[str, Any]:
    """Do as check_files, but read a file whose state was verified before not again."""
    from huggingface_hub import constants

    memory = HashMemory(Path(constants.HF_HOME) / "mtloop" / "hashes.json")
    record = check_files(checkpoint, hash_file=memory.hash_file)
    memory.save()
    return record


def _state_of(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _text_of(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _own_hash(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
