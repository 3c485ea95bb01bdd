"""Start Python programs as forks of the test process, which has imported the libraries: milliseconds, not seconds.

For programs that must be children of the test process, which those of `fork_server` are not: an upload ends with its
parent. For tests of what a program does, not of how it starts: its imports, hash seed, memory, command line and
environment as /proc shows them are those of the test process. What one of these programs starts is forked, too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from unittest import mock

from tests.support.fork_server import PASSED_ON, become

_start = getattr(subprocess, "_fork_exec", None)  # CPython 3.11 and later; with 3.10 every program starts as usual


@contextlib.contextmanager
def python_forked() -> Iterator[None]:
    """Let subprocess fork `sys.executable -m MODULE ...` and `-c CODE ...` instead of starting a new Python."""
    with mock.patch.object(subprocess, "_fork_exec", _fork) if _start else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def python_started() -> Iterator[None]:
    """Start a new Python as usual, inside python_forked()."""
    with mock.patch.object(subprocess, "_fork_exec", _start) if _start else contextlib.nullcontext():
        yield


def _fork(words: Sequence[Any], executables: Any, close_fds: bool, kept: Any, cwd: Any, env: Any, *how: Any) -> int:
    """Take the place of subprocess._fork_exec: the same arguments and result."""
    words = [os.fsdecode(word) for word in words]
    if words[0] != sys.executable or words[1] not in ("-m", "-c"):
        return _start(words, executables, close_fds, kept, cwd, env, *how)
    stdin, _, _, stdout, _, stderr = how[:6]
    pid = os.fork()
    if pid == 0:
        try:
            _run(words[1:], cwd, env, (stdin, stdout, stderr))
        finally:
            os._exit(70)
    return pid


def _run(words: list[str], cwd: Any, env: Any, streams: tuple[int, int, int]) -> NoReturn:
    """Be the program."""
    # Nothing of the parent is finalized here: its descriptors have another meaning, its files are still used.
    gc.freeze()
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    kept = [os.dup(own if own >= 0 else number) for number, own in enumerate(streams)]
    for number, stream in enumerate(kept):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # one of them tells the parent that the program has started
    environment = dict(os.environ)
    if env is not None:
        environment = dict(os.fsdecode(pair).split("=", 1) for pair in env)
    os.environ.clear()
    os.environ.update(environment)
    if constants := sys.modules.get("huggingface_hub.constants"):
        importlib.reload(constants)  # read from the environment
    warnings.simplefilter("ignore")  # runpy's, on modules that are imported already
    stdin = sys.stdin  # would close descriptor 0 if it were dropped
    request = {
        "words": words,
        "cwd": os.getcwd() if cwd is None else os.fsdecode(cwd),
        "env": environment,
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
        "is_unbuffered": False,
        "executable": sys.executable,
    }
    become(request)
    del stdin
