"""The parser of a command's flags."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from mtloop.errors import UserError

FLAG = re.compile(r"--[A-Za-z][\w-]*")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors of one line, and whose flags take hyphens for underscores."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words behind the command's name.

        Raises:
            UserError: naming the flag, and the nearest one if it is unknown.
            SystemExit: with status 0, after --help.
        """
        given, rest = self.parse_known_intermixed_args(words)
        if not rest:
            return given
        flag = rest[0].partition("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"{rest[0]}: unexpected argument; `{self.prog} --help` shows what is taken")
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        raise UserError(f"{flag}: no such flag" + (f", did you mean {near[0]}?" if near else f"; {self.prog} --help"))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what can be parsed, flags with hyphens too."""
        return super().parse_known_args(_underscored(args or []), namespace)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint."""
        raise UserError(" ".join(message.split()).removeprefix("argument "))


def _underscored(words: Sequence[str]) -> list[str]:
    """Write the flags among words with underscores; values, and all words behind a bare --, stay as they are."""
    end = words.index("--") if "--" in words else len(words)
    flags = [FLAG.match(word) for word in words[:end]]
    changed = [
        word if flag is None else f"--{flag[0][2:].replace('-', '_')}{word[flag.end() :]}"
        for word, flag in zip(words, flags, strict=False)
    ]
    return [*changed, *words[end:]]
