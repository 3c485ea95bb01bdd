"""Make the standard streams of the process safe to print to: printing must never end a run.

A text that the encoding of a stream lacks is escaped, and what cannot be written is dropped. The bytes below
(`sys.stdout.buffer`) stay strict: a command whose output is data must learn that it was not written.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

from mtloop.errors import first_line

LAST_STANDARD_DESCRIPTOR = 2


class SafeStream(io.TextIOWrapper):
    """A text stream that drops what cannot be written; a failure of standard output is reported once."""

    _is_reported = False

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return super().write(text)
        except OSError as error:
            self._report(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, if possible."""
        try:
            super().flush()
        except OSError as error:
            self._report(error)

    def _report(self, error: OSError) -> None:
        is_first, self._is_reported = not self._is_reported, True
        if is_first and self is sys.stdout and not isinstance(error, BrokenPipeError):  # `| head` is no failure
            reason = first_line(error)
            print(f"mtloop: warning: standard output cannot be written ({reason}); continuing without", file=sys.stderr)


def make_streams_safe() -> None:
    """Replace the process's own standard output and error by safe streams, for the rest of the process.

    The streams of a notebook or a test, which are not the process's own, are left as they are. Closed descriptors are
    opened on the null device: otherwise the next file that is opened gets the number, and what is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD_DESCRIPTOR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started
            null = open(os.devnull, "wb")  # noqa: SIM115  # for the rest of the process
            setattr(sys, name, SafeStream(null, encoding="utf-8", errors="backslashreplace"))
        elif stream is getattr(sys, f"__{name}__") and not isinstance(stream, SafeStream):
            with contextlib.suppress(OSError):
                stream.flush()
            safe = SafeStream(
                stream.buffer,
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, safe)
