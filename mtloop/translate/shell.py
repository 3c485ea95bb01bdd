"""What the commands that run a model share: their parser, the flags of model and hardware, and their exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mtloop.config import Config, HardwareConfig
from mtloop.errors import RunFailed, UserError
from mtloop.run_folder import RunFolder

if TYPE_CHECKING:
    from mtloop.runtime import Runtime

# What an export says of itself: it makes a folder one.
RECORD_NAME = "mtloop_export.json"


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is a UserError of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(message)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add how a model is loaded, searches, and computes."""
    add = parser.add_argument
    add("--num_beams", type=int, metavar="N", help="beams of the search (none: the model's own, else 4)")
    add("--max_tokens_per_batch", type=int, default=2000, metavar="N", help="source tokens of a batch: memory (2000)")
    add(
        "--mixed_precision", choices=("no", "bf16", "fp16", "auto"), help="arithmetic (none: what the launch file says)"
    )
    add("--use_cpu", action="store_true", help="although an accelerator is present")
    add("--cpu_threads", type=int, metavar="N", help="CPU threads a process (none: the cores shared out)")
    add("--trust_remote_code", action="store_true", help="run code that the model's repository brings along")


def check_counts(given: argparse.Namespace, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        UserError: naming the flag.
    """
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give a whole number of at least 1")


def start_runtime(given: argparse.Namespace) -> Runtime:
    """Start the processes' common ground as the flags say. Collective."""
    from mtloop.runtime import Runtime
    from mtloop.tracking import silence_libraries

    silence_libraries()
    return Runtime(
        HardwareConfig(mixed_precision=given.mixed_precision, use_cpu=given.use_cpu, cpu_threads=given.cpu_threads)
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column to the right and as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def reported(work: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Do a command's work, and return its status: 0; 1 it failed; 2 the user's mistake, in one line; 130 Ctrl-C."""
    try:
        work(argv)
    except (UserError, RunFailed) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"mtloop: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # whoever read the output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def stored_config(model: str) -> Config | None:
    """The configuration that a model was trained with: of a run folder, or beside a checkpoint; None without one."""
    path = Path(model)
    for folder in (path, path.parent, path.parent.parent):  # RUN, RUN/final, RUN/checkpoints/step_N
        if path.is_dir() and (folder / "config.yaml").is_file():
            return RunFolder(folder).stored_config()
    return None
