"""Write, read and verify the manifest of a checkpoint: its identity, and the size and sha256 of each of its files.

Handles files and hashes; must not know tensors, models or ranks. A checkpoint is valid if its manifest is unchanged
and every listed file has the listed size and hash. Plain copies (`cp -r`, rsync) stay valid.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mtloop.errors import UserError, first_line

FORMAT_VERSION = 2
MANIFEST_NAME = "training/manifest.json"
CHUNK_BYTES = 2**20


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
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files}


def write_manifest(checkpoint: Path, record: dict[str, Any]) -> None:
    """Write the manifest with the hash of its content, flushed to disk.

    Args:
        checkpoint: The folder.
        record: JSON values; `files` maps the path of each file within the checkpoint to its size and sha256.
    """
    whole = {"format_version": FORMAT_VERSION, **record}
    whole["sha256"] = _own_hash(whole)
    with (checkpoint / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(_text_of(whole))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint.

    Raises:
        CorruptCheckpoint: if it cannot be read or has changed since it was written.
        UserError: for a checkpoint of another format.
    """
    try:
        text = (checkpoint / MANIFEST_NAME).read_text(encoding="utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        if (checkpoint / "training" / "state.json").exists():  # of format 1, which had no manifest
            raise UserError(f"{checkpoint}: unsupported format (got 1). Give another --output_dir.") from None
        raise CorruptCheckpoint(f"{MANIFEST_NAME} is missing") from None
    except OSError as error:
        raise CorruptCheckpoint(f"{MANIFEST_NAME} cannot be read ({first_line(error)})") from error
    except ValueError:
        raise CorruptCheckpoint(f"{MANIFEST_NAME} is not valid JSON") from None
    is_hashed = isinstance(record, dict) and record.get("sha256") == _own_hash(record)
    if is_hashed and record["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{checkpoint}: written by a newer version of mtloop (checkpoint format {record['format_version']}, this "
            f"version reads {FORMAT_VERSION}). Install that version, or give another --output_dir."
        )
    if not is_hashed or text != _text_of(record):  # compared to the last space
        raise CorruptCheckpoint(f"{MANIFEST_NAME} has changed since it was written")
    return record


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


def check_files(checkpoint: Path) -> dict[str, Any]:
    """Compare every file of a checkpoint with the manifest, byte by byte; return the manifest.

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


def _text_of(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _own_hash(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
