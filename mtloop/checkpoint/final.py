"""final/: the checkpoint that a run ends with, without what a resume needs."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mtloop.atomic import new_folder
from mtloop.checkpoint.listing import damage_of
from mtloop.checkpoint.manifest import Damaged, read_manifest
from mtloop.checkpoint.restore import reason_in_line
from mtloop.checkpoint.save import Checkpointer
from mtloop.errors import RunFailed
from mtloop.run_folder import RunFolder


def publish_final(checkpointer: Checkpointer, *, is_best: bool) -> Path:
    """Make final/ from the best or the latest checkpoint, and return the checkpoint it came from.

    Collective. All that was begun must be finished.

    Raises:
        RunFailed: on every rank, when main could not write.
    """
    runtime = checkpointer.runtime
    source = runtime.on_main(lambda: _best_or_latest(checkpointer) if is_best else checkpointer.path)
    runtime.on_main(lambda: _copy(source, checkpointer.folder))
    return source


def _best_or_latest(checkpointer: Checkpointer) -> Path:
    folder = checkpointer.folder
    best = folder.checkpoints_dir / f"step_{checkpointer.state.best_step}"
    if not best.is_dir():
        return checkpointer.path
    if reason := damage_of(best):
        checkpointer.runtime.say(f"{best}, the best model, is damaged: {reason}; {folder.final_dir} holds the last one")
        return checkpointer.path
    return best


def _copy(source: Path, folder: RunFolder) -> None:
    final = folder.final_dir
    try:
        with new_folder(final) as partial:
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns("training"), dirs_exist_ok=True)
        with contextlib.suppress(Damaged):
            manifest = read_manifest(source)
            folder.update_record(final={"step": manifest["step"], "manifest": manifest.get("sha256", "")})
    except OSError as error:
        raise RunFailed(f"{final}: cannot be written ({reason_in_line(error)})") from error
