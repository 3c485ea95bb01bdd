"""Checkpointer: saves and restores what a run is made of. Must not know the loop.

A checkpoint is complete or invisible: written under a hidden name, hashed and flushed, then renamed; only when it has
been read back are older ones removed.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.adapters import ADAPTER_NAME, merged_weights, save_adapter
from mtloop.checkpoint.folders import (
    discard,
    for_each_file,
    forget_cached,
    partial_name,
    publish,
    sync_tree,
)
from mtloop.checkpoint.listing import damage_of, epoch_ends, link_names, list_checkpoints, set_aside
from mtloop.checkpoint.weights import load_weights
from mtloop.config import RunFailed, UserError
from mtloop.manifest import (
    Damaged,
    HashedFile,
    hash_file,
    read_manifest,
    size_of,
    write_manifest,
)
from mtloop.optim import set_schedule
from mtloop.run_folder import RunFolder
from mtloop.runtime import Runtime, attempt, gathered, sharded_state
from mtloop.state import TrainState

# A full disk is an OSError in our own writing, a RuntimeError in torch.save and a SafetensorError in save_pretrained.
UNWRITABLE = (OSError, RuntimeError, SafetensorError)
# What a damaged or foreign file makes of json, torch.load, safetensors and load_state_dict.
UNREADABLE = (*UNWRITABLE, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError)
# What must be equal for a resumed run to be bitwise the one that was interrupted.
BITWISE = (
    "num_ranks", "is_sharded", "num_threads", "device", "precision", "max_tokens_per_micro_batch", "pad_to", "versions",
)  # fmt: skip
# Room for what a save writes beside weights and optimizer (tokenizer, configurations): 100,000 pieces take 5 MB.
MARGIN_BYTES = 8_000_000


@dataclass(kw_only=True)
class Checkpointer:
    """Saves and restores what a run is made of.

    Attributes:
        folder: The run folder.
        runtime: Who writes: main alone, all wait.
        model: Unwrapped; sharded or whole.
        optimizer: As prepared.
        scheduler: The learning-rate schedule: a function of the step, so nothing of it is stored.
        tokenizer: Saved into each export.
        state: The counters; restored in place.
        save_total_limit: Checkpoints kept, the best not counted; None keeps all.
        num_epochs_kept: Of those that end an epoch the last ones, kept all the same: final/ is made of them.
        is_awaited: Whether somebody else still needs a checkpoint, which is then not pruned. Main only.
        identity: What the run is, for the manifest: run_id, budgets, fingerprints, versions ...; JSON values.
    """

    folder: RunFolder
    runtime: Runtime
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    tokenizer: PreTrainedTokenizerBase
    state: TrainState
    save_total_limit: int | None = None
    num_epochs_kept: int = 0
    is_awaited: Callable[[Path], bool] = lambda path: False
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the checkpoint of the current step is, or will be."""
        return self.folder.checkpoints_dir / f"step_{self.state.step}"

    @property
    def is_saved(self) -> bool:
        """Whether the current step has its checkpoint. Main only."""
        return self.path.is_dir()

    def save(self) -> None:
        """Write checkpoints/step_N for the current step, publish it, then prune.

        Collective: every rank calls it; main writes.

        Raises:
            RunFailed: on every rank, when main could not write; what stood before still stands.
        """
        is_main = self.runtime.is_main
        # A sharded model is gathered here, outside what main does alone: collective.
        weights = gathered(self.model.state_dict(keep_vars=True), is_kept=is_main)
        optimizer_state = gathered(self.optimizer.state_dict(), is_kept=is_main)
        self.runtime.on_main(lambda: self._write(weights, optimizer_state))

    def _write(self, weights: dict[str, torch.Tensor], optimizer_state: dict[str, Any]) -> None:
        target = self.path
        partial = partial_name(target)
        try:
            self._check_room(weights, optimizer_state)
            self._fill(partial, weights, optimizer_state)
            if target.exists():  # this step was saved before
                self._read_back(partial)
            publish(partial, target)
        except RunFailed:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except UNWRITABLE as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunFailed(
                f"{target}: the checkpoint could not be saved ({_reason(error)}); the earlier ones are intact: once "
                "there is room and the folder can be written, the same command goes on from the newest"
            ) from error
        link_names(self.folder, latest=self.state.step, best=self.state.best_step)
        self.prune()

    def _check_room(self, weights: dict[str, torch.Tensor], optimizer_state: dict[str, Any]) -> None:
        """Refuse to begin what the disk cannot hold.

        Raises:
            OSError: naming the bytes.
        """
        states = [tensor for entry in optimizer_state["state"].values() for tensor in entry.values()]
        tensors = {t.data_ptr(): t.nbytes for t in (*weights.values(), *states) if isinstance(t, torch.Tensor)}
        needed = sum(tensors.values()) + MARGIN_BYTES
        if earlier := list_checkpoints(self.folder):
            with contextlib.suppress(Damaged, UserError):
                needed = max(sum(tensors.values()), size_of(read_manifest(earlier[-1][1])))
        free = shutil.disk_usage(self.folder.checkpoints_dir).free
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")

    def _fill(self, path: Path, weights: dict[str, torch.Tensor], optimizer_state: dict[str, Any]) -> None:
        """Write, hash and flush all files of a checkpoint, the manifest last."""
        path.mkdir()  # without parents: a run folder that is gone must not come back as half of one
        (path / "training").mkdir()
        self.model.save_pretrained(path, state_dict=merged_weights(self.model, weights))
        save_adapter(self.model, weights, path / ADAPTER_NAME)
        self.tokenizer.save_pretrained(path)
        shutil.copyfile(self.folder.config_path, path / "config.yaml")
        files: dict[str, Any] = {}
        # transformers takes no stream: what it has just written is hashed as it comes back from memory.
        for_each_file(path, lambda name, file: files.update({name: hash_file(file)}))
        files["training/optimizer.pt"] = _save(optimizer_state, path / "training" / "optimizer.pt")
        if (scaler := self.runtime.accelerator.scaler) is not None:
            files["training/scaler.pt"] = _save(scaler.state_dict(), path / "training" / "scaler.pt")
        state = self.state.state_dict()
        progress = {name: state[name] for name in ("step", "epoch", "cursor")}
        write_manifest(path, {**self.identity, **progress, **self._surroundings(), "state": state, "files": files})
        sync_tree(path)

    def _surroundings(self) -> dict[str, Any]:
        runtime = self.runtime
        return {
            "num_ranks": runtime.num_ranks,
            "num_threads": runtime.num_threads,
            "device": runtime.device.type,
            "precision": runtime.precision,
            "is_sharded": runtime.sharding is not None,
        }

    def prune(self) -> None:
        """Remove the checkpoints beyond --save_total_limit, once the one just saved has been read back. Main only."""
        if self.save_total_limit is None:
            return
        kept = epoch_ends(self.folder)[-self.num_epochs_kept :] if self.num_epochs_kept else []
        superfluous = [
            path
            for step, path in list_checkpoints(self.folder)[: -self.save_total_limit]
            if step not in (self.state.best_step, self.state.step) and path not in kept and not self.is_awaited(path)
        ]
        if not superfluous:
            return
        self._read_back(self.path)
        for path in superfluous:
            discard(path)

    def _read_back(self, path: Path) -> None:
        """Make sure that the disk holds what was written, before another checkpoint gives way to it.

        Raises:
            RunFailed: when it does not.
        """
        for_each_file(path, lambda _, file: forget_cached(file))
        if reason := damage_of(path):
            raise RunFailed(
                f"{self.path}: the disk does not give back what was written ({reason}); the earlier checkpoints are "
                "kept: check the disk, then start the same command again"
            )

    def drop_later(self) -> None:
        """Clear the way beyond the current step, which a resume makes again: remove the sound, set aside the damaged.

        Main only.
        """
        for step, path in list_checkpoints(self.folder):
            if step <= self.state.step:
                continue
            if damage_of(path):
                set_aside(self.folder, path)
            else:
                self.runtime.say(f"{path} is beyond the step resumed from and is removed")
                discard(path)
        link_names(self.folder, latest=self.state.step, best=self.state.best_step)

    def restore(self, path: Path) -> dict[str, Any]:
        """Take over weights, optimizer, scaler and counters; hyperparameters stay those of the configuration.

        Collective: every rank reads the same files.

        Returns:
            The manifest.

        Raises:
            UserError: on every rank, for a checkpoint that any cannot read.
        """
        record, error = attempt(lambda: self._read(path))
        self.runtime.raise_together(error)
        assert record is not None
        now = {**self.identity, **self._surroundings()}
        for name in BITWISE:
            # Format 1 knew neither versions nor micro-batches.
            if name in record and name in now and record[name] != now[name]:
                self.runtime.say(
                    f"resumed with {name} {_shown(now[name], record[name])}, saved with "
                    f"{_shown(record[name], now[name])}: not bitwise the same run"
                )
        return record

    def _read(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint into model, optimizer, scaler and counters; return its manifest."""
        training = path / "training"
        try:
            record = read_manifest(path)
            load_weights(self.model, path)
            stored = _load(training / "optimizer.pt")
            # What the configuration says holds, for a run whose settings were changed with --allow_changed.
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({**sharded_state(stored, self.optimizer), "param_groups": groups})
            scaler = self.runtime.accelerator.scaler
            if scaler is not None and (training / "scaler.pt").exists():
                scaler.load_state_dict(_load(training / "scaler.pt"))
            self.state.load_state_dict(record["state"])
            set_schedule(self.scheduler, self.state.step)
        except (*UNREADABLE, Damaged) as error:
            raise UserError(
                f"--resume_from_checkpoint {path}: cannot be read ({type(error).__name__}: {_reason(error)}); name "
                f"an earlier one, such as {self.folder.checkpoints_dir}/step_N, or give another --output_dir"
            ) from error
        return record

    def publish_final(self, *, is_best: bool) -> Path:
        """Make final/ from the best or the latest checkpoint, and return the checkpoint it came from.

        Collective.

        Raises:
            RunFailed: on every rank, when main could not write.
        """
        source = self.runtime.on_main(lambda: self._best_or_latest() if is_best else self.path)
        self.runtime.on_main(lambda: self._copy_final(source))
        return source

    def _best_or_latest(self) -> Path:
        best = self.folder.checkpoints_dir / f"step_{self.state.best_step}"
        if not best.is_dir():
            return self.path
        if reason := damage_of(best):
            self.runtime.say(
                f"{best}, the best model, is damaged: {reason}; {self.folder.final_dir} holds the last one"
            )
            return self.path
        return best

    def _copy_final(self, source: Path) -> None:
        final = self.folder.final_dir
        partial = partial_name(final)
        try:
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns("training"))
            sync_tree(partial)
            publish(partial, final)
            with contextlib.suppress(Damaged):
                manifest = read_manifest(source)
                self.folder.update_record(final={"step": manifest["step"], "manifest": manifest.get("sha256", "")})
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunFailed(f"{final}: cannot be written ({_reason(error)})") from error


def _save(value: Any, path: Path) -> dict[str, Any]:
    file = HashedFile(path)
    try:
        torch.save(value, file)  # type: ignore[arg-type]  # asks for no more than write and flush
    finally:
        entry = file.close()
    return entry


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: BaseException) -> str:
    """Return an error's reason in one line: libraries explain at length."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def _shown(value: Any, other: Any) -> str:
    """Show a value; of two groups of values those alone that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{name} {value[name]}" for name in value if value[name] != other.get(name))
    return str(value)
