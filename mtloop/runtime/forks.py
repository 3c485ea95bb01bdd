"""Fork the processes of a run from a notebook's kernel, whose threads and Accelerator they cannot use.

Must not know what the processes do. Imports accelerate and torch where it uses them: mistakes answer before.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import TextIO

from mtloop.errors import UserError

# In which processes that were interrupted with the kernel save and end, before they are told to.
INTERRUPT_S = 2.0

_may_use_threads = False


def is_launched_fork() -> bool:
    """Return True in a process that a launcher has forked: what it returns or raises does not reach the cell."""
    is_rank = "RANK" in os.environ or "FORK_LAUNCHED" in os.environ  # of elastic_launch; of torch_xla
    return is_rank and multiprocessing.parent_process() is not None


def is_limited_to_one_thread() -> bool:
    """Return True in a fork whose OpenMP may believe in threads that only its parent has.

    A fork has one thread. If that one had computed with several, GCC's OpenMP waits for the others for ever at the next
    operation on several threads (torch 2.13 on a CPU).
    """
    is_fork = getattr(multiprocessing.current_process(), "_start_method", None) == "fork"
    return is_fork and not _may_use_threads


def fork_ranks(work: Callable[[], None], num_processes: int) -> BaseException | None:
    """Run work on this number of forked processes, wait for all, and return what the launcher raised.

    They are forked from a new thread, whose OpenMP has no other threads (is_limited_to_one_thread). A KeyboardInterrupt
    is for the processes: they save and end.

    Raises:
        UserError: if this process has used its GPU, which no fork can use then.
    """
    import torch
    from accelerate import notebook_launcher

    if torch.cuda.is_initialized():
        raise UserError(
            f"num_processes: this process has used the GPU already, and its forks cannot use it (got {num_processes}). "
            "Restart the kernel and train before a GPU is used, or give num_processes=1."
        )
    out = sys.stdout  # the launcher prints "Launching training on 2 CUDAs." on a machine without one (accelerate 1.15)
    errors: list[BaseException] = []
    is_over = threading.Event()  # a join() that is interrupted takes the thread for one that has ended (Python 3.11)

    def launch() -> None:
        try:
            with set_aside(), _quiet_elastic(), contextlib.redirect_stdout(io.StringIO()):
                notebook_launcher(_fork, args=(work, out), num_processes=num_processes, use_port=str(free_port()))
        except BaseException as error:
            errors.append(error)
        finally:
            is_over.set()

    others = set(multiprocessing.active_children())
    threading.Thread(target=launch, name="mtloop-launch").start()
    while not is_over.is_set():
        try:
            is_over.wait()
        except KeyboardInterrupt:
            _stop_children(is_over, others)
    return errors[0] if errors else None


def _fork(work: Callable[[], None], out: TextIO) -> None:
    global _may_use_threads
    _may_use_threads = True
    sys.stdout = out
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would be off after a fork, with a warning
    work()


def _stop_children(is_over: threading.Event, others: set[BaseProcess]) -> None:
    """End the processes that were not interrupted too: a kernel's interrupt goes to its group, or to it alone."""
    with contextlib.suppress(KeyboardInterrupt):
        if not is_over.wait(INTERRUPT_S):
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Let a run create its Accelerator; restore the one that a Translator holds afterwards."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, content in zip(states, kept, strict=True):
            state.clear()
            state.update(content)


@contextlib.contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Keep torch's report on a failed process out of the cell: the error that is raised says more."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
