"""Epoch checkpoints: save, publish by renaming, prune, find, restore.

A checkpoint is a folder `checkpoints/step_N` that from_pretrained loads as it is (model, generation config, tokenizer),
with `training/` inside for what a resume needs beyond the weights. It is complete or invisible: written under a name
that starts with a dot, then renamed. Must not know the loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.config import RunFailed, UserError
from mtloop.run_folder import RunFolder, read_json
from mtloop.runtime import Runtime, attempt
from mtloop.state import TrainState

FORMAT_VERSION = 1
# A full disk is an OSError in our own writing, a RuntimeError in torch.save and a SafetensorError in save_pretrained.
UNWRITABLE = (OSError, RuntimeError, SafetensorError)
# What a damaged or foreign file makes of json, torch.load, safetensors and load_state_dict.
UNREADABLE = (*UNWRITABLE, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError)


@dataclass(kw_only=True)
class Checkpointer:
    """Saves and restores what a run is made of.

    Attributes:
        folder: The run folder.
        runtime: Who writes: main alone, all wait.
        model: Unwrapped.
        wrapped_model: As prepared; a sharded one is gathered from it.
        optimizer: As prepared.
        scheduler: The learning-rate schedule.
        tokenizer: Saved into each export.
        state: The counters; restored in place.
        save_total_limit: Checkpoints kept, the best not counted; None keeps all.
    """

    folder: RunFolder
    runtime: Runtime
    model: PreTrainedModel
    wrapped_model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    tokenizer: PreTrainedTokenizerBase
    state: TrainState
    save_total_limit: int | None = None

    @property
    def path(self) -> Path:
        """Where the checkpoint of the current step is, or will be."""
        return self.folder.checkpoints_dir / f"step_{self.state.step}"

    @property
    def is_saved(self) -> bool:
        """Whether the current step has its checkpoint."""
        return self.path.is_dir()

    def save(self) -> None:
        """Write checkpoints/step_N for the current step, publish it, then prune.

        Collective: every rank calls it; main writes.

        Raises:
            RunFailed: on every rank, when main could not write; what stood before still stands.
        """
        weights = self.runtime.accelerator.get_state_dict(self.wrapped_model)  # gathers a sharded model: collective
        self.runtime.on_main(lambda: self._write(weights))

    def _write(self, weights: dict[str, torch.Tensor]) -> None:
        target = self.path
        partial = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
        try:
            self._fill(partial, weights)
            _sync_files(partial)
            trash = _to_trash(target) if target.exists() else None  # this step was saved before
            os.replace(partial, target)
            _sync(target.parent)
        except UNWRITABLE as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunFailed(
                f"{target}: the checkpoint could not be saved ({_reason(error)}); is the disk full? The earlier ones "
                "are intact"
            ) from error
        if trash is not None:
            shutil.rmtree(trash, ignore_errors=True)
        self._link_names()
        self._prune()

    def _fill(self, path: Path, weights: dict[str, torch.Tensor]) -> None:
        training = path / "training"
        training.mkdir(parents=True)
        self.model.save_pretrained(path, state_dict=weights)
        self.tokenizer.save_pretrained(path)
        torch.save(self.optimizer.state_dict(), training / "optimizer.pt")
        torch.save(self.scheduler.state_dict(), training / "scheduler.pt")
        if (scaler := self.runtime.accelerator.scaler) is not None:
            torch.save(scaler.state_dict(), training / "scaler.pt")
        shutil.copyfile(self.folder.config_path, path / "config.yaml")
        record = {
            "format_version": FORMAT_VERSION,
            "num_ranks": self.runtime.num_ranks,
            "num_threads": self.runtime.num_threads,
            "precision": self.runtime.precision,
            "state": self.state.state_dict(),
        }
        (training / "state.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _link_names(self) -> None:
        """Point checkpoints/latest and checkpoints/best at theirs, each replaced in one rename."""
        for name, step in (("latest", self.state.step), ("best", self.state.best_step)):
            target = self.folder.checkpoints_dir / f"step_{step}"
            beside = target.with_name(f".tmp-{name}-{uuid.uuid4().hex[:8]}")
            if target.is_dir():
                with contextlib.suppress(OSError):  # a file system without links: the names are a convenience
                    beside.symlink_to(target.name)
                    os.replace(beside, target.with_name(name))

    def _prune(self) -> None:
        if self.save_total_limit is None:
            return
        for step, path in list_checkpoints(self.folder)[: -self.save_total_limit]:
            if step != self.state.best_step:
                shutil.rmtree(_to_trash(path), ignore_errors=True)

    def drop_later(self) -> None:
        """Remove checkpoints beyond the current step: a resume from an earlier one makes them again. Main only."""
        for step, path in list_checkpoints(self.folder):
            if step > self.state.step:
                self.runtime.say(f"{path} is beyond the step resumed from and is removed")
                shutil.rmtree(_to_trash(path), ignore_errors=True)
        self._link_names()

    def restore(self, path: Path) -> None:
        """Take over weights, optimizer, schedule, scaler and counters.

        Collective: every rank reads the same files.

        Raises:
            UserError: on every rank, for a checkpoint that any cannot read.
        """
        record, error = attempt(lambda: self._read(path))
        self.runtime.raise_together(error)
        assert record is not None
        for what in ("num_ranks", "num_threads", "precision"):
            if record[what] != (now := getattr(self.runtime, what)):
                self.runtime.say(f"resumed with {what} {now}, saved with {record[what]}: not bitwise the same run")

    def _read(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint into model, optimizer, schedule, scaler and counters; return its record."""
        training = path / "training"
        try:
            record = json.loads((training / "state.json").read_text(encoding="utf-8"))
            if record["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {record['format_version']}, this version reads {FORMAT_VERSION}")
            load_weights(self.model, path)
            self.optimizer.load_state_dict(_load(training / "optimizer.pt"))
            self.scheduler.load_state_dict(_load(training / "scheduler.pt"))
            scaler = self.runtime.accelerator.scaler
            if scaler is not None and (training / "scaler.pt").exists():
                scaler.load_state_dict(_load(training / "scaler.pt"))
            self.state.load_state_dict(record["state"])
        except UNREADABLE as error:
            raise UserError(
                f"--resume_from_checkpoint {path}: cannot be read ({type(error).__name__}: {_reason(error)}); name "
                f"an earlier one, such as {self.folder.checkpoints_dir}/step_N"
            ) from error
        return record

    def publish_final(self, *, is_best: bool) -> Path:
        """Make final/ from the best or the latest checkpoint, and return the checkpoint it came from.

        Collective.
        """
        best = self.folder.checkpoints_dir / f"step_{self.state.best_step}"
        source = self.runtime.on_main(lambda: best if is_best and best.is_dir() else self.path)

        def copy() -> None:
            final = self.folder.final_dir
            partial = self.folder.path / f".tmp-final-{uuid.uuid4().hex[:8]}"
            try:
                shutil.copytree(source, partial, ignore=shutil.ignore_patterns("training"))
                _sync_files(partial)
                trash = _to_trash(final) if final.exists() else None
                os.replace(partial, final)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise RunFailed(f"{final}: cannot be written ({_reason(error)})") from error
            if trash is not None:
                shutil.rmtree(trash, ignore_errors=True)

        self.runtime.on_main(copy)
        return source


