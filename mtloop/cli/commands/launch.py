"""Run a command with a launch file: on several processes, GPUs or machines.

`mtloop launch multi_gpu --num_processes 4 train kde4-en-fr`. FILE is one that `mtloop configs` lists, or the path of
your own. Flags of `accelerate launch` follow it, then the command with its flags: train, translate, evaluate, average,
corpus or export. The exit status is that of the command. A signal such as Ctrl-C reaches every process once, and all
end by themselves; the third Ctrl-C kills them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import mtloop
from mtloop.cli.launch_files import launch_file
from mtloop.cli.main import Parser
from mtloop.errors import UserError

LAUNCHED = ("train", "translate", "evaluate", "average", "corpus", "export")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.usage = f"{parser.prog} FILE [flags of accelerate launch] COMMAND [flags of the command]"
    parser.add_argument("file", metavar="FILE", help="a launch file: a name of `mtloop configs`, or a path")
    parser.add_argument("words", nargs="+", metavar="COMMAND", help="flags of `accelerate launch`, then the command")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the launch file; accelerate's launcher reads the rest."""
    parser = Parser(prog=f"{mtloop.program()} launch", description=__doc__, allow_abbrev=False)
    add_flags(parser)
    if len(words) < 2 or words[0].startswith("-"):
        return parser.parse(words)
    return argparse.Namespace(file=words[0], words=list(words[1:]))


def run(given: argparse.Namespace) -> int:
    """Run the command; return the status of the command that it started."""
    from mtloop.runtime.launcher import launch

    if given.functions:
        raise UserError("metrics: not passed on to other processes. Use accelerate.notebook_launcher(main, ...).")
    return launch(launch_file("FILE", given.file), given.words, _check)


def _check(name: str) -> None:
    if name not in LAUNCHED:
        raise UserError(
            f"mtloop launch: not a command for several processes (got {name}). Give one of {', '.join(LAUNCHED)}."
        )
