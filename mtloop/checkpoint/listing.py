"""List, find and choose the checkpoints of a run. Main only; must not know tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtloop.atomic import discard, link
from mtloop.checkpoint.manifest import MANIFEST_NAME, STATE_NAME_OF_FORMAT_1, Damaged, check_files, read_manifest
from mtloop.errors import UserError
from mtloop.run_folder import RunFolder

NEWEST = (None, "latest", "True", "true")
HUB = "hub:"


def list_checkpoints(folder: RunFolder) -> list[tuple[int, Path]]:
    """List the published checkpoints by step number, ascending: never by time, which a clock may change."""
    found = [
        (int(path.name.removeprefix("step_")), path)
        for path in folder.checkpoints_dir.glob("step_*")
        if re.fullmatch(r"step_\d+", path.name) and path.is_dir()
    ]
    return sorted(found)


def find_checkpoint(folder: RunFolder, asked: str | None) -> Path | None:
    """Find what --resume_from_checkpoint names; None asks for the newest and may find none. Verifies nothing.

    Args:
        folder: The run folder.
        asked: latest, best, epoch_N (1-based), step_N, a path, hub:NAME (fetched already: the newest), or None.

    Raises:
        UserError: when what was asked for is not there, with the ones that are.
    """
    checkpoints = list_checkpoints(folder)
    if asked is not None and asked.startswith(HUB):  # fetched already
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
    if asked is not None and any((Path(asked) / name).is_file() for name in (MANIFEST_NAME, STATE_NAME_OF_FORMAT_1)):
        return Path(asked)
    there = ", ".join(sorted(by_name)) or "none"
    raise UserError(f"--resume_from_checkpoint {asked}: no such checkpoint in {folder.checkpoints_dir}; there: {there}")


def names_of(folder: RunFolder) -> dict[str, Path]:
    """What a checkpoint may be called by: step_N, epoch_N (1-based), best."""
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
    """Choose the checkpoint to go on from: the one that is named, else the newest whose hashes hold.

    Args:
        folder: The run folder.
        asked: As in find_checkpoint.
        say: Told of each damaged one that is passed over.

    Returns:
        None where the folder has no sound one: training starts from the beginning.

    Raises:
        UserError: when what was asked for is not there or damaged, and for a newer version's format.
    """
    path = find_checkpoint(folder, asked)
    if path is None:
        return None
    if asked not in NEWEST and not asked.startswith(HUB):
        if reason := damage_of(path):
            sound = [name.name for _, name in list_checkpoints(folder) if name != path and not damage_of(name)]
            raise UserError(
                f"--resume_from_checkpoint {asked}: {path} is damaged: {reason}; sound: {', '.join(sound) or 'none'}"
            )
        return path
    for _, path in reversed(list_checkpoints(folder)):
        reason = damage_of(path)
        if not reason:
            return path
        say(f"{path} is damaged: {reason}; the one before it is taken")
    say("no sound checkpoint is left: training starts from the beginning")
    return None


def damage_of(path: Path) -> str:
    """Say what is wrong with a checkpoint, having read all of it; "" for a sound one."""
    try:
        check_files(path)
    except Damaged as damage:
        return str(damage)
    return ""


def epoch_of(path: Path) -> int | None:
    """The epoch that a checkpoint ends (1-based); None for one within an epoch, before the first, or unreadable."""
    try:
        record: dict[str, Any] = read_manifest(path)
    except (Damaged, UserError):
        return None
    return (record["epoch"] or None) if record["cursor"] == 0 else None


def epoch_ends(folder: RunFolder, *, end_step: int | None = None) -> list[Path]:
    """List the checkpoints that end an epoch, by step; that of `end_step` counts as one wherever it ends."""
    return [path for step, path in list_checkpoints(folder) if step == end_step or epoch_of(path)]


def set_aside(folder: RunFolder, path: Path) -> None:
    """Rename a damaged checkpoint to damaged_step_N: out of every resume's way, and not lost."""
    aside = path.with_name(f"damaged_{path.name}")
    if aside.exists():
        discard(aside)
    os.replace(path, aside)


def link_names(folder: RunFolder, **steps: int) -> None:
    """Point checkpoints/latest and checkpoints/best at the steps' checkpoints, where they are."""
    for name, step in steps.items():
        target = folder.checkpoints_dir / f"step_{step}"
        if target.is_dir():
            link(folder.checkpoints_dir / name, target)


def model_folder(name: str) -> str:
    """Return the folder to load: of a run folder its final/, else its newest checkpoint; any other name as it is."""
    folder = RunFolder(Path(name))
    if (folder.path / "config.json").exists() or not folder.path.is_dir():
        return name
    if (folder.final_dir / "config.json").exists():
        return str(folder.final_dir)
    checkpoints = list_checkpoints(folder)
    return str(checkpoints[-1][1]) if checkpoints else name


METRICS = ("bleu", "chrf", "eval_loss")


def choose_last(folder: RunFolder, number: int) -> list[Path]:
    """Take the checkpoints of a run's last epochs, as --average_last does; of any updates where too few end an epoch.

    Raises:
        UserError: when there are fewer.
    """
    there = [path for _, path in list_checkpoints(folder)]
    _check_enough("--last", number, there, f"in {folder.checkpoints_dir}")
    newest = int(there[-1].name.removeprefix("step_"))
    ends = epoch_ends(folder, end_step=newest)
    return (ends if len(ends) >= number else there)[-number:]


def choose_best(folder: RunFolder, number: int, metric: str) -> list[Path]:
    """Take the checkpoints that were scored best while the run went on, by step; of equal ones the later.

    Raises:
        UserError: when fewer were evaluated and are still there.
    """
    scores = folder.metrics.scores(metric)
    scored = [(step, path) for step, path in list_checkpoints(folder) if step in scores]
    where = f"evaluated and in {folder.checkpoints_dir}"
    _check_enough("--best", number, [path for _, path in scored], where)
    sign = -1 if metric == "eval_loss" else 1
    best = sorted(scored, key=lambda one: (sign * scores[one[0]], one[0]))[-number:]
    return [path for _, path in sorted(best)]


def choose_named(folder: RunFolder | None, names: list[str]) -> list[Path]:
    """Find the checkpoints of a run, and the folders, that are named, in the order of their steps.

    Args:
        folder: The run; None where all of them are folders.
        names: step_N, epoch_N, best, or a path.

    Raises:
        UserError: for one that is not there, one that is named twice, and for a single one.
    """
    by_name = {} if folder is None else names_of(folder)
    found: list[Path] = []
    for name in names:
        path = by_name.get(name, Path(name))
        if not (path / "config.json").is_file():
            there = ", ".join(sorted(by_name)) or "none"
            raise UserError(f"--checkpoints {name}: no checkpoint of the run ({there}) and no folder that loads")
        if path.resolve() in [other.resolve() for other in found]:
            raise UserError(f"--checkpoints {name}: {path} is named twice")
        found.append(path)
    if len(found) < 2:
        raise UserError(f"--checkpoints {' '.join(names)}: an average is of two or more")
    return sorted(found, key=_step_of)  # stable: what has no step stays where it was named


def _step_of(path: Path) -> int:
    kind, _, number = path.name.partition("_")
    return int(number) if kind == "step" and number.isdigit() else -1


def _check_enough(flag: str, number: int, there: list[Path], where: str) -> None:
    if len(there) < number:
        names = ", ".join(path.name for path in there) or "none"
        remedy = f"give at most {len(there)}" if len(there) >= 2 else "an average is of two or more"
        raise UserError(f"{flag} {number}: there are {len(there)} {where} ({names}); {remedy}")
