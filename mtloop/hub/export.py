"""Which files a push holds: those of a checkpoint or of final/, the card, and the metrics so far."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mtloop.atomic import json_line
from mtloop.checkpoint.manifest import Damaged, read_manifest
from mtloop.errors import UserError
from mtloop.hub.card import write_card
from mtloop.hub.facts import collect, lines_until
from mtloop.hub.parts import Part, Target
from mtloop.run_folder import RunFolder

# The card and the metrics are made anew for each push.
MADE = ("README.md", "metrics.jsonl")
CONFIG_NAME = "config.yaml"


def files_of(folder: RunFolder, part: Part, target: Target, *, with_training: bool) -> dict[str, dict[str, Any]]:
    """List the files of a push.

    Args:
        folder: The run folder.
        part: What is pushed.
        target: Where; for the card.
        with_training: Whether the optimizer and all else that a resume needs goes too, for an epoch.

    Returns:
        Path in the repository -> {"path": local file, "sha256": as it was saved, or None} or {"text": content}.
    """
    checkpoint = part.folder if part.epoch is not None else folder.checkpoints_dir / f"step_{part.step}"
    record: dict[str, Any] = {}
    with contextlib.suppress(Damaged, UserError):  # final/ outlives its checkpoint
        record = read_manifest(checkpoint)
    saved = folder.run_record["final"] if part.average_of else record
    hashes = {name: entry["sha256"] for name, entry in saved.get("files", {}).items()}
    files: dict[str, dict[str, Any]] = {
        name: {"path": str(part.folder / name), "sha256": hashes.get(name)}
        for name in _names(part.folder)
        if (with_training and part.epoch is not None) or not (name.startswith("training/") or name == CONFIG_NAME)
    }
    for name in hashes:  # one that is gone is told by the push
        if name not in files and not name.startswith("training/") and name != CONFIG_NAME:
            files[name] = {"path": str(part.folder / name), "sha256": hashes[name]}
    text = "".join(map(json_line, lines_until(folder, part)))
    files["metrics.jsonl"] = {"text": text}
    files["README.md"] = {"text": write_card(collect(folder, part, target, record=record))}
    return files


def _names(path: Path) -> list[str]:
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return sorted(name for name in names if name not in MADE)
