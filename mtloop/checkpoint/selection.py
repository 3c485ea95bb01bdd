"""Which checkpoints are averaged: the last, the best, or those that are named. Must not know tensors."""

from __future__ import annotations

from pathlib import Path

from mtloop.checkpoint import list_checkpoints
from mtloop.checkpoint.listing import epoch_ends, names_of
from mtloop.errors import UserError
from mtloop.run_folder import RunFolder

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