def list_checkpoints(folder: RunFolder) -> list[tuple[int, Path]]:
    """List the complete checkpoints by step number, ascending."""
    found = [
        (int(path.name.removeprefix("step_")), path)
        for path in folder.checkpoints_dir.glob("step_*")
        if re.fullmatch(r"step_\d+", path.name) and path.is_dir()
    ]
    return sorted(found)


def find_checkpoint(folder: RunFolder, asked: str | None) -> Path | None:
    """Find what --resume_from_checkpoint names; None asks for the newest and may find none.

    Args:
        folder: The run folder.
        asked: latest, best, epoch_N (1-based), step_N, a path, or None.

    Raises:
        UserError: when what was asked for is not there, with the ones that are.
    """
    checkpoints = list_checkpoints(folder)
    if asked in (None, "latest", "True", "true"):
        if checkpoints:
            return checkpoints[-1][1]
        if asked is None:
            return None
    assert asked is not None or not checkpoints
    by_name = {path.name: path for _, path in checkpoints}
    for _, path in checkpoints:
        state = read_json(path / "training" / "state.json").get("state", {})
        if state.get("cursor") == 0:
            by_name[f"epoch_{state['epoch']}"] = path
    best = folder.checkpoints_dir / "best"
    if best.is_dir():
        by_name["best"] = best.resolve()
    if asked in by_name:
        return by_name[asked]
    if asked is not None and (Path(asked) / "training" / "state.json").is_file():
        return Path(asked)
    there = ", ".join(sorted(by_name)) or "none"
    raise UserError(f"--resume_from_checkpoint {asked}: no such checkpoint in {folder.checkpoints_dir}; there: {there}")


def sweep(folder: RunFolder) -> None:
    """Remove what dead saves left behind. Main only."""
    for parent in (folder.path, folder.checkpoints_dir):
        for pattern in (".tmp-*", ".trash-*", ".push-*"):
            for path in parent.glob(pattern):
                if path.is_symlink():
                    path.unlink(missing_ok=True)
                else:
                    shutil.rmtree(path, ignore_errors=True)


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Read a checkpoint's weights into a model in place; tied weights stand in the file once.

    Raises:
        ValueError: when the file lacks a weight or has one of another name.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        weights.update(load_file(file))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    derived = set(getattr(model, "all_tied_weights_keys", None) or ()) | set(model._keys_to_ignore_on_save or ())
    if lacking := set(missing) - derived:
        raise ValueError(f"{path.name} lacks the weights {sorted(lacking)[:3]}")
    if unexpected:
        raise ValueError(f"{path.name} has the weights {sorted(unexpected)[:3]} that the model has not")


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: BaseException) -> str:
    """Return an error's reason in one line: libraries explain at length."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def _to_trash(path: Path) -> Path:
    """Rename out of sight first: a kill in the middle of a removal must not leave half a checkpoint under its name."""
    trash = path.with_name(f".trash-{path.name}-{uuid.uuid4().hex[:8]}")
    os.replace(path, trash)
    return trash


def _sync_files(path: Path) -> None:
    for entry in (path, *path.rglob("*")):  # a folder's own flush makes the names in it last
        _sync(entry)


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
