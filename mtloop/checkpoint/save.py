"""Checkpointer: saves and restores what a run is made of. Must not know the loop.

A checkpoint is complete or invisible: written under a hidden name, hashed and flushed, then renamed; only when it has
been read back are older ones removed.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.atomic import (
    discard,
    for_each_file,
    forget_cached,
    partial_name,
    publish,
    sync_tree,
)
from mtloop.checkpoint.listing import epoch_ends, find_corruption, link_names, list_checkpoints, set_aside
from mtloop.checkpoint.manifest import (
    CorruptCheckpoint,
    HashedFile,
    hash_file,
    read_manifest,
    write_manifest,
)
from mtloop.checkpoint.restore import UNWRITABLE, differences_to, read_checkpoint, reason_in_line
from mtloop.checkpoint.state import BackgroundWriter, Buffers, Snapshot, TrainState, num_bytes_of
from mtloop.errors import RunFailed, UserError
from mtloop.model.adapters import ADAPTER_NAME, merged_weights, save_adapter
from mtloop.run_folder import RunFolder
from mtloop.runtime.collectives import attempt
from mtloop.runtime.launch import available_memory
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import gathered

# Room for what a save writes beside weights and optimizer (tokenizer, configurations): 100,000 pieces take 5 MB.
MARGIN_BYTES = 8_000_000
# Of the host's free memory: a larger copy would cost other programs theirs, or the file system its cache.
MAX_SHARE_OF_MEMORY = 0.5


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
    _writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    _buffers: Buffers = field(default_factory=Buffers)

    @property
    def path(self) -> Path:
        """Where the checkpoint of the current step is, or will be."""
        return self.folder.checkpoints_dir / f"step_{self.state.step}"

    @property
    def is_saved(self) -> bool:
        """Whether the current step has its checkpoint, once finish() was called. Main only."""
        return self.path.is_dir()

    def save(self, *, in_background: bool = False, then: Callable[[], None] = lambda: None) -> None:
        """Write checkpoints/step_N for the current step, publish it, then prune.

        Collective: every rank calls it; main writes. The save before it is finished first.

        Args:
            in_background: Whether to return as soon as what is to be written has been copied. Where the host has no
                memory for the copy, the loop waits all the same.
            then: What main does once the checkpoint stands, in the thread that wrote it.

        Raises:
            RunFailed: on every rank, when main could not write; what stood before still stands. What fails behind the
                loop is raised by the next save(), check() or finish().
        """
        self.finish()
        is_main = self.runtime.is_main
        weights, optimizer_state = self.model.state_dict(keep_vars=True), self.optimizer.state_dict()
        # Gathered from shards or from XLA they are copies already.
        has_copies = self.runtime.sharding is not None or self.runtime.is_xla
        in_background = in_background and (has_copies or self._has_memory(num_bytes_of(weights, optimizer_state)))
        copy = self._buffers.copy if in_background and is_main else torch.Tensor.detach
        self._buffers.begin()
        # A sharded model is gathered here, outside what main does alone: collective.
        weights = gathered(weights, is_kept=is_main, copy=copy)
        optimizer_state = gathered(optimizer_state, is_kept=is_main, copy=copy)
        scaler = self.runtime.accelerator.scaler
        snapshot = Snapshot(
            path=self.path,
            weights=weights,
            optimizer_state=optimizer_state,
            scaler_state=None if scaler is None else scaler.state_dict(),
            state=self.state.state_dict(),
        )

        def write() -> None:
            self._write(snapshot)
            then()

        self.runtime.on_main(lambda: self._writer.start(write) if in_background else write())

    def finish(self) -> None:
        """Wait until the checkpoint that is being written stands. Collective.

        Raises:
            RunFailed: on every rank, when it could not be written.
        """
        self.runtime.on_main(self._writer.finish)

    def check(self) -> None:
        """Raise what a save behind the loop has failed with; wait for nothing. Not collective: main alone knows.

        Raises:
            RunFailed: once.
        """
        self._writer.check()

    def close(self) -> None:
        """Wait for what is being written, when the run ends for another reason. Not collective."""
        try:
            self._writer.finish()
        except RunFailed as error:
            self.runtime.say(str(error))

    def _has_memory(self, num_bytes: int) -> bool:
        return self._buffers.num_bytes > 0 or num_bytes < MAX_SHARE_OF_MEMORY * available_memory()

    def _write(self, snapshot: Snapshot) -> None:
        target = snapshot.path
        partial = partial_name(target)
        try:
            self._check_room(snapshot)
            self._fill(partial, snapshot)
            if target.exists():  # this step was saved before
                self._read_back(partial, target)
            publish(partial, target)
        except RunFailed:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except UNWRITABLE as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunFailed(
                f"{target}: the checkpoint could not be saved ({reason_in_line(error)}); the earlier ones are intact: "
                "once there is room and the folder can be written, the same command goes on from the newest"
            ) from error
        step, best_step = snapshot.state["step"], snapshot.state["best_step"]
        link_names(self.folder, latest=step, best=best_step)
        self._prune(step=step, best_step=best_step)

    def _check_room(self, snapshot: Snapshot) -> None:
        """Refuse to begin what the disk cannot hold.

        Raises:
            OSError: naming the bytes.
        """
        num_bytes = num_bytes_of(snapshot.weights, snapshot.optimizer_state)
        needed = num_bytes + MARGIN_BYTES
        if earlier := list_checkpoints(self.folder):
            with contextlib.suppress(CorruptCheckpoint, UserError):
                needed = max(num_bytes, sum(entry["size"] for entry in read_manifest(earlier[-1][1])["files"].values()))
        free = shutil.disk_usage(self.folder.checkpoints_dir).free
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")

    def _fill(self, path: Path, snapshot: Snapshot) -> None:
        """Write, hash and flush all files of a checkpoint, the manifest last."""
        path.mkdir()  # without parents: a run folder that is gone must not come back as half of one
        (path / "training").mkdir()
        self.model.save_pretrained(path, state_dict=merged_weights(self.model, snapshot.weights))
        save_adapter(self.model, snapshot.weights, path / ADAPTER_NAME)
        self.tokenizer.save_pretrained(path)
        shutil.copyfile(self.folder.config_path, path / "config.yaml")
        files: dict[str, Any] = {}
        # transformers takes no stream: what it has just written is hashed as it comes back from memory.
        for_each_file(path, lambda name, file: files.update({name: hash_file(file)}))
        files["training/optimizer.pt"] = _save(snapshot.optimizer_state, path / "training" / "optimizer.pt")
        if snapshot.scaler_state is not None:
            files["training/scaler.pt"] = _save(snapshot.scaler_state, path / "training" / "scaler.pt")
        progress = {name: snapshot.state[name] for name in ("step", "epoch", "cursor")}
        record = {**self.identity, **progress, **self._surroundings(), "state": snapshot.state, "files": files}
        write_manifest(path, record)
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
        """Remove the checkpoints beyond --save_total_limit, once the newest has been read back. Main only."""
        self._prune(step=self.state.step, best_step=self.state.best_step)

    def _prune(self, *, step: int, best_step: int) -> None:
        if self.save_total_limit is None:
            return
        kept = epoch_ends(self.folder)[-self.num_epochs_kept :] if self.num_epochs_kept else []
        superfluous = [
            path
            for number, path in list_checkpoints(self.folder)[: -self.save_total_limit]
            if number not in (best_step, step) and path not in kept and not self.is_awaited(path)
        ]
        if not superfluous:
            return
        newest = self.folder.checkpoints_dir / f"step_{step}"
        self._read_back(newest, newest)
        for path in superfluous:
            discard(path)

    def _read_back(self, path: Path, target: Path) -> None:
        """Make sure that the disk holds what was written, before another checkpoint gives way to it.

        Raises:
            RunFailed: when it does not, naming the target.
        """
        for_each_file(path, lambda _, file: forget_cached(file))
        if reason := find_corruption(path):
            raise RunFailed(
                f"{target}: the disk does not give back what was written ({reason}); the earlier checkpoints are "
                "kept: check the disk, then start the same command again"
            )

    def drop_later(self) -> None:
        """Clear the way beyond the current step, which a resume makes again: remove the sound, set aside the damaged.

        Main only.
        """
        for step, path in list_checkpoints(self.folder):
            if step <= self.state.step:
                continue
            if find_corruption(path):
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
        record, error = attempt(
            lambda: read_checkpoint(
                path,
                model=self.model,
                optimizer=self.optimizer,
                scaler=self.runtime.accelerator.scaler,
                scheduler=self.scheduler,
                state=self.state,
            )
        )
        self.runtime.raise_together(error)
        assert record is not None
        for difference in differences_to(record, {**self.identity, **self._surroundings()}):
            self.runtime.say(f"resumed with {difference}: not bitwise the same run")
        return record


def _save(value: Any, path: Path) -> dict[str, Any]:
    file = HashedFile(path)
    try:
        torch.save(value, file)  # type: ignore[arg-type]  # asks for no more than write and flush
    finally:
        entry = file.close()
    return entry
