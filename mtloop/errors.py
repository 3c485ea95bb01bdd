"""The errors that end a run with one line: the user's mistakes, status 2, and failures of the run, status 1."""


class UserError(ValueError):
    """A mistake of the user: one line that names the flag or file:line and the remedy. Exit status 2."""


class FieldError(UserError):
    """A field holds a value it may not hold. `name` is the field, so that a reader of a file can add the line."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"--{name}: {problem}")
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
