"""Corrupt one file of a folder in one way."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

WAYS = ("flip", "cut", "empty", "delete", "replace", "join")
# Files that a library would read if they were there.
FOREIGN = (
    "model-00001-of-00002.safetensors", "z.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "adapter_config.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json", "training/scaler.pt",
)  # fmt: skip


def files_in(folder: Path) -> list[str]:
    """List the files below a folder, by relative path."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def corrupt(folder: Path, name: str, way: str, *, other: Path, seed: int = 0) -> None:
    """Corrupt a file of a checkpoint or of final/.

    Args:
        folder: The checkpoint.
        name: The file; for "join" it does not matter.
        way: One of WAYS: a byte is flipped, the second half cut off, all cut off, the file deleted, replaced by that of
            `other`, or joined by a foreign one.
        other: A checkpoint of another step.
        seed: Chooses the byte, and the foreign file.
    """
    file, choice = folder / name, random.Random(seed)
    if way == "join":
        foreign = folder / choice.choice(FOREIGN)
        if foreign.parent.is_dir() and not foreign.exists():
            foreign.write_bytes((other / "model.safetensors").read_bytes())
        return
    content = bytearray(file.read_bytes())
    if way == "replace" and (other / name).is_file():
        shutil.copyfile(other / name, file)
    elif way == "delete":
        file.unlink()
    elif way == "flip" and content:
        content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
        file.write_bytes(content)
    elif way in ("cut", "empty"):
        file.write_bytes(content[: len(content) // 2 if way == "cut" else 0])
