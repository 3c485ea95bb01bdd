"""Errors that end a run with one line: mistakes of the user (status 2) and failures of the run (status 1)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar


class UserError(ValueError):
    """A mistake of the user: one line with the flag or file:line, the problem and the remedy. Exit status 2.

    Attributes:
        is_shared: True if every process of the run raises it: the first one reports it.
    """

    is_shared = False


class FieldError(UserError):
    """An invalid setting. A reader of a file adds the line of the field `name`."""

    def __init__(self, name: str, problem: str, *, got: object, remedy: str = "") -> None:
        super().__init__(f"--{name}: {problem} (got {got}). {remedy}".rstrip())
        self.name = name


class RunFailed(RuntimeError):
    """A failure of the run (disk, process, non-finite gradient): one line. Exit status 1.

    Attributes:
        is_shared: As of UserError.
    """

    is_shared = False


# Of a message; a text that it quotes may be longer.
MAX_CHARACTERS = 4_000

E = TypeVar("E", bound=UserError | RunFailed)


class ProcessFailed(RunFailed):
    """A failure of one process that cannot reach the others any more: each reports its own.

    Attributes:
        is_lost_peer: True if the process only found another one gone, whose error names the reason.
    """

    def __init__(self, message: str, *, is_lost_peer: bool = False) -> None:
        super().__init__(message)
        self.is_lost_peer = is_lost_peer


def shared(error: E) -> E:
    """Mark an error that every process of the run raises: the first one reports it."""
    error.is_shared = True
    return error


def is_shared(error: BaseException | None) -> bool:
    """Return True if every process of the run raises the error, or the one that it was made from."""
    while error is not None:
        if getattr(error, "is_shared", False):
            return True
        error = error.__cause__
    return False


def rename_flag(error: UserError, flag: str) -> UserError:
    """Return the error of a loader with the flag of a command instead of --model_name_or_path of train.py."""
    return UserError(re.sub(r"(--tokenizer_name / )?--model_name_or_path|--model(?= )", flag, str(error)))


def first_line(error: BaseException) -> str:
    """Return the system's text of an OSError, else the first line of an error's message, or its type."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def one_line(text: str) -> str:
    """Return a message as one line that a terminal shows as it is; the middle of a very long one is left out."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS // 2]} ... {line[-MAX_CHARACTERS // 2 :]}"


def unwritable(path: Path, error: BaseException) -> RunFailed:
    """Return the error of a run that cannot write a file or folder."""
    return RunFailed(f"{path}: cannot be written ({first_line(error)}). Free disk space, or make the folder writable.")
