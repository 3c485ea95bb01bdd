"""What of a run goes to the Hub, piece by piece: its epochs and its end. And the journal of what has arrived.

A part is known by the run's id and a manifest's hash, which stand in its commit's description: however often a push
was cut off between the server's yes and the journal's line, the part is found there and not pushed twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from mtloop.atomic import append_json_line, read_json_lines
from mtloop.checkpoint.listing import epoch_of, list_checkpoints
from mtloop.checkpoint.manifest import Damaged, read_manifest
from mtloop.errors import UserError
from mtloop.hub.upload import is_epoch_tag
from mtloop.run_folder import RunFolder

MAIN_BRANCH = "main"
FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a run is pushed to.

    Attributes:
        repo_id: owner/name.
        revision: The branch.
        license: For the card; None where neither the user nor the base model states one.
    """

    repo_id: str
    revision: str = MAIN_BRANCH
    license: str | None = None

    @property
    def url(self) -> str:
        """Return the address of the branch."""
        branch = "" if self.revision == MAIN_BRANCH else f"/tree/{self.revision}"
        return f"{constants.ENDPOINT}/{self.repo_id}{branch}"

    def tag_of(self, epoch: int) -> str:
        """Name an epoch's tag: epoch-N, on another branch than main BRANCH-epoch-N (tags are the repository's)."""
        return f"{self.tag_prefix}{epoch}"

    @property
    def tag_prefix(self) -> str:
        return "epoch-" if self.revision == MAIN_BRANCH else f"{self.revision}-epoch-"

    def owns_tag(self, tag: str) -> bool:
        """Whether a tag is named as an epoch of this target."""
        return is_epoch_tag(tag, self.tag_prefix)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An epoch of a run, or its end.

    Attributes:
        name: "epoch N" or "final".
        message: The commit's title.
        folder: What is uploaded: a checkpoint, or final/.
        step: The update that the weights are of.
        epoch: Which epoch the checkpoint ends; None for the end of the run.
        run_id: Of the run.
        manifest: sha256 of the checkpoint's manifest, for final/ of the checkpoint that it was made of.
        average_of: The updates whose weights were averaged; empty where the weights are those of `step`.
    """

    name: str
    message: str
    folder: Path
    step: int
    epoch: int | None
    run_id: str
    manifest: str
    average_of: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.run_id, self.name, self.manifest)

    def describe(self) -> str:
        """Write the commit's description: lines that read_key of upload.py finds the part by."""
        return f"Mtloop-Run: {self.run_id}\nMtloop-Part: {self.name}\nMtloop-Manifest: {self.manifest}"


def epoch_part(folder: RunFolder, checkpoint: Path) -> Part | None:
    """Describe the push of a checkpoint; None where it does not end an epoch, or cannot be read."""
    epoch = epoch_of(checkpoint)
    if epoch is None:
        return None
    try:
        record = read_manifest(checkpoint)
    except (Damaged, UserError):
        return None
    return Part(
        name=f"epoch {epoch}",
        message=f"Training in progress, epoch {epoch}",
        folder=checkpoint,
        step=record["step"],
        epoch=epoch,
        run_id=folder.run_record["run_id"],
        manifest=manifest_hash(record),
    )


def manifest_hash(record: dict[str, Any]) -> str:
    """The hash by which a checkpoint is known; one of format 1 has none and is known by its step."""
    return str(record.get("sha256", f"format 1, step {record['step']}"))


def loss_of(part: Part) -> str:
    """Say why a part can never be pushed: it is gone, or another by now; "" while it is there."""
    if part.epoch is None:
        return "" if part.folder.is_dir() else f"{part.folder} is gone"
    try:
        is_same = manifest_hash(read_manifest(part.folder)) == part.manifest
    except (Damaged, UserError) as error:
        return f"{part.folder}: {error}"
    return "" if is_same else f"{part.folder} is another by now"


def final_part(folder: RunFolder) -> Part | None:
    """Describe the push that completes a run; None before it has a final/."""
    record = folder.run_record
    final = record.get("final")
    if final is None or not folder.final_dir.is_dir():
        return None
    return Part(
        name=FINAL,
        message="Training complete",
        folder=folder.final_dir,
        step=final["step"],
        epoch=None,
        run_id=record["run_id"],
        manifest=final["manifest"],
        average_of=tuple(final.get("average_of", ())),
    )


def epochs_to_push(folder: RunFolder, target: Target) -> list[Part]:
    """List the epochs whose checkpoints are here and which the journal lacks, oldest first.

    Those before the newest one that has arrived are left out: pushed now they would take its place on the branch.
    """
    arrived = pushed(folder, target)
    parts = [part for _, path in list_checkpoints(folder) if (part := epoch_part(folder, path)) is not None]
    newest = max((step for _, _, _, step in arrived), default=-1)
    keys = {key[:3] for key in arrived}
    return [part for part in parts if part.key not in keys and part.step > newest]


def pushed(folder: RunFolder, target: Target) -> set[tuple[str, str, str, int]]:
    """Read from the journal what of this run has reached the target: run id, name, manifest, step."""
    return {
        (line["run_id"], line["part"], line["manifest"], line["step"])
        for line in read_json_lines(folder.push_path)
        if line.get("repo_id") == target.repo_id
        and line.get("revision") == target.revision
        and line.get("run_id") == folder.run_record["run_id"]
    }


def record_push(folder: RunFolder, part: Part, target: Target, *, commit: str) -> None:
    """Append a line to the journal, flushed to disk. Raises OSError."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "part": part.name,
        "step": part.step,
        "checkpoint": part.folder.name,
        "run_id": part.run_id,
        "manifest": part.manifest,
        "repo_id": target.repo_id,
        "revision": target.revision,
        "commit": commit,
    }
    append_json_line(folder.push_path, line)
