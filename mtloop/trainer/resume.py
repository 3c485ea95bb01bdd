"""Claim the folder of a run, and restore the run from its newest checkpoint."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from mtloop.batching.plan import PLAN_VERSION
from mtloop.checkpoint.listing import HUB, choose_checkpoint
from mtloop.config.settings import Config
from mtloop.errors import UserError
from mtloop.run_folder import RunFolder
from mtloop.runtime.collectives import attempt
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.report import epoch_of
from mtloop.trainer.run import Run

# Files may be visible on another machine with a delay: NFS caches attributes for 3 s.
VISIBLE_WITHIN_S = 10.0


def claim_folder(config: Config, runtime: Runtime) -> tuple[RunFolder, Config | None]:
    """Create the run folder, or check that it belongs to this run, and lock it until RunFolder.unlock().

    Collective.

    Returns:
        The folder, and the configuration stored there (None in a new one).

    Raises:
        UserError: if it cannot be written, is in use, holds another run without --allow_changed, or is not the same
            folder on every machine.
    """
    assert config.output.output_dir is not None
    folder = RunFolder(Path(config.output.output_dir))

    def claim() -> Config | None:
        folder.create()
        folder.refuse_foreign()
        folder.lock(runtime.say)
        try:
            stored = folder.check_config(config)
            folder.sweep()
        except BaseException:
            folder.unlock()
            raise
        return stored

    stored = runtime.on_main(claim)
    try:
        check_shared(folder, runtime)
    except BaseException:
        folder.unlock()
        raise
    return folder, stored


def check_shared(folder: RunFolder, runtime: Runtime, *, wait_s: float = VISIBLE_WITHIN_S) -> None:
    """Check that every process sees the folder that main writes to.

    Collective.

    Args:
        folder: Created by main.
        runtime: The ranks.
        wait_s: Seconds that a file of main's may take to be seen.

    Raises:
        UserError: on every rank, when one of them does not see it.
    """
    if runtime.num_ranks == 1:
        return
    # A new name: network file systems cache for a while that a file did not exist.
    word = runtime.broadcast(uuid.uuid4().hex)
    probe = folder.path / f".tmp-probe-{word}"
    runtime.on_main(lambda: probe.write_text(word))
    try:
        runtime.raise_together(attempt(lambda: await_word(probe, word, rank=runtime.rank, wait_s=wait_s))[1])
    finally:
        if runtime.is_main:
            with contextlib.suppress(OSError):  # swept at the next start
                probe.unlink()


def await_word(path: Path, word: str, *, rank: int, wait_s: float) -> None:
    """Wait until a file holds `word`.

    Raises:
        UserError: when it does not within `wait_s` seconds.
    """
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):  # not there yet, or not all of it
            if path.read_text(encoding="utf-8") == word:
                return
        time.sleep(0.1)
    raise UserError(
        f"--output_dir {path.parent}: process {rank} on {socket.gethostname()} cannot read the files that process 0 "
        f"writes ({path.parent.absolute()}). Give the absolute path of a folder that all machines share."
    )


def restore(run: Run) -> None:
    """Restore the requested checkpoint, else the newest valid one, else nothing. Collective."""
    asked = run.config.output.resume_from_checkpoint
    path = run.runtime.on_main(lambda: choose_checkpoint(run.folder, asked, run.runtime.say))
    if path is not None:
        check_origin(run, run.checkpointer.restore(path, check=lambda record: check_plan(run, record)))
        run.runtime.say(
            f"resumed from {path}: step {run.state.step:,} of {run.total_steps:,}, epoch {epoch_of(run):.2f}"
        )

    run.is_restored = True

    def update_folder() -> None:
        run.checkpointer.drop_later()
        run.folder.drop_after(run.state.step if path is not None else -1)
        if run.different:
            run.folder.record_changes(run.different, step=run.state.step)
            run.folder.write_data(run.data_report)
            run.folder.write_config(run.config)

    run.runtime.on_main(update_folder)
    if run.different:
        run.runtime.say(f"continuing from step {run.state.step:,} with changed settings: {'; '.join(run.different)}")


def check_plan(run: Run, record: dict[str, Any]) -> None:
    """Check that this version draws the updates of a checkpoint's run.

    Raises:
        UserError: for a checkpoint of another plan version.
    """
    if record.get("plan_version") != PLAN_VERSION:
        raise UserError(
            f"--output_dir {run.folder.path}: the run was started by a version of mtloop that drew other updates. Give "
            "a new --output_dir, and the checkpoint as --model_name_or_path to start from its weights."
        )


def check_origin(run: Run, record: dict[str, Any]) -> None:
    """Check the data and base model of a checkpoint against those of the run.

    Raises:
        UserError: for a checkpoint of other data or another base model, without --allow_changed.
    """
    mine, theirs = run.checkpointer.identity, record.get("fingerprints", {})
    asked = run.config.output.resume_from_checkpoint or ""
    base, base_then = (prints.get("base_model") for prints in (mine["fingerprints"], theirs))
    if base is not None and base != base_then and run.config.output.allow_changed:
        run.different.append(
            f"the weights of --model_name_or_path (fingerprint {str(base_then)[:12]}, now {base[:12]})"
        )
    elif base is not None and base != base_then:
        raise UserError(
            f"--model_name_or_path {run.config.model.model_name_or_path}: the adapter was trained on other weights "
            f"(fingerprint {str(base_then)[:12]}, now {base[:12]}). Give those weights (name@revision pins them), or "
            "--allow_changed."
        )
    is_foreign = record.get("run_id", mine["run_id"]) != mine["run_id"]
    if is_foreign or asked.startswith(HUB):  # this machine's data may not be that of the one that pushed
        changed = [name for name in ("data", "tokenizer") if theirs[name] != mine["fingerprints"][name]]
        if changed and not run.config.output.allow_changed:
            raise UserError(
                f"--resume_from_checkpoint {asked}: it was trained with other {' and '.join(changed)}. Give the same, "
                "or --allow_changed."
            )
    if is_foreign:
        run.runtime.say("the checkpoint belongs to another run")
    if theirs.get("plan", mine["fingerprints"]["plan"]) != mine["fingerprints"]["plan"] and run.state.cursor:
        run.runtime.say(f"the updates of an epoch have changed: restarting epoch {run.state.epoch + 1}")
        run.state.cursor = 0
