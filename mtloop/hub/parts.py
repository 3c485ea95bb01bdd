"""List the parts of a run that go to the Hub, its epochs and its end, the files of each, and those already pushed.

The description of a part's commit holds the run's id and the manifest's hash. A push that was interrupted between the
commit and the line in the journal is found by them, and not made twice. The journal alone says what was pushed once; a
branch that was deleted or set back since lacks the commit of a line, which then counts for nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from mtloop.atomic import append_json_line, json_line
from mtloop.checkpoint.listing import epoch_in, final_record, list_checkpoints
from mtloop.checkpoint.manifest import MANIFEST_NAME, CorruptCheckpoint, find_manifest, read_manifest
from mtloop.errors import UserError
from mtloop.hub.client import without_token
from mtloop.hub.upload import FINAL, Commits, is_epoch_tag, is_overtaken, order_of
from mtloop.run_folder import RunFolder

MAIN_BRANCH = "main"
STATUS_NOT_PUSHED = 3  # of train.py and of push


@dataclass(frozen=True, kw_only=True)
class Target:
    """The repository and branch of a run's pushes.

    Attributes:
        repo_id: owner/name.
        revision: The branch.
        license: For the card; None if neither the user nor the base model states one.
    """

    repo_id: str
    revision: str = MAIN_BRANCH
    license: str | None = None

    @property
    def url(self) -> str:
        """Return the address of the branch."""
        branch = "" if self.revision == MAIN_BRANCH else f"/tree/{self.revision}"
        return f"{without_token(constants.ENDPOINT)}/{self.repo_id}{branch}"

    def tag_of(self, epoch: int) -> str:
        """Return an epoch's tag: epoch-N, or BRANCH-epoch-N on other branches than main (tags have no branch)."""
        return f"{self.tag_prefix}{epoch}"

    @property
    def tag_prefix(self) -> str:
        return "epoch-" if self.revision == MAIN_BRANCH else f"{self.revision}-epoch-"

    def owns_tag(self, tag: str) -> bool:
        """Return True if the tag has the name of an epoch of this target."""
        return is_epoch_tag(tag, self.tag_prefix)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An epoch of a run, or its end.

    Attributes:
        name: "epoch N" or "final".
        message: The commit's title.
        folder: The folder to upload: a checkpoint, or final/.
        step: The step of the weights.
        epoch: The epoch that the checkpoint ends; None for the end of the run.
        run_id: Of the run.
        manifest: sha256 of the manifest of the checkpoint, or of that which final/ was made from.
        average_of: The steps whose weights were averaged; empty for the weights of `step` alone.
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
        """Return the commit's description, from which read_key of upload.py reads the key."""
        return f"Mtloop-Run: {self.run_id}\nMtloop-Part: {self.name}\nMtloop-Manifest: {self.manifest}"


def epoch_part(folder: RunFolder, checkpoint: Path) -> Part | None:
    """Return the part of a checkpoint; None if it does not end an epoch, or cannot be read."""
    record = find_manifest(checkpoint)
    epoch = epoch_in(record)
    if epoch is None:
        return None
    return Part(
        name=f"epoch {epoch}",
        message=f"Training in progress, epoch {epoch}",
        folder=checkpoint,
        step=record["step"],
        epoch=epoch,
        run_id=folder.run_record["run_id"],
        manifest=record["sha256"],
    )


def epoch_parts(folder: RunFolder) -> list[Part]:
    """Return the parts of all checkpoints that end an epoch, oldest first."""
    return [part for _, path in list_checkpoints(folder) if (part := epoch_part(folder, path)) is not None]


def loss_of(part: Part) -> str:
    """Return why a part can no longer be pushed, missing or changed; "" if it can."""
    if part.epoch is None:
        return "" if part.folder.is_dir() else f"{part.folder} no longer exists"
    try:
        is_same = read_manifest(part.folder)["sha256"] == part.manifest
    except (CorruptCheckpoint, UserError) as error:
        return f"{part.folder}: {error}"
    return "" if is_same else f"{part.folder} has been saved again with other content"


def final_part(folder: RunFolder) -> Part | None:
    """Return the part that completes a run; None before it has a final/.

    Raises:
        UserError: for a final/ with a corrupt manifest.
    """
    if not folder.final_dir.is_dir():
        return None
    try:
        final = final_record(folder)
    except CorruptCheckpoint as error:
        raise UserError(f"{folder.final_dir}: corrupt ({error}). Start the run again: it makes it again.") from error
    return Part(
        name=FINAL,
        message="Training complete",
        folder=folder.final_dir,
        step=final["step"],
        epoch=None,
        run_id=folder.run_record["run_id"],
        manifest=final["manifest"],
        average_of=tuple(final.get("average_of", ())),
    )


def manifest_of(folder: RunFolder, part: Part) -> dict[str, Any]:
    """Read the manifest of the checkpoint of a part's weights; {} if the checkpoint was removed."""
    return find_manifest(part.folder if part.epoch is not None else folder.checkpoints_dir / f"step_{part.step}")


def lines_until(folder: RunFolder, part: Part) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl up to an epoch's end; all of them for the end of the run."""
    return folder.metrics.lines(until=None if part.epoch is None else part.step)


