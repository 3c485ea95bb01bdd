"""Start programs the way a user does: the real `accelerate launch` with a file of accelerate_configs/.

PYTHON starts them from a process that has imported the libraries (`fork_server`); whoever tests the process itself (its
signals from outside, its parent, its launcher's death) starts sys.executable.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
# conftest exports it; a benchmark has no such process, and would measure it.
PYTHON = os.environ.get("MTLOOP_TESTS_PYTHON", sys.executable)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_file(name: str) -> Path:
    """Return the path of a file of accelerate_configs/ by its name without the ending."""
    return PROJECT / "accelerate_configs" / f"{name}.yaml"


def launcher_arguments(name: str, *flags: str) -> Any:
    """The launcher's arguments after it has merged the file into them, as it does before it starts anything."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = launch_command_parser().parse_args(["--config_file", str(launch_file(name)), *flags, "train.py"])
    merged, _, _ = _validate_launch_command(arguments)
    return merged


def launch_command(
    script: str | Path,
    *arguments: object,
    num_processes: int = 1,
    file: str | None = None,
    options: Sequence[str] = (),
    python: str = PYTHON,
) -> list[str]:
    """The command line of `accelerate launch` for 1 process (cpu.yaml) or several (multi_cpu.yaml), or with a file."""
    name = file or ("cpu" if num_processes == 1 else "multi_cpu")
    command = [python, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(launch_file(name))]
    if num_processes > 1:
        command += ["--num_processes", str(num_processes), "--main_process_port", str(free_port())]
    return [*command, *options, str(script), *map(str, arguments)]


def start_command(script: str | Path, *arguments: object, num_processes: int = 1, python: str = PYTHON) -> list[str]:
    """The command line of a run: plain python for 1 process, which spares the launcher's start, else launch_command."""
    if num_processes == 1:
        return [python, str(script), *map(str, arguments)]
    return launch_command(script, *arguments, num_processes=num_processes, python=python)


def environment(**extra: str) -> dict[str, str]:
    """The test's own environment, with the project importable and nothing of a launcher in it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_"))}
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return {**clean, "PYTHONPATH": path, **extra}


def run(
    command: list[str], *, timeout_s: float = 300, cwd: Path = PROJECT, **extra: str
) -> subprocess.CompletedProcess:
    """Run a command to its end and return what it printed."""
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), timeout=timeout_s, capture_output=True, text=True, check=False
    )


def launch(script: str | Path, *arguments: object, num_processes: int = 1, timeout_s: float = 300, **how: Any) -> str:
    """Launch to a successful end, as launch_command says; return standard output.

    Raises:
        AssertionError: with what was printed, for a non-zero status.
    """
    done = run(launch_command(script, *arguments, num_processes=num_processes, **how), timeout_s=timeout_s)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout
