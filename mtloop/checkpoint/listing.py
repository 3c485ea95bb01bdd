"""List, find and choose the checkpoints of a run. Main only; must not know tensors."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtloop.atomic import discard, link
from mtloop.checkpoint.manifest import (
    CorruptCheckpoint,
    check_files,
    check_files_once,
    find_manifest,
    is_checkpoint,
    manifest_path,
    read_manifest,
    unlisted_files,
)
from mtloop.errors import UserError
from mtloop.run_folder import RunFolder, step_named

NEWEST = (None, "latest", "True", "true")
HUB = "hub:"


def list_checkpoints(folder: RunFolder) -> list[tuple[int, Path]]:
    """List the published checkpoints by step number, ascending; file times are not used, since clocks change."""
    found = [
        (step, path)
        for path in folder.checkpoints_dir.glob("step_*")
        if (step := step_named(path.name)) is not None and path.is_dir()
    ]
    return sorted(found)


def find_checkpoint(folder: RunFolder, asked: str | None) -> Path | None:
    """Find the checkpoint that --resume_from_checkpoint names, without verifying it.

    Args:
        folder: The run folder.
        asked: latest, best, epoch_N (1-based), step_N, a path, hub:NAME (downloaded already: the newest), or None for
            the newest if there is one.

    Raises:
        UserError: if it does not exist, with the existing ones.
    """
    checkpoints = list_checkpoints(folder)
    if asked is not None and asked.startswith(HUB):
        asked = None
    if asked in NEWEST:
        if checkpoints:
            return checkpoints[-1][1]
        if asked is None:
            return None
    assert asked is not None or not checkpoints
    by_name = names_of(folder)
    if asked in by_name:
        return by_name[asked]
    if asked is not None and (Path(asked) / "training").is_dir():
        return Path(asked)
    existing = ", ".join(sorted(by_name)) or "none"
    raise UserError(
        f"--resume_from_checkpoint: no such checkpoint in {folder.checkpoints_dir} (got {asked}). "
        f"Existing checkpoints: {existing}."
    )


def names_of(folder: RunFolder) -> dict[str, Path]:
    """Map the names of checkpoints to their paths: step_N, epoch_N (1-based), best."""
    checkpoints = list_checkpoints(folder)
    by_name = {path.name: path for _, path in checkpoints}
    for _, path in checkpoints:
        if epoch := epoch_of(path):
            by_name[f"epoch_{epoch}"] = path
    best = folder.checkpoints_dir / "best"
    if best.is_dir():
        by_name["best"] = best.resolve()
    return by_name


def choose_checkpoint(folder: RunFolder, asked: str | None, say: Callable[[str], None]) -> Path | None:
    """Choose the checkpoint to resume from: the one that is named, otherwise the newest valid one.

    Args:
        folder: The run folder.
        asked: As in find_checkpoint.
        say: Called with a line for each corrupt checkpoint that is skipped.

    Returns:
        None if the folder has no valid checkpoint: training starts from the beginning.

    Raises:
        UserError: if the named checkpoint is missing or corrupt, or one has another format.
    """
    path = find_checkpoint(folder, asked)
    if path is None:
        return None
    if asked not in NEWEST and not asked.startswith(HUB):
        if reason := find_corruption(path):
            others = [other for _, other in list_checkpoints(folder) if other != path]
            valid = ", ".join(other.name for other in others if not find_corruption(other)) or "none"
            raise UserError(f"--resume_from_checkpoint: {path} is corrupt ({reason}). Valid checkpoints: {valid}.")
        return path
    for _, path in reversed(list_checkpoints(folder)):
        reason = find_corruption(path)
        if not reason:
            return path
        say(f"checkpoint {path} is corrupt ({reason}); using the previous one")
    say("no valid checkpoint is left; training starts from the beginning")
    return None


def find_corruption(path: Path) -> str:
    """Read all files of a checkpoint; return the reason why it is corrupt, "" for a valid one."""
    try:
        check_files(path)
    except CorruptCheckpoint as error:
        return str(error)
    return ""


def epoch_of(path: Path) -> int | None:
    """Return the epoch that a checkpoint ends (1-based); None within an epoch, before the first, or if unreadable."""
    return epoch_in(find_manifest(path))


def epoch_in(record: dict[str, Any]) -> int | None:
    """Return the epoch that the checkpoint of a manifest ends, as epoch_of."""
    return (record["epoch"] or None) if record and record["cursor"] == 0 else None


def epoch_ends(folder: RunFolder, *, end_step: int | None = None) -> list[Path]:
    """List the checkpoints that end an epoch, by step; that of `end_step` always counts as one."""
    return [path for step, path in list_checkpoints(folder) if step == end_step or epoch_of(path)]


def set_aside(folder: RunFolder, path: Path) -> None:
    """Rename a corrupt checkpoint to damaged_step_N: no resume reads it, and nothing is lost."""
    aside = path.with_name(f"damaged_{path.name}")
    if aside.exists():
        discard(aside)
    os.replace(path, aside)


def link_names(folder: RunFolder, **steps: int) -> None:
    """Point checkpoints/latest and checkpoints/best at the checkpoints of these steps, if they exist."""
    for name, step in steps.items():
        target = folder.checkpoints_dir / f"step_{step}"
        if target.is_dir():
            link(folder.checkpoints_dir / name, target)


def open_folder(name: str, *, no_verify: bool = False) -> str:
    """Return the folder to load, as model_folder, compared with its manifest; other names as given.

    Files are hashed once for their state. For a folder with files that the manifest does not list the result is a
    temporary folder of links to the listed ones, which exists until the process ends.

    Args:
        name: A run folder, its final/, a checkpoint, or any other name.
        no_verify: If True, the folder is returned as it is.

    Raises:
        UserError: for a corrupt folder.
    """
    folder = Path(model_folder(name))
    if no_verify or not (is_checkpoint(folder) or manifest_path(folder).is_file()):
        return str(folder)
    try:
        record = check_files_once(folder)
    except CorruptCheckpoint as error:
        raise UserError(
            f"--model_name_or_path {folder}: corrupt ({error}). Restore it, give another one, or --no_verify to use it "
            "as it is."
        ) from error
    unlisted = unlisted_files(folder, record)
    return str(_linked(folder, record, unlisted) if unlisted else folder)


# By folder and hash of its manifest; removed when the process ends.
_views: dict[tuple[Path, str], tempfile.TemporaryDirectory[str]] = {}


def _linked(folder: Path, record: dict[str, Any], unlisted: list[str]) -> Path:
    """Return a temporary folder of links to the files of a checkpoint that its manifest lists; name the others once."""
    key = (folder, record["sha256"])
    if key in _views:
        return Path(_views[key].name) / folder.name
    if os.environ.get("RANK", "0") == "0":
        names = ", ".join(unlisted[:3]) + (f" and {len(unlisted) - 3} more" if len(unlisted) > 3 else "")
        print(f"mtloop: warning: {folder}: ignored, not listed in its manifest: {names}", file=sys.stderr)
    _views[key] = tempfile.TemporaryDirectory(prefix="mtloop-")
    view = Path(_views[key].name) / folder.name
    for name in (*record["files"], manifest_path(folder).relative_to(folder).as_posix()):
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).symlink_to((folder / name).resolve())
    return view


def final_record(folder: RunFolder) -> dict[str, Any]:
    """Return the manifest of final/; of an earlier version, which wrote none, its entry in run.json.

    Raises:
        CorruptCheckpoint: if the manifest is corrupt.
        UserError: if it has another format.
    """
    earlier: dict[str, Any] | None = folder.run_record.get("final")
    return read_manifest(folder.final_dir) if earlier is None or manifest_path(folder.final_dir).exists() else earlier


def final_corruption(folder: RunFolder) -> str:
    """Compare final/ with its manifest; return the reason why it is corrupt, "" for a valid one."""
    try:
        if "files" in final_record(folder):
            check_files_once(folder.final_dir)
    except CorruptCheckpoint as error:
        return str(error)
    return ""


def model_folder(name: str) -> str:
    """Return the folder to load: for a run folder its final/, otherwise its newest checkpoint; other names as given."""
    folder = RunFolder(Path(name))
    if (folder.path / "config.json").exists() or not folder.path.is_dir():
        return name
    if (folder.final_dir / "config.json").exists():
        return str(folder.final_dir)
    checkpoints = list_checkpoints(folder)
    return str(checkpoints[-1][1]) if checkpoints else name


# Checkpoints to average


def choose_last(folder: RunFolder, number: int) -> list[Path]:
    """Choose the checkpoints of the last epochs, as --average_last does; of any steps if too few end an epoch.

    Raises:
        UserError: if there are fewer.
    """
    existing = [path for _, path in list_checkpoints(folder)]
    _check_enough("--last", number, existing, f"checkpoints in {folder.checkpoints_dir}")
    ends = epoch_ends(folder, end_step=int(existing[-1].name.removeprefix("step_")))
    return (ends if len(ends) >= number else existing)[-number:]


def choose_best(folder: RunFolder, number: int, metric: str, *, is_greater_better: bool) -> list[Path]:
    """Choose the checkpoints with the best scores during training, in the order of their steps; of equals the later.

    Raises:
        UserError: if fewer were evaluated and still exist.
    """
    scores = folder.metrics.scores(metric)
    scored = [(step, path) for step, path in list_checkpoints(folder) if step in scores]
    _check_enough("--best", number, [path for _, path in scored], f"evaluated checkpoints in {folder.checkpoints_dir}")
    sign = 1 if is_greater_better else -1
    best = sorted(scored, key=lambda one: (sign * scores[one[0]], one[0]))[-number:]
    return [path for _, path in sorted(best)]


def choose_named(folder: RunFolder | None, names: list[str]) -> list[Path]:
    """Find named checkpoints and folders, in the order of their steps.

    Args:
        folder: The run; None if all names are folders.
        names: step_N, epoch_N, best, or a path.

    Raises:
        UserError: for a missing one, a repeated one, or a single one.
    """
    by_name = {} if folder is None else names_of(folder)
    found: list[Path] = []
    for name in names:
        path = by_name.get(name, Path(name))
        if not (path / "config.json").is_file():
            existing = ", ".join(sorted(by_name)) or "none"
            raise UserError(
                f"--checkpoints: neither a checkpoint of the run nor a model folder (got {name}). "
                f"Existing checkpoints: {existing}."
            )
        if path.resolve() in [other.resolve() for other in found]:
            raise UserError(f"--checkpoints: {path} is named twice (got {name}). Name each checkpoint once.")
        found.append(path)
    if len(found) < 2:
        raise UserError(f"--checkpoints: an average needs two or more (got {' '.join(names)}). Name another one.")
    return sorted(found, key=_step_of)  # stable: folders without a step keep their order


def _step_of(path: Path) -> int:
    step = step_named(path.name)
    return -1 if step is None else step


def _check_enough(flag: str, number: int, existing: list[Path], what: str) -> None:
    if len(existing) < number:
        names = ", ".join(path.name for path in existing) or "none"
        remedy = f"Give at most {len(existing)}." if len(existing) >= 2 else "An average needs two or more."
        raise UserError(f"{flag}: {len(existing)} {what}: {names} (got {number}). {remedy}")
