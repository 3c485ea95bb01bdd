"""Start the processes of a launch file with accelerate's launcher, pass stop signals on, and return their status.

`accelerate launch` ends with 1 for every status and prints a traceback; and it kills its processes 30 s after a signal,
or, where it started a single one, leaves that behind.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import psutil

from mtloop.errors import RunFailed, UserError, described
from mtloop.runtime.signals import STAYING_IGNORED, STOP_SIGNALS, Interrupted, restore_handlers

# Ctrl-C so many times kills what does not end.
INTERRUPTS_TO_KILL = 3

Launcher = Callable[[argparse.Namespace], None]


class _Ended(Exception):
    """Raised when a process ended with another status than 0; negative for a signal, as of Popen."""

    def __init__(self, rank: int, status: int) -> None:
        super().__init__(rank, status)
        self.rank = rank
        self.status = status


class PassedOn:
    """Pass each stop signal of this process on to the processes that it starts from now on, once.

    They have separate sessions: the terminal's Ctrl-C reaches this process alone.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._others = psutil.Process().children()  # of a notebook, for example
        self._old = {
            number: signal.signal(number, self._take)
            for number in STOP_SIGNALS
            if not (number in STAYING_IGNORED and signal.getsignal(number) == signal.SIG_IGN)
        }

    def restore(self) -> None:
        restore_handlers(self._old)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)
        children = [child for child in psutil.Process().children() if child not in self._others]
        if not children:  # a process that starts just now finds its launcher gone
            raise Interrupted(number)
        is_last = self.numbers.count(signal.SIGINT) >= INTERRUPTS_TO_KILL
        for child in children:
            try:
                child.send_signal(signal.SIGKILL if is_last else number)
            except psutil.NoSuchProcess:
                continue


def launch(config_file: Path, words: Sequence[str], command: Callable[[str], None]) -> int:
    """Run a command of mtloop with a launch file and return the status of the process that failed first, else 0.

    Args:
        config_file: The launch file.
        words: Flags of accelerate's launcher, then the command with its flags.
        command: Called with the command's name; raises UserError for one that is not to be launched.

    Raises:
        UserError: of a flag of the launcher, or of the launch file.
        RunFailed: A process was killed, or the launchers of several machines could not connect.
        Interrupted: by a signal before there were processes, or by a second Ctrl-C.
    """
    passed_on = PassedOn()
    level = logging.root.manager.disable
    try:
        from accelerate.commands import launch as accelerate_launch

        arguments = _parse(config_file, words)
        command(arguments.training_script)
        arguments.training_script_args = [arguments.training_script, *arguments.training_script_args]
        arguments.module, arguments.training_script = True, "mtloop"
        # Its table of failed processes and its lines on each signal: the processes report themselves.
        logging.disable(logging.ERROR)
        with _supervised(accelerate_launch):
            accelerate_launch.launch_command(arguments)
    except _Ended as end:
        return _status_of(end, passed_on.numbers)
    except (UserError, RunFailed):
        raise
    except (ValueError, ImportError, ConnectionError) as error:
        raise UserError(
            f"mtloop launch: {described(error).rstrip('.')}. Change the flag or the launch file."
        ) from error
    except Exception as error:
        raise RunFailed(f"mtloop launch: {described(error).rstrip('.')}. Run the same command again.") from error
    finally:
        logging.disable(level)
        passed_on.restore()
    return 0


def _parse(config_file: Path, words: Sequence[str]) -> argparse.Namespace:
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()

    def refuse(message: str) -> NoReturn:
        problem = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)  # --flag_name/--flag-name
        raise UserError(f"mtloop launch: {problem}. Flags of accelerate launch come before the command.")

    parser.error = refuse
    return parser.parse_args(["--config_file", str(config_file), *words])


@contextlib.contextmanager
def _supervised(module: ModuleType) -> Iterator[None]:
    """Replace the functions of accelerate's module that start processes of this machine; those of TPUs stay."""
    several = ("multi_gpu_launcher", "deepspeed_launcher")  # the first one for FSDP too
    replaced: dict[str, Launcher] = {name: partial(_start_several, getattr(module, name)) for name in several}
    replaced["simple_launcher"] = _start_one
    originals = {name: getattr(module, name) for name in replaced}
    for name, start in replaced.items():
        setattr(module, name, _beside(start))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _beside(start: Launcher) -> Launcher:
    """Return a launcher that works in a thread: in the main one, torch's would take the signals, and stop at the first.

    Handlers of signals run in the main thread, which waits here.
    """

    def work(arguments: argparse.Namespace, errors: list[BaseException]) -> None:
        try:
            start(arguments)
        except BaseException as error:
            errors.append(error)

    def run(arguments: argparse.Namespace) -> None:
        errors: list[BaseException] = []
        thread = threading.Thread(target=work, args=(arguments, errors), daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    return run


def _start_one(arguments: argparse.Namespace) -> None:
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(arguments)
    if status := subprocess.Popen(command, env=environment, start_new_session=True).wait():
        raise _Ended(0, status)


def _start_several(original: Launcher, arguments: argparse.Namespace) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        original(arguments)
    except ChildFailedError as error:
        first, failure = error.get_first_failure()
        # The others are there too, most of them ended by the launcher's own TERM. Of two that ended in the same second
        # one that was killed is the cause.
        ranks = [rank for rank, one in error.failures.items() if one.timestamp == failure.timestamp]
        killed = [rank for rank in ranks if error.failures[rank].exitcode not in (*range(256), -signal.SIGTERM)]
        rank = (killed or [first])[0]
        raise _Ended(rank, error.failures[rank].exitcode) from error


def _status_of(end: _Ended, numbers: Sequence[int]) -> int:
    """Return the status of a process that ended by itself.

    Raises:
        Interrupted: It left at the second Ctrl-C without saving.
        RunFailed: A signal from elsewhere killed it.
    """
    if end.status >= 0:
        return end.status
    if signal.SIGINT in numbers:
        raise Interrupted(signal.SIGINT)
    name = signal.Signals(-end.status).name
    hint = ", often for lack of memory" if -end.status == signal.SIGKILL else ""
    raise RunFailed(f"mtloop launch: process {end.rank} was killed by {name}{hint}. Run the same command again.")
