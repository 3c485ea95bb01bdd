"""A run that is killed again and again: start one life of it, kill it, and say what it left."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mtloop.atomic import read_json_lines
from mtloop.checkpoint.listing import find_corruption, list_checkpoints
from mtloop.run_folder import RunFolder
from tests.support.launch import PROJECT, PYTHON, environment, start_command


def newest_sound(folder: Path) -> int | None:
    """The step of the newest checkpoint whose hashes hold."""
    sound = [step for step, path in list_checkpoints(RunFolder(folder)) if not find_corruption(path)]
    return sound[-1] if sound else None


def last_step(folder: Path) -> int:
    """The newest step of metrics.jsonl: the output has a line every 30 s."""
    return max((line["step"] for line in read_json_lines(folder / "metrics.jsonl")), default=0)


def wait_for_step(folder: Path, step: int, *, timeout_s: float = 120) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + timeout_s
    while last_step(folder) < step:
        assert time.monotonic() < deadline, folder
        time.sleep(0.01)


def leftovers(folder: Path) -> list[str]:
    """Hidden names, but for the lock."""
    hidden = [*folder.glob(".*"), *folder.glob("checkpoints/.*"), *folder.glob("tokenizer/.*")]
    return sorted(path.name for path in hidden if path.name != ".lock")


@dataclass
class Life:
    """One start of the run, in a process group of its own; its output is collected in a file.

    Of several processes, and where `is_real`, it is Python itself: launcher and ranks are parent and children.
    """

    folder: Path
    flags: list
    num_processes: int
    script: list = field(default_factory=lambda: ["train.py"])
    command: Callable = start_command
    is_real: bool = False
    process: subprocess.Popen = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder.with_suffix(".log")
        words = [*self.script, *self.flags, "--output_dir", self.folder]
        self.process = subprocess.Popen(
            self.command(
                *words,
                num_processes=self.num_processes,
                python=sys.executable if self.is_real or self.num_processes > 1 else PYTHON,
            ),
            cwd=PROJECT,
            env=environment(),
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def processes(self) -> list[psutil.Process]:
        """The first process (the launcher, where there is one), then its children: its ranks, then theirs."""
        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(self.process.pid)
            return [launcher, *launcher.children(recursive=True)]
        return []

    def wait_for(self, is_there, *, timeout_s: float = 120) -> bool:
        """Wait until is_there() or the end of the life; return whether it is there. Looks every millisecond."""
        deadline = time.monotonic() + timeout_s
        while not is_there():
            assert time.monotonic() < deadline, self.output[-3000:]
            if self.is_over:
                return False
            time.sleep(0.001)
        return True

    def has_printed(self, pattern: str) -> bool:
        return re.search(pattern, self.output) is not None

    @property
    def last_step(self) -> int:
        """The newest step of metrics.jsonl."""
        return last_step(self.folder)

    def is_saving(self) -> bool:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / "checkpoints") as entries:
            return any(entry.name.startswith(".tmp-step_") for entry in entries)
        return False

    def kill(self, victims: list[psutil.Process]) -> None:
        """Kill -9 the victims, and wait until nothing of this life is left: launchers and gloo end the others."""
        whole = self.processes()
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(whole, timeout=90)
        assert not alive, [process.cmdline() for process in alive]
        self.process.wait()


def choose_victims(life: Life, rng: random.Random) -> list[psutil.Process]:
    """All processes most of the time; of several ranks now and then the launcher or one rank alone."""
    processes = life.processes()
    if life.num_processes > 1 and len(processes) > life.num_processes and rng.random() < 0.3:
        return [rng.choice(processes[: life.num_processes + 1])]
    return processes
