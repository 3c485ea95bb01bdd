"""What the commands that run a model share: their parser, the flags of model and hardware, and their exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from mtloop.config import HardwareConfig
from mtloop.errors import RunFailed, UserError
from mtloop.runtime.quiet import silence_libraries

if TYPE_CHECKING:
    from mtloop.runtime import Runtime


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

    silence_libraries()
    return Runtime(
        HardwareConfig(mixed_precision=given.mixed_precision, use_cpu=given.use_cpu, cpu_threads=given.cpu_threads)
    )


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
