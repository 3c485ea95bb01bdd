"""One piece of work at a time beside the loop. Must not know what it is."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Does work in a thread that the process waits for at its end; what goes wrong there is raised at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin work and return; the work before it must be finished."""
        assert self._thread is None

        def do() -> None:
            try:
                work()
            except Exception as error:  # raised where the loop asks
                self._error = error

        # No daemon: Python's exit would cut it off in the middle.
        self._thread = threading.Thread(target=do, name="mtloop-checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait for the work under way; raise what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what the work has failed with, once; wait for nothing."""
        error, self._error = self._error, None
        if error is not None:
            raise error
