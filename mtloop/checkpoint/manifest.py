"""The manifest of a checkpoint: what it is of, and the size and sha256 of each of its files.

Knows files and hashes; must not know tensors, models or ranks. A checkpoint is sound when its manifest is
whole and every file that it names has the size and the hash that it gives. Plain copies (`cp -r`, rsync) stay sound.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mtloop.errors import UserError

# 1 had no manifest: training/state.json, and no hashes. 2 has this one.
FORMAT_VERSION = 2
MANIFEST_NAME = "training/manifest.json"
STATE_NAME_OF_FORMAT_1 = "training/state.json"
CHUNK_BYTES = 2**20


class Damaged(Exception):
    """A checkpoint is not as it was written; the text is the reason, in one line."""


class HashedFile:
    """A new file whose sha256 is taken while it is written, for whoever writes into a stream (torch.save, json)."""

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
        """Flush to disk, and return the file's entry in the manifest."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        return {"size": self._size, "sha256": self._hash.hexdigest()}


def hash_file(path: Path) -> dict[str, Any]:
    """Read a file through, and return its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def write_manifest(checkpoint: Path, record: dict[str, Any]) -> None:
    """Write the manifest, flushed to disk, with the hash of its own content: it is a file of the checkpoint as well.

    Args:
        checkpoint: The folder.
        record: JSON values; `files` maps each file's path within the checkpoint to its size and sha256.
    """
    whole = {"format_version": FORMAT_VERSION, **record}
    whole["sha256"] = _own_hash(whole)
    with (checkpoint / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(_text_of(whole))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself.

    A checkpoint of format 1 gives its step's record, without `files`.

    Raises:
        Damaged: when it cannot be read, or its content is not what was written.
        UserError: for the format of a newer version.
    """
    path = checkpoint / MANIFEST_NAME
    old_path = checkpoint / STATE_NAME_OF_FORMAT_1
    if not path.exists() and old_path.exists():
        path = old_path
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST_NAME} is missing") from None
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror or error})") from error
    except ValueError:
        raise Damaged(f"{path.name} is no JSON") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if path == old_path and version == 1:
        return {**record, **{name: record["state"].get(name) for name in ("step", "epoch", "cursor")}}
    if isinstance(version, int) and version > FORMAT_VERSION and record.get("sha256") == _own_hash(record):
        raise UserError(
            f"{checkpoint}: written by a newer mtloop (checkpoint format {version}, this one reads up to "
            f"{FORMAT_VERSION}); install that one, or give another --output_dir"
        )
    is_as_written = version == FORMAT_VERSION and text == _text_of(record)  # to the last space
    if not is_as_written or record.get("sha256") != _own_hash(record):
        raise Damaged(f"{path.name} has changed since it was written")
    return record


def check_sizes(checkpoint: Path, record: dict[str, Any]) -> None:
    """Compare the sizes of a checkpoint's files with its manifest, reading none of them.

    Raises:
        Damaged: naming the first file that is missing, shorter or longer.
    """
    for name, expected in record.get("files", {}).items():
        try:
            size = (checkpoint / name).stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror or error})") from error
        if size != expected["size"]:
            raise Damaged(f"{name} has {size:,} bytes and was written with {expected['size']:,}")


def check_files(checkpoint: Path) -> dict[str, Any]:
    """Read every file of a checkpoint and compare it with the manifest; return the manifest.

    Raises:
        Damaged: naming the first file that is missing, shorter or longer, or of another content.
        UserError: for the format of a newer version.
    """
    record = read_manifest(checkpoint)
    check_sizes(checkpoint, record)
    for name, expected in record.get("files", {}).items():
        try:
            found = hash_file(checkpoint / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror or error})") from error
        if found != expected:
            raise Damaged(f"{name} has another content than was written (sha256)")
    return record


def is_hashed(record: dict[str, Any]) -> bool:
    """Whether a checkpoint's files can be verified: those of format 1 cannot."""
    return "files" in record


def size_of(record: dict[str, Any]) -> int:
    """Bytes of all files of a checkpoint; 0 for one of format 1."""
    return sum(entry["size"] for entry in record.get("files", {}).values())


def _text_of(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _own_hash(record: dict[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
