"""`mtloop COMMAND ...`: the parser of the commands.

A command is a module of mtloop.cli.commands: the first line of its docstring is its help, the rest its description;
`add_flags(parser)` adds its flags, and `run(given)` gets what was parsed and returns the exit status (None for 0). One
that reads its words itself has `parse(words)` instead of add_flags. Only the module of the chosen command is imported.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import mtloop
from mtloop.cli.status import Show, StdoutClosed, print_line, reported
from mtloop.config.fields import is_unicode
from mtloop.config.foreign import refuse_secrets
from mtloop.errors import UserError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from mtloop.evaluation.selection import Functions

COMMANDS = "mtloop.cli.commands"
FLAG = re.compile(r"--[A-Za-z][\w-]*")


def main(argv: Sequence[str] | None = None, metrics: Functions = (), show: Show = print_line) -> int:
    """Run the command that the first word names.

    Args:
        argv: The words; None for those of the command line.
        metrics: Functions of the user's that score translations, as in mtloop.main.
        show: Called with the line and the status of what ends the command early.

    Returns:
        Its exit status: 0 done; 1 it failed; 2 a mistake of the user, in one line; 130 Ctrl-C; others by command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return reported(lambda: _run(words, metrics), show=show)


def _run(words: list[str], functions: Functions) -> int:
    prog = mtloop.program()
    commands = command_files()
    refuse_secrets(words)
    if not words or words[0].startswith("-"):
        return _describe(prog, commands, words)
    name, *rest = words
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"{prog} --help lists the commands."
        raise UserError(f"{prog}: no such command (got {name!r}). {remedy}")
    command = importlib.import_module(f"{COMMANDS}.{name}")
    try:
        if hasattr(command, "parse"):
            given = command.parse(rest)
        else:
            parser = Parser(prog=f"{prog} {name}", description=command.__doc__, allow_abbrev=False)
            command.add_flags(parser)
            given = parser.parse(rest)
        given.functions = functions
        return command.run(given) or 0
    except SystemExit as error:  # --help
        if isinstance(error.code, str):
            raise
        return error.code or 0
    except StdoutClosed:
        return 0


def command_files() -> dict[str, Traversable]:
    """Return the file of each command by its name."""
    modules = (file for file in files(COMMANDS).iterdir() if file.name.endswith(".py") and file.name[0] != "_")
    return {file.name[: -len(".py")]: file for file in sorted(modules, key=lambda file: file.name)}


def _help(file: Traversable) -> str:
    """Return the first line of a command's docstring, without importing it."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def _describe(prog: str, commands: dict[str, Traversable], words: list[str]) -> int:
    """Print the version or the list of commands; the latter on standard error without any word."""
    if words and words[0] == "--version":
        print(f"mtloop {mtloop.__version__}")
        return 0
    is_help = bool(words) and words[0] in ("-h", "--help")
    if words and not is_help:
        raise UserError(f"{words[0].partition('=')[0]}: no such flag. {prog} --help lists the commands.")
    lines = [f"usage: {prog} COMMAND ...", ""]
    lines += [f"  {name:<12}{_help(file)}" for name, file in commands.items()]
    lines += ["", f"{prog} COMMAND --help lists the flags of a command; {prog} --version prints the version"]
    print("\n".join(lines), file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors of one line, and whose flags take hyphens for underscores."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words behind the command's name.

        Raises:
            UserError: naming the flag, and the nearest one if it is unknown.
            SystemExit: with status 0, after --help.
        """
        check_unicode(words)
        given, rest = self.parse_known_intermixed_args(words)
        if not rest:
            return given
        flag = rest[0].partition("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"{rest[0]}: unexpected argument. {self.prog} --help lists what is accepted.")
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        raise UserError(
            f"{flag}: no such flag" + (f", did you mean {near[0]}?" if near else f". {self.prog} --help lists them.")
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what can be parsed, flags with hyphens too."""
        return super().parse_known_args(_underscored(args or []), namespace)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint."""
        raise UserError(" ".join(message.split()).removeprefix("argument "))


def check_unicode(words: Sequence[str]) -> None:
    """Refuse a word with bytes that are not UTF-8, which Python hands over as halves of surrogate pairs.

    Raises:
        UserError: naming the flag before the word, if there is one.
    """
    for before, word in pairwise(["", *words]):
        if not is_unicode(word):
            flag = FLAG.match(word) or FLAG.match(before)
            raise UserError(f"{flag[0] if flag else 'argument'}: not UTF-8 (got {word!a}). Give it in UTF-8.")


def _underscored(words: Sequence[str]) -> list[str]:
    """Write the flags among words with underscores; values, and all words behind a bare --, stay as they are."""
    end = words.index("--") if "--" in words else len(words)
    flags = [FLAG.match(word) for word in words[:end]]
    changed = [
        word if flag is None else f"--{flag[0][2:].replace('-', '_')}{word[flag.end() :]}"
        for word, flag in zip(words, flags, strict=False)
    ]
    return [*changed, *words[end:]]
