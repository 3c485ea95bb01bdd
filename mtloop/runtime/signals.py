"""Handle the stop signals of one process, and the death of its launcher. Must not know other ranks.

A signal is stored; the trainer checks it between updates and between batches of an evaluation. Before training there
is nothing to save: the signal then ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import psutil

from mtloop.errors import render_line
from mtloop.runtime.failures import could_not_meet

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
# Ignored from the start they stay so: HUP under nohup, INT in a shell's background. A batch script that ignores TERM
# and USR1 means its launcher alone.
STAYING_IGNORED = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]

# Who takes over a process whose parent has died, besides process 1.
TAKERS_OF_ORPHANS = ("init", "systemd", "tini", "dumb-init", "docker-init", "catatonit")
NOBODY = 0  # no process has this id


class Interrupted(KeyboardInterrupt):
    """Raised for a stop signal. Not an Exception: libraries must not handle it as an error."""

    _render_traceback_ = render_line

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Store the signals that stop a run.

    Attributes:
        number: The first signal that came, None before it.
        launcher: The process of `accelerate launch` or `mtloop launch` that started this one, NOBODY if it has died;
            None where there is none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.launcher = _find_launcher()
        self._pid = os.getpid()
        self._raises = True
        self._has_interrupt = False
        self._old_handlers: dict[int, Any] = {}

    def listen(self, *, raises: bool) -> None:
        """Take the signals from now on: raise Interrupted at once, or note them. A second INT always leaves at once.

        Processes that are forked later die of the signals.
        """
        self._pid, self._raises = os.getpid(), raises
        for number in STOP_SIGNALS:
            is_ignored = number in STAYING_IGNORED and signal.getsignal(number) == signal.SIG_IGN
            if number in self._old_handlers or is_ignored:
                continue
            with contextlib.suppress(ValueError):  # a notebook may run us outside the main thread
                self._old_handlers[number] = signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        # A forked process, such as one that tokenizes, only ends: while it is being forked Python swallows exceptions,
        # and its pool would wait for ever for it to end.
        is_forked = os.getpid() != self._pid
        if is_forked or (number == signal.SIGINT and self._has_interrupt):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._has_interrupt |= number == signal.SIGINT
        self.number = self.number or number
        if self._raises:
            raise Interrupted(number)

    @property
    def is_launcher_gone(self) -> bool:
        return self.launcher is not None and os.getppid() != self.launcher

    def check(self) -> int | None:
        """Return the signal that came, if one did; a launcher that is gone counts as TERM.

        Under one process accelerate's launcher passes no signal on: TERM, INT or USR1 kill it and orphan the trainer.
        """
        if self.number is None and self.is_launcher_gone:
            self.number = int(signal.SIGTERM)
        return self.number

    @contextlib.contextmanager
    def leaving_with_launcher(self, *, timeout_s: float) -> Iterator[None]:
        """End this process at once if its launcher dies meanwhile, or if this takes too long.

        For the time before there is anything to save, in which the processes meet. The launcher of several keeps the
        store at which they do: without it they would wait as long as --process_timeout lets them. And the process that
        gloo has wait for a connection waits without end if the one that should connect has failed (torch 2.13).
        """
        is_over, deadline = threading.Event(), time.monotonic() + timeout_s

        def leave(line: str, status: int) -> None:
            print(f"mtloop: {line}", file=sys.stderr, flush=True)
            os._exit(status)

        def watch() -> None:
            while not is_over.wait(0.2):
                if self.is_launcher_gone:
                    leave("stopped: the launcher is gone, before the training began", 128 + signal.SIGTERM)
                if time.monotonic() > deadline:
                    leave(f"error: process {os.environ.get('RANK', '0')}: {could_not_meet()}", 1)

        threading.Thread(target=watch, name="mtloop-launcher", daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def restore(self) -> None:
        """Restore the signal handlers: a notebook continues after the run."""
        restore_handlers(self._old_handlers)
        self._old_handlers.clear()


def restore_handlers(handlers: Mapping[Any, Any]) -> None:
    """Set the handlers that signal.signal has returned."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


def _find_launcher() -> int | None:
    """Return the process id of `accelerate launch` or `mtloop launch` if it is the parent, else None.

    Shells, nohup and schedulers come and go. A launcher that died before it was looked for counts as gone: its
    variables are there, and init is the parent.
    """
    try:
        parent = psutil.Process(os.getppid())
        words, name = parent.cmdline(), parent.name()
    except psutil.Error:
        return None
    if any("accelerate-launch" in word for word in words[:3]):
        return parent.pid
    names = [os.path.basename(word) for word in words[:4]]
    if "launch" in words and any("accelerate" in name or name == "mtloop" for name in names):
        return parent.pid
    was_launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    return NOBODY if was_launched and (parent.pid == 1 or name in TAKERS_OF_ORPHANS) else None
