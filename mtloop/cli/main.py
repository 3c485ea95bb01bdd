"""`mtloop COMMAND ...`: one parser, one place for errors and exit statuses.

A command is a module of this package with a function `register(add)`: it calls `add(name, run, ...)` once and adds its
flags to the parser that comes back. Heavy imports belong into `run`, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import mtloop
import mtloop.cli
from mtloop.errors import ProcessFailed, RunFailed, UserError

FLAG = re.compile(r"--[A-Za-z][\w-]*")
# Takes the parsed flags; returns the exit status, None for 0.
Run = Callable[[argparse.Namespace], "int | None"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors of one line, and whose flags take hyphens for underscores."""

    def __init__(self, *, run: Run | None = None, takes_rest: bool = False, **options: Any) -> None:
        """Create the parser of a command.

        Args:
            run: Called with what was parsed.
            takes_rest: Put words that the parser has no place for into `rest` instead of refusing them.
            options: Those of argparse.ArgumentParser.
        """
        super().__init__(allow_abbrev=False, **options)
        self.run, self.takes_rest = run, takes_rest

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words behind the command's name.

        Raises:
            UserError: naming the flag, and the nearest one if it is unknown.
            SystemExit: with status 0, after --help.
        """
        words = [FLAG.sub(lambda flag: "--" + flag[0][2:].replace("-", "_"), word, count=1) if FLAG.match(word) else word
                 for word in words]  # fmt: skip
        if self.takes_rest:
            given, given_rest = self.parse_known_args(words)
            given.rest = given_rest
            return given
        given, rest = self.parse_known_intermixed_args(words)
        if not rest:
            return given
        flag = rest[0].partition("=")[0]
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1) if flag.startswith("-") else []
        remedy = f"did you mean {near[0]}?" if near else f"`{self.prog} --help` lists the flags"
        self.error(f"{rest[0]}: {'no such flag' if flag.startswith('-') else 'nothing takes this word'}; {remedy}")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint."""
        raise UserError(re.sub(r"^argument ((?:-o/)?--\w+): ", r"\1: ", " ".join(message.split())))


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, Parser]]:
    """Return the program's parser, and that of each command by its name."""
    prog = "mtloop" if Path(sys.argv[0]).stem == "mtloop" else "python -m mtloop"
    parser = argparse.ArgumentParser(prog=prog, description="Train and use translation models.")
    parser.add_argument("--version", action="version", version=f"mtloop {mtloop.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)

    def add(name: str, run: Run, *, help: str, description: str | None = None, **options: Any) -> Parser:
        made: Parser = commands.add_parser(name, run=run, help=help, description=description or help, **options)
        return made

    for module in pkgutil.iter_modules(mtloop.cli.__path__):
        if register := getattr(importlib.import_module(f"mtloop.cli.{module.name}"), "register", None):
            register(add)
    return parser, dict(commands.choices)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names.

    Returns:
        Its exit status: 0 done; 1 it failed; 2 the user's mistake, in one line; 130 Ctrl-C; other ones as it says.

    Raises:
        SystemExit: with status 0, after --help or --version.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return reported(lambda: _run(words))


def _run(words: list[str]) -> int:
    parser, commands = build_parser()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    name, *rest = words
    if name.startswith("-"):
        parser.parse_args([name])  # --help and --version end here
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"`{parser.prog} --help` lists them"
        raise UserError(f"{name}: no such {'flag' if name.startswith('-') else 'command'}; {remedy}")
    command = commands[name]
    assert command.run is not None
    try:
        return command.run(command.parse(rest)) or 0
    except BrokenPipeError:  # whoever read the output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def reported(work: Callable[[], int]) -> int:
    """Do work and return its status; what ends it early is printed in one line and has a status of its own."""
    try:
        return work()
    except UserError as error:
        return report(str(error), 2)
    except ProcessFailed as error:
        return report(str(error), 1, is_alone=True)
    except RunFailed as error:
        return report(str(error), 1)
    except KeyboardInterrupt as error:
        return status_of(int(getattr(error, "number", signal.SIGINT)))


def report(message: str, status: int, *, is_alone: bool = False) -> int:
    """Print one line on standard error, from the first process or from this one if it failed alone; return `status`."""
    rank = os.environ.get("RANK", "0")
    if is_alone and "RANK" in os.environ:
        message = f"process {rank}: {message}"
    if rank == "0" or is_alone:
        print(f"mtloop: {'error' if status in (1, 2) else 'stopped'}: {message}", file=sys.stderr, flush=True)
    return status


def status_of(stop_signal: int | None) -> int:
    """Return the exit status of a run that a signal stopped: 128 + its number, 0 for none and for USR1."""
    return 0 if stop_signal in (None, signal.SIGUSR1) else 128 + int(stop_signal or 0)
