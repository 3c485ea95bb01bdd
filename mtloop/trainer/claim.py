"""The run folder at the start of a run: claimed by the main process, and seen by all."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from pathlib import Path

from mtloop.config.settings import Config
from mtloop.errors import UserError
from mtloop.run_folder import RunFolder
from mtloop.runtime import Runtime, attempt

# What one machine writes, another that shares its disk over a network may see later: NFS keeps attributes for 3 s.
VISIBLE_WITHIN_S = 10.0


def claim_folder(config: Config, runtime: Runtime) -> tuple[RunFolder, Config | None]:
    """Create the run folder, or recognise it as this run's, and lock it until RunFolder.unlock().

    Collective.

    Returns:
        The folder, and the configuration stored there (None in a new one).

    Raises:
        UserError: when it cannot be written, is in use, holds another run and --allow_changed is not given, or is not
            the same folder on every machine.
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
    """Prove that every process sees the folder that main writes in: on a machine of its own it may have another.

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
    # A name that nobody has asked for before: a network file system remembers for a while what was not there.
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
        f"--output_dir {path.parent}: process {rank} on {socket.gethostname()} does not see there what process 0 "
        f"writes ({path.parent.absolute()}); give the absolute path of a folder that all machines share"
    )
