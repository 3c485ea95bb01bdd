"""Errors in one line, and the exit statuses of train.py and of the commands."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from mtloop.errors import ProcessFailed, RunFailed, UserError, first_line, is_shared, one_line, out_of_resources
from mtloop.runtime.streams import make_streams_safe
from mtloop.terminal import styled

# In which the launcher ends a process whose mistake the first process of the machine has made and reported too.
LAUNCHER_ENDS_OTHERS_S = 5.0
Show = Callable[[str, int], object]
INVALID_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.ENOTDIR)


class StdoutClosed(Exception):
    """Raised when the reader of standard output has gone (`| head`)."""


@contextlib.contextmanager
def writing(target: object, *, flag: str = "-o") -> Iterator[None]:
    """Turn errors of the disk into UserErrors that name the flag and the target."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag} {target}: cannot be written ({first_line(error)}). Give another place.") from error


def print_line(line: str, status: int) -> None:
    """Print what ended a program early on standard error."""
    head = styled("mtloop: error:", "red", sys.stderr) if status in (1, 2) else "mtloop: stopped:"
    print(f"{head} {line}", file=sys.stderr, flush=True)


def reported(work: Callable[[], int], *, interrupted: str = "", show: Show = print_line) -> int:
    """Do work and return its status; show what ends it early in one line.

    Args:
        work: Returns the status.
        interrupted: Appended to the name of a signal.
        show: Called with the line and the status, in the first process or in one that failed alone.

    Returns:
        The status of `work`; 1 if it failed; 2 for a mistake of the user; 128 + its number for a signal.
    """
    make_streams_safe()
    try:
        return work()
    except (UserError, RunFailed) as error:
        return report(str(error), 2 if isinstance(error, UserError) else 1, is_alone=_is_alone(error), show=show)
    except KeyboardInterrupt as error:
        number = int(getattr(error, "number", signal.SIGINT))
        return report(f"{signal.Signals(number).name}{interrupted}", status_of(number), show=show)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in INVALID_PATH and error.filename is not None:
            # Of a path that a flag or a file names, wherever it is first looked up.
            mistake = UserError(f"{error.filename}: {first_line(error)}. Give another path.")
            return report(str(mistake), 2, is_alone=_is_alone(mistake), show=show)
        failure = out_of_resources(error)
        if failure is None:
            raise
        return report(str(failure), 1, is_alone=True, show=show)


def _is_alone(error: UserError | RunFailed) -> bool:
    """Return True if this process must report an error itself, because process 0 does not report it.

    An error that is not shared may still be that of all processes of a machine, such as a mistyped flag. The first of
    them reports it at once and ends, and the launcher ends the others while they wait here.
    """
    if isinstance(error, ProcessFailed):
        return True
    if os.environ.get("RANK", "0") == "0" or is_shared(error):
        return False
    if os.environ.get("LOCAL_RANK", "0") != "0":
        try:
            time.sleep(LAUNCHER_ENDS_OTHERS_S)
        except KeyboardInterrupt:  # the launcher's signal
            return False
    return True


def report(message: str, status: int, *, is_alone: bool = False, show: Show = print_line) -> int:
    """Show one line, from the first process or from one that failed alone; return the status."""
    rank = os.environ.get("RANK", "0")
    if is_alone and "RANK" in os.environ:
        message = f"process {rank}: {message}"
    if rank == "0" or is_alone:
        show(one_line(message), status)
    return status


def status_of(stop_signal: int | None) -> int:
    """Return the exit status of a run that a signal stopped: 128 + its number; 0 for USR1 and for no signal."""
    return 0 if stop_signal in (None, signal.SIGUSR1) else 128 + int(stop_signal or 0)