def files_of(folder: RunFolder, part: Part, *, with_training: bool) -> dict[str, dict[str, Any]]:
    """List the files of a push, except the card.

    Args:
        folder: The run folder.
        part: The part to push.
        with_training: Whether an epoch's optimizer, and all else that a resume needs, goes too.

    Returns:
        Path in the repository -> {"path": local file, "sha256": as it was saved, or None} or {"text": content}.
    """
    saved = manifest_of(folder, part) if part.epoch is not None else final_record(folder)
    hashes = {name: entry["sha256"] for name, entry in saved.get("files", {}).items()}
    names = {*hashes, MANIFEST_NAME} if part.epoch is not None else set(hashes)
    if not names:  # final/ of an earlier version
        names = {file.relative_to(part.folder).as_posix() for file in part.folder.rglob("*") if file.is_file()}
    if not with_training or part.epoch is None:
        names = {name for name in names if not _is_for_resume(name)}
    files: dict[str, dict[str, Any]] = {
        name: {"path": str(part.folder / name), "sha256": hashes.get(name)} for name in sorted(names)
    }
    files["metrics.jsonl"] = {"text": "".join(map(json_line, lines_until(folder, part)))}
    if has_curves(folder, part):
        files[folder.curves_path.name] = {"path": str(folder.curves_path), "sha256": None}
    return files


def has_curves(folder: RunFolder, part: Part) -> bool:
    """Return True if curves.png is pushed with the part: it shows the whole run, and is drawn at its end."""
    return part.epoch is None and folder.curves_path.is_file()


def _is_for_resume(name: str) -> bool:
    return name.startswith("training/") or name == "config.yaml"


def pushed(
    folder: RunFolder, target: Target, *, gone: Collection[str] = ()
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the journal's line of each part of this run, by key, that the target has.

    Args:
        folder: The run folder.
        target: The repository and branch.
        gone: Ids of commits that the branch no longer has, of gone_commits; none without asking the Hub.
    """
    lines = (line for line in _lines(folder, target) if line["commit"] not in gone)
    return {(line["run_id"], line["part"], line["manifest"]): line for line in lines}


def _lines(folder: RunFolder, target: Target) -> list[dict[str, Any]]:
    own = (target.repo_id, target.revision, folder.run_record["run_id"])
    return [line for line in folder.journal if (line["repo_id"], line["revision"], line["run_id"]) == own]


def commits_of(folder: RunFolder, run_id: str) -> set[str]:
    """Return the ids of a run's commits in the journal, whether their branch has them or not."""
    return {line["commit"] for line in folder.journal if line["run_id"] == run_id}


def gone_commits(folder: RunFolder, target: Target, commits: Commits) -> frozenset[str]:
    """Return the ids of the commits in the journal that no longer count, given those of the branch.

    The branch lacks them; or it has the run's last part, but an earlier one was pushed after it.
    """
    lines = _lines(folder, target)
    there = [line for line in lines if line["commit"] in commits]
    last = max((line["part"] for line in there), key=order_of, default="")
    if is_overtaken((folder.run_record["run_id"], last), commits):
        there = [line for line in there if line["part"] != last]
    return frozenset(line["commit"] for line in lines) - {line["commit"] for line in there}


def absent_epochs(folder: RunFolder, target: Target, commits: Commits) -> list[int]:
    """List the epochs that were trained or pushed, and have neither a commit on the branch nor a checkpoint."""
    run_id = folder.run_record["run_id"]
    trained = [line.get("epoch") for line in folder.metrics.lines()]
    known = {int(epoch) for epoch in trained if isinstance(epoch, (int, float)) and float(epoch).is_integer()}
    known |= {int(number) for line in _lines(folder, target) if math.isfinite(number := order_of(line["part"]))}
    there = {order_of(key[1]) for key in commits.values() if key[:1] == (run_id,)}
    here = {part.epoch for part in epoch_parts(folder)}
    return sorted(epoch for epoch in known if epoch > 0 and epoch not in there and epoch not in here)


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


def missing_parts(
    folder: RunFolder,
    target: Target,
    *,
    with_epochs: bool,
    before_step: int | None = None,
    gone: Collection[str] = (),
) -> list[Part]:
    """List what is missing, oldest first: epochs that have a checkpoint, the end of a finished run.

    Epochs that were never pushed and are older than the newest one there are omitted: pushed now, they would replace
    it on the branch. The last part follows once more after those that the branch has lost.

    Args:
        folder: The run folder.
        target: The repository and branch.
        with_epochs: False for the end alone.
        before_step: The step from which epochs, and the end, are omitted; None for all.
        gone: Ids of commits that the branch no longer has; none for what the journal says.
    """
    arrived = pushed(folder, target, gone=gone)
    lost = pushed(folder, target).keys() - arrived.keys()
    newest = max((line["step"] for line in arrived.values()), default=-1)
    parts = epoch_parts(folder) if with_epochs else []
    if before_step is not None:
        parts = [part for part in parts if part.step < before_step]
    elif folder.is_finished and (final := final_part(folder)) is not None:
        parts.append(final)
    missing = [
        part
        for part in parts
        if part.key not in arrived and (part.epoch is None or part.step > newest or part.key in lost)
    ]
    if missing and missing[-1] is not parts[-1]:
        missing.append(parts[-1])
    return missing


def note_pushed(folder: RunFolder, target: Target, *, with_epochs: bool, gone: Collection[str] = ()) -> None:
    """Set the exit status in status.json from 3 to 0 once all parts of a finished run are pushed."""
    status = folder.status
    was_incomplete = status.get("exit_status") == STATUS_NOT_PUSHED and folder.is_finished
    if was_incomplete and not missing_parts(folder, target, with_epochs=with_epochs, gone=gone):
        message = f"trained {status['step']:,} updates; all is pushed to {target.repo_id}"
        folder.write_status("finished", exit_status=0, message=message, step=status["step"])
