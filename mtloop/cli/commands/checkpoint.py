"""List, verify or prune the checkpoints of a run folder.

The Hub is not asked: an epoch is pushed if push.jsonl says so. After its repository was deleted, run
`mtloop push` first.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtloop.atomic import discard
from mtloop.checkpoint.listing import epoch_ends, epoch_of, find_corruption, link_names, list_checkpoints
from mtloop.checkpoint.manifest import CorruptCheckpoint, check_sizes, read_manifest
from mtloop.cli.flags import number_type
from mtloop.errors import UserError
from mtloop.evaluation.metrics import DEFAULT_METRICS, Metric, metrics_of
from mtloop.evaluation.survival import SURVIVAL
from mtloop.metrics_log import evaluations_of
from mtloop.run_folder import RunFolder, step_named
from mtloop.tables import aligned


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One checkpoint, as the table shows it.

    Attributes:
        path: Its folder.
        step: Its update.
        epoch: Epochs done, and updates of the next one.
        score: The first metric of the evaluation at this step; "-" without one.
        num_bytes: The size of all its files.
        is_pushed: Whether the Hub has it.
        names: latest, best.
        corruption: The reason why it is corrupt; "" for a valid one.
        state: The text of the last column.
    """

    path: Path
    step: int
    epoch: str
    score: str
    num_bytes: int
    is_pushed: bool
    names: tuple[str, ...]
    corruption: str
    state: str

    @property
    def cells(self) -> list[str]:
        size, pushed = f"{self.num_bytes / 1e6:,.1f}", "yes" if self.is_pushed else "no"
        return [
            self.path.name,
            f"{self.step:,}",
            self.epoch,
            self.score,
            size,
            pushed,
            " ".join(self.names),
            self.state,
        ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "action",
        choices=("list", "verify", "prune"),
        help="list: check manifests and sizes; verify: read every byte, status 1 if a checkpoint is corrupt; prune: "
        "remove all but the newest valid ones, the best, and epochs that are still to be pushed or averaged",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument(
        "--save_total_limit",
        type=number_type("save_total_limit"),
        metavar="N",
        help="of prune: newest checkpoints kept (1)",
    )


def run(given: argparse.Namespace) -> int:
    """Run the command; return 1 if verify found a corrupt checkpoint."""
    if given.action == "prune":
        return _prune(given.run, 1 if given.save_total_limit is None else given.save_total_limit)
    if given.save_total_limit is not None:
        raise UserError(f"--save_total_limit: needs the action prune (got {given.save_total_limit}). Leave it out.")
    return _show(given.run, given.action)


def list_entries(folder: RunFolder, *, is_hashing: bool) -> list[Entry]:
    """Describe every checkpoint, by step, then those set aside as corrupt; with is_hashing read every byte."""
    metric = shown_metric(folder)
    scores = {step: f"{score:.{metric.decimals}f}" for step, score in folder.metrics.scores(metric.name).items()}
    pushed = {line.get("manifest") for line in folder.journal}
    steps = list_checkpoints(folder)
    aside = sorted(
        (step, path)
        for path in folder.checkpoints_dir.glob("damaged_step_*")
        if (step := step_named(path.name, "damaged_step_")) is not None
    )
    return [
        _describe(folder, step, path, score=scores.get(step, "-"), pushed=pushed, is_hashing=is_hashing)
        for step, path in (*steps, *aside)
    ]


def shown_metric(folder: RunFolder) -> Metric:
    """Return the first metric of the run's evaluations."""
    evaluations = evaluations_of(folder.metrics.lines())
    return (metrics_of(evaluations[-1]) if evaluations else list(DEFAULT_METRICS))[0]


def _describe(folder: RunFolder, step: int, path: Path, *, score: str, pushed: set[Any], is_hashing: bool) -> Entry:
    record: dict[str, Any] = {}
    try:
        record = read_manifest(path)
        if not is_hashing:
            check_sizes(path, record)
        corruption = find_corruption(path) if is_hashing else ""
    except (CorruptCheckpoint, UserError) as error:
        corruption = str(error)
    valid = "verified" if is_hashing else "complete"
    cursor = f" + {record['cursor']}" if record.get("cursor") else ""
    links = [folder.checkpoints_dir / name for name in ("latest", "best")]
    return Entry(
        path=path,
        step=step,
        epoch=f"{record['epoch']}{cursor}" if record else "?",
        score=score,
        num_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        is_pushed="sha256" in record and record["sha256"] in pushed,
        names=tuple(
            link.name for link in links if link.is_symlink() and link.is_dir() and link.resolve() == path.resolve()
        ),
        corruption=corruption,
        state=f"corrupt: {corruption}" if corruption else valid,
    )


def _open(run: Path) -> RunFolder:
    folder = RunFolder(run)
    if not folder.checkpoints_dir.is_dir():
        raise UserError(f"RUN: not a run folder, it has no checkpoints/ (got {run}). Give the --output_dir of a run.")
    return folder


def _show(run: Path, action: str) -> int:
    folder = _open(run)
    entries = list_entries(folder, is_hashing=action == "verify")
    if not entries:
        print(f"{run}: no checkpoint yet")
        return 0
    columns = ("checkpoint", "step", "epoch", shown_metric(folder).title, "MB", "pushed", "names", "state")
    print(f"{run}: {folder.status_text}")
    print("\n".join(aligned([columns, *(entry.cells for entry in entries)], left=1)))
    stored, survivals = folder.stored_config(), folder.metrics.scores(SURVIVAL).values()
    minimum = None if stored is None else stored.evaluation.min_survival
    if minimum is not None and survivals and max(survivals) < minimum:
        print(f"no best checkpoint: no evaluation reached --min_survival {minimum:g} (greatest {max(survivals):.2f})")
    num_corrupt = sum(bool(entry.corruption) for entry in entries)
    if action == "verify":
        print(f"{len(entries)} checkpoint(s): {len(entries) - num_corrupt} verified, {num_corrupt} corrupt")
    return 1 if num_corrupt and action == "verify" else 0


def _prune(run: Path, save_total_limit: int) -> int:
    folder = _open(run)
    folder.lock(print, wait_s=0)
    try:
        entries = list_entries(folder, is_hashing=True)
        valid = [entry for entry in entries if not entry.corruption and entry.path.name.startswith("step_")]
        kept = {entry.path for entry in valid[-save_total_limit:]}
        stored = folder.stored_config()
        is_pushing = stored is not None and stored.hub.push_to_hub and stored.hub.hub_strategy != "end"
        for entry in valid:
            if "best" in entry.names or (is_pushing and epoch_of(entry.path) and not entry.is_pushed):
                kept.add(entry.path)
        if stored is not None and stored.evaluation.average_last and not folder.is_finished:
            kept |= {entry.path for entry in valid} & set(epoch_ends(folder)[-stored.evaluation.average_last :])
        if not valid and entries:
            raise UserError(
                f"RUN: every checkpoint is corrupt, nothing was removed (got {run}). Restore a valid checkpoint first."
            )
        for entry in entries:
            if entry.path not in kept:
                discard(entry.path)
                print(
                    f"removed {entry.path}: {entry.num_bytes / 1e6:,.1f} MB" + (", corrupt" if entry.corruption else "")
                )
        link_names(folder, latest=valid[-1].step if valid else -1)
        print(f"{len(kept)} kept: {', '.join(sorted((path.name for path in kept), key=lambda n: (len(n), n))) or '-'}")
    finally:
        folder.unlock()
    return 0
