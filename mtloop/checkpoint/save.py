"""Save, prune and restore the checkpoints of a run. Must not know the loop.

A checkpoint is complete or invisible: it is written under a hidden name, hashed, flushed and renamed. Older ones are
removed only after it has been read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.atomic import discard, forget_cached, partial_name, publish, sync_tree
from mtloop.checkpoint.listing import epoch_ends, find_corruption, link_names, list_checkpoints, set_aside
from mtloop.checkpoint.manifest import (
    HashedFile,
    find_manifest,
    hash_files,
    write_manifest,
)
from mtloop.checkpoint.restore import UNWRITABLE, differences_to, read_checkpoint
from mtloop.checkpoint.state import BackgroundWriter, Buffers, Snapshot, TrainState, find_nonfinite, num_bytes_of
from mtloop.errors import RunFailed, first_line, write_remedy
from mtloop.model.adapters import ADAPTER_NAME, merged_weights, save_adapter
from mtloop.run_folder import RunFolder
from mtloop.runtime.collectives import attempt
from mtloop.runtime.launch import available_memory
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import gathered

# Allowance for tokenizer and configurations: a vocabulary of 100,000 tokens takes 5 MB.
MARGIN_BYTES = 8_000_000
# Of the free host memory: a larger copy would take memory from other programs, or from the file cache.
MAX_SHARE_OF_MEMORY = 0.5


@dataclass(kw_only=True)
class Checkpointer:
    """Save, prune and restore the checkpoints of a run.

    Attributes:
        folder: The run folder.
        runtime: Main writes, all ranks wait.
        model: The unwrapped model, sharded or whole.
        optimizer: The prepared optimizer.
        scheduler: The learning-rate schedule; a function of the step, so it is not stored.
        tokenizer: Saved with each checkpoint.
        state: The counters, restored in place.
        save_total_limit: Number of checkpoints kept, besides the best; None keeps all.
        num_epochs_kept: Number of last epoch ends kept in any case, for the average in final/.
        is_awaited: Return True for a checkpoint that must not be pruned yet. Main only.
        identity: Entries of the manifest that describe the run (run_id, budgets, fingerprints, versions); JSON values.
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
        """The path of the checkpoint of the current step."""
        return self.folder.checkpoints_dir / f"step_{self.state.step}"

    @property
    def is_saved(self) -> bool:
        """Return True if the current step has a checkpoint, after finish(). Main only."""
        return self.path.is_dir()

    def save(self, *, in_background: bool = False, then: Callable[[], None] = lambda: None) -> None:
        """Write and publish checkpoints/step_N for the current step, then prune. Waits for the previous save.

        Collective: every rank calls it; main writes.

        Args:
            in_background: If True, return when the state has been copied and write in a thread. Without host memory
                for the copy the checkpoint is written before the return.
            then: Called on main in the same thread when the checkpoint is published.

        Raises:
            RunFailed: on every rank, if main could not write, or a weight is not finite; earlier checkpoints are
                intact. An error of a background save is raised by the next save(), check() or finish().
        """
        self.finish()
        self._check_finite()
        is_main = self.runtime.is_main
        weights, optimizer_state = self.model.state_dict(keep_vars=True), self.optimizer.state_dict()
        # Tensors gathered from shards or XLA are copies already.
        has_copies = self.runtime.sharding is not None or self.runtime.is_xla
        in_background = in_background and (has_copies or self._has_memory(num_bytes_of(weights, optimizer_state)))
        copy = self._buffers.copy if in_background and is_main else torch.Tensor.detach
        self._buffers.begin()
        # Collective for a sharded model, hence outside of on_main.
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
        """Wait for the save in progress. Collective.

        Raises:
            RunFailed: on every rank, if it failed.
        """
        self.runtime.on_main(self._writer.finish)

    def check(self) -> None:
        """Raise the error of a background save, without waiting. Not collective: only main has it.

        Raises:
            RunFailed: once per error.
        """
        self._writer.check()

    def close(self) -> None:
        """Wait for the save in progress and log its error, when the run ends for another reason. Not collective."""
        try:
            self._writer.finish()
        except RunFailed as error:
            self.runtime.say(str(error))

    def _check_finite(self) -> None:
        """Check what training changes before it is saved. Collective, and a host sync.

        Raises:
            RunFailed: on every rank, for a value that is not finite.
        """
        name = find_nonfinite(self.model, self.optimizer)
        error = RunFailed(
            f"step {self.state.step}: {name} is not finite, nothing is saved. Earlier checkpoints are intact. Lower "
            "--learning_rate or --weight_decay, and resume with --allow_changed."
        )
        self.runtime.raise_together(error if name else None)

    def _has_memory(self, num_bytes: int) -> bool:
        return self._buffers.num_bytes > 0 or num_bytes < MAX_SHARE_OF_MEMORY * available_memory()

    def _write(self, snapshot: Snapshot) -> None:
        target = snapshot.path
        partial = partial_name(target)
        try:
            self._check_disk_space(snapshot)
            self._fill(partial, snapshot)
            if target.exists():  # an earlier save of this step
                self._read_back(partial, target)
            publish(partial, target)
        except RunFailed:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except UNWRITABLE as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunFailed(
                f"{target}: saving failed ({first_line(error)}). Earlier checkpoints are intact. "
                f"{write_remedy(error)}, and start the same command again."
            ) from error
        step, best_step = snapshot.state["step"], snapshot.state["best_step"]
        link_names(self.folder, latest=step, best=best_step)
        self._prune(step=step, best_step=best_step)

    def _check_disk_space(self, snapshot: Snapshot) -> None:
        """Check that the disk has space for a checkpoint.

        Raises:
            OSError: with the required and the free space.
        """
        num_bytes = num_bytes_of(snapshot.weights, snapshot.optimizer_state)
        needed = num_bytes + MARGIN_BYTES
        if earlier := list_checkpoints(self.folder):
            files = find_manifest(earlier[-1][1]).get("files")
            needed = max(num_bytes, sum(entry["size"] for entry in files.values())) if files else needed
        free = shutil.disk_usage(self.folder.checkpoints_dir).free
        if free < needed:
            raise OSError(f"{needed / 1e6:,.1f} MB are required, {free / 1e6:,.1f} MB are free")

    def _fill(self, path: Path, snapshot: Snapshot) -> None:
        """Write, hash and flush all files of a checkpoint, the manifest last."""
        path.mkdir()  # without parents: a deleted run folder must not reappear incomplete
        (path / "training").mkdir()
        self.model.save_pretrained(path, state_dict=merged_weights(self.model, snapshot.weights))
        save_adapter(self.model, snapshot.weights, path / ADAPTER_NAME)
        self.tokenizer.save_pretrained(path)
        shutil.copyfile(self.folder.config_path, path / "config.yaml")
        files = hash_files(path)  # from the page cache: transformers cannot write to a stream that hashes
        files["training/optimizer.pt"] = _save(snapshot.optimizer_state, path / "training" / "optimizer.pt")
        if snapshot.scaler_state is not None:
            files["training/scaler.pt"] = _save(snapshot.scaler_state, path / "training" / "scaler.pt")
        progress = {name: snapshot.state[name] for name in ("step", "epoch", "cursor")}
        record = {**self.identity, **progress, **self._conditions(), "state": snapshot.state, "files": files}
        write_manifest(path, record)
        sync_tree(path)

    def _conditions(self) -> dict[str, Any]:
        runtime = self.runtime
        return {
            "num_ranks": runtime.num_ranks,
            "num_threads": runtime.num_threads,
            "device": runtime.device.type,
            "precision": runtime.precision,
            "is_sharded": runtime.sharding is not None,
        }

    def prune(self) -> None:
        """Read back the newest checkpoint, then remove those beyond --save_total_limit. Main only."""
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
        """Verify from the disk what was written, before another checkpoint is removed.

        Raises:
            RunFailed: if it differs, naming the target.
        """
        for file in path.rglob("*"):
            if file.is_file():
                forget_cached(file)
        if reason := find_corruption(path):
            raise RunFailed(
                f"{target}: the disk returns other data than was written ({reason}). Earlier checkpoints are kept. "
                "Check the disk, and start the same command again."
            )

    def drop_later(self) -> None:
        """Remove valid checkpoints after the current step, and rename corrupt ones: a resume repeats those steps.

        Main only.
        """
        for step, path in list_checkpoints(self.folder):
            if step <= self.state.step:
                continue
            if find_corruption(path):
                set_aside(self.folder, path)
            else:
                self.runtime.say(f"removing {path}: training resumes before this step")
                discard(path)
        link_names(self.folder, latest=self.state.step, best=self.state.best_step)

    def restore(self, path: Path, *, check: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
        """Restore weights, optimizer, scaler and counters; hyperparameters stay those of the configuration.

        Collective: every rank reads the same files.

        Args:
            path: The checkpoint.
            check: Called with the manifest before any tensor is read; may raise UserError.

        Returns:
            The manifest.

        Raises:
            UserError: on every rank, if one cannot read the checkpoint.
        """
        record, error = attempt(
            lambda: read_checkpoint(
                path,
                check,
                model=self.model,
                optimizer=self.optimizer,
                scaler=self.runtime.accelerator.scaler,
                scheduler=self.scheduler,
                state=self.state,
            )
        )
        self.runtime.raise_together(error)
        assert record is not None
        for difference in differences_to(record, {**self.identity, **self._conditions()}):
            self.runtime.say(f"resumed with {difference}: results are not bitwise equal to the uninterrupted run")
        return record


def _save(value: Any, path: Path) -> dict[str, Any]:
    file = HashedFile(path)
    try:
        torch.save(value, file)  # type: ignore[arg-type]  # only write and flush are called
    finally:
        entry = file.close()
    return entry
