"""The two ways a run may end badly, told apart so that train.py can pick its exit status."""


class UserError(ValueError):
    """A mistake of the user: one line that names the flag or file:line and the remedy. Exit status 2."""


class RunFailed(RuntimeError):
    """The run itself failed (disk, a rank, a non-finite gradient): one line on what happened. Exit status 1."""
