"""The errors that end a run with one line: the user's mistakes, status 2, and failures of the run, status 1."""

import re


class UserError(ValueError):
    """A mistake of the user: one line that names the flag or file:line and the remedy. Exit status 2."""


class FieldError(UserError):
    """An invalid setting. A reader of a file adds the line of the field `name`."""

    def __init__(self, name: str, problem: str, *, got: object, remedy: str = "") -> None:
        super().__init__(f"--{name}: {problem} (got {got}). {remedy}".rstrip())
        self.name = name


class RunFailed(RuntimeError):
    """The run itself failed (disk, a rank, a non-finite gradient): one line on what happened. Exit status 1."""


class ProcessFailed(RunFailed):
    """One process failed alone, and the others cannot be asked any more: each reports for itself.

    Attributes:
        is_lost_peer: Whether it only saw that another one is gone, which knows more about the reason.
    """

    def __init__(self, message: str, *, is_lost_peer: bool = False) -> None:
        super().__init__(message)
        self.is_lost_peer = is_lost_peer


def renamed(error: UserError, flag: str) -> UserError:
    """Return a loader's error, which names train.py's flags, with the flag by which a command named the model."""
    return UserError(re.sub(r"(--tokenizer_name / )?--model_name_or_path|--model(?= )", flag, str(error)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
