"""Push a run's epochs in order, each in a child process, while training continues.

One thread on the main process starts one child after another and waits for it: the training process itself does not
use the network. A part that cannot be pushed stays queued and is tried again. Errors are logged, never raised.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

import mtloop
from mtloop.hub.card import write_card
from mtloop.hub.client import DOUBTFUL, REQUEST_TIMEOUT_S, RETRY, answer, reason_of, without_token
from mtloop.hub.parts import (
    Part,
    Target,
    absent_epochs,
    commits_of,
    files_of,
    gone_commits,
    loss_of,
    missing_parts,
    record_push,
)
from mtloop.hub.upload import DONE, LOST, Commits
from mtloop.run_folder import RunFolder

FIRST_WAIT_S, MAX_WAIT_S = 1.0, 60.0
# After so many attempts that failed for an unknown reason, pushing stops.
MAX_DOUBTFUL = 8
NOT_IN_TIME = "not uploaded in time"
# After a signal: SIGKILL often follows within 30 s, part of which the save has used.
GRACE_S = 10.0
SLICE_S, PROGRESS_EVERY_S = 0.5, 15.0


@dataclass
class Attempts:
    """Count the failed attempts at a part, and hold the time of the next one, on the clock of time.monotonic()."""

    num_failed: int = 0
    num_doubtful: int = 0
    num_cut: int = 0
    not_before: float = 0.0
    is_asked_to_wait: bool = False


@dataclass(kw_only=True)
class Publisher:
    """Pushes parts of one run in order.

    Attributes:
        folder: The run folder.
        target: The repository and branch.
        say: Prints a line; also called from the background thread.
        push_timeout_s: Seconds after which a push is stopped and started again; doubled each time.
        with_training: Whether epochs include the state of training, to resume from.
        overwrite: Whether to replace tags of other runs.
        commits: Of the branch, as the Hub listed them; None if it was not asked: the journal says what is there.
        gone: Ids of commits in the journal that the branch no longer has.
        outcomes: The result of each part: "" if it is on the Hub, else the reason why not.
        attempts: At the first part of the queue.
    """

    folder: RunFolder
    target: Target
    say: Callable[[str], None]
    push_timeout_s: float
    with_training: bool = False
    overwrite: bool = False
    commits: Commits | None = None
    gone: frozenset[str] = field(init=False, default=frozenset())
    _known: set[str] = field(init=False, default_factory=set)
    outcomes: dict[Part, str] = field(default_factory=dict)
    _queue: list[Part] = field(default_factory=list)
    attempts: Attempts = field(default_factory=Attempts)
    _is_stopped: bool = False
    _child: subprocess.Popen[bytes] | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError):
            self._known = commits_of(self.folder, self.folder.run_record["run_id"])
        if self.commits is not None:
            self.gone = gone_commits(self.folder, self.target, self.commits)

    def push(self, part: Part) -> None:
        """Queue a part and return at once."""
        with self._changed:
            if part in self.outcomes:
                return
            self.outcomes[part] = "not tried yet"
            self._queue.append(part)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mtloop-publisher", daemon=True)
                self._thread.start()

    def push_missing(self, *, with_epochs: bool, before_step: int | None = None) -> None:
        """Queue the parts that missing_parts lists, and name the epochs that can no longer be pushed."""
        folder, target = self.folder, self.target
        if with_epochs and self.commits is not None and (absent := absent_epochs(folder, target, self.commits)):
            self.say(f"NOT on the Hub, and no checkpoint is left: epoch {', '.join(map(str, absent))}")
        for part in missing_parts(folder, target, with_epochs=with_epochs, before_step=before_step, gone=self.gone):
            self.push(part)

    def is_awaited(self, path: Path) -> bool:
        """Return True if a folder is still to be pushed: it must not be removed."""
        return any(outcome and part.folder == path for part, outcome in list(self.outcomes.items()))

    def wait(self, timeout_s: float) -> bool:
        """Wait for the queue to become empty; return False once it is, or pushing has stopped."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._is_stopped or not self._queue, timeout_s)

    def hurry(self) -> None:
        """Make the next attempt now, unless the server asked to wait: the end of the run depends on it."""
        with self._changed:
            if not self.attempts.is_asked_to_wait:
                self.attempts.not_before = 0.0
            self._changed.notify_all()

    @property
    def head(self) -> str:
        """Return the name of the part that is being pushed, and the number of parts left."""
        with self._changed:
            return f"{self._queue[0].name}, {len(self._queue)} left" if self._queue else "nothing left"

    def close(self) -> list[str]:
        """Kill the current push, and stop pushing.

        Returns:
            A line, name and reason, for each part that is not on the Hub.
        """
        with self._changed:
            self._is_stopped = True
            if self._child is not None:
                with contextlib.suppress(OSError):
                    self._child.kill()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=10.0)  # the child is killed, but a disk may hang
        return [f"{part.name}: {reason}" for part, reason in self.outcomes.items() if reason]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped or self._queue)
                while not self._is_stopped and (wait_s := self.attempts.not_before - time.monotonic()) > 0:
                    self._changed.wait(wait_s)
                if self._is_stopped:
                    return
                part = self._queue[0]
            try:
                found = self._attempt(part)
            except Exception as error:  # a full disk, or no new process
                found = answer(DOUBTFUL, reason_of(error))
            self._process(part, found)

    def _attempt(self, part: Part) -> dict[str, Any]:
        """Run one child process, and return its answer."""
        if reason := loss_of(part):
            return answer(LOST, reason)
        timeout_s = self.push_timeout_s * 2**self.attempts.num_cut
        job = {
            "repo_id": self.target.repo_id,
            "revision": self.target.revision,
            "key": part.key,
            "message": part.message,
            "description": part.describe(),
            "files": {
                **files_of(self.folder, part, with_training=self.with_training),
                "README.md": {"text": write_card(self.folder, part, self.target)},
            },
            "tag": None if part.epoch is None else self.target.tag_of(part.epoch),
            "tag_prefix": self.target.tag_prefix,
            "known": sorted(self._known),
            "overwrite": self.overwrite,
            "request_timeout_s": min(REQUEST_TIMEOUT_S, timeout_s),
            "parent": os.getpid(),
        }
        # Files, not pipes: a loader worker forked meanwhile would keep a pipe open.
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(json.dumps(job).encode() + b"\n")
            stdin.seek(0)
            with self._changed:
                if self._is_stopped:
                    return answer(RETRY, NOT_IN_TIME)
                self._child = start_upload(stdin, stdout, stderr)
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
                self.attempts.num_cut += 1
                return answer(RETRY, f"stopped after {timeout_s:g} s (--push_timeout)")
            stdout.seek(0)
            with contextlib.suppress(ValueError):
                found: dict[str, Any] = json.loads(stdout.read())
                return found
            if self._is_stopped:
                return answer(RETRY, NOT_IN_TIME)
            stderr.seek(0)
            last = without_token(stderr.read().decode(errors="replace")).strip().rpartition("\n")[2]
            return answer(DOUBTFUL, last or f"the child exited with {self._child.returncode}")

    def _process(self, part: Part, found: dict[str, Any]) -> None:
        """Process an answer: remove the part from the queue, schedule the next attempt, or stop pushing."""
        verdict, reason = found["verdict"], found["reason"]
        with self._changed:
            self._child = None
            if verdict == DONE:
                self._record(part, found["commit"])
                reason = ""
            self.outcomes[part] = reason
            attempts = self.attempts
            if verdict in (DONE, LOST):
                self._queue.pop(0)
                self.attempts = Attempts()
            elif not self._is_stopped:
                attempts.num_failed += 1
                attempts.num_doubtful += verdict == DOUBTFUL
                wait_s = max(found["wait_s"], min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (attempts.num_failed - 1)))
                attempts.not_before, attempts.is_asked_to_wait = time.monotonic() + wait_s, found["wait_s"] > 0
            will_retry = verdict == RETRY or (verdict == DOUBTFUL and attempts.num_doubtful < MAX_DOUBTFUL)
            is_over = self._is_stopped
            if verdict not in (DONE, LOST) and not will_retry:
                self._is_stopped = True
            self._changed.notify_all()
        if not is_over:
            self._log(part, verdict, reason, attempts, will_retry=will_retry)

    def _log(self, part: Part, verdict: str, reason: str, attempts: Attempts, *, will_retry: bool) -> None:
        """Log the result of a push; of several failures in a row only the first."""
        with contextlib.suppress(OSError, ValueError):  # standard output may be closed
            if verdict == DONE:
                self.say(f"pushed to {self.target.repo_id}: {part.name}")
            elif verdict == LOST:
                self.say(f"NOT PUSHED to the Hub: {part.name}: {reason}")
            elif not will_retry:
                self.say(
                    f"NOT PUSHED to the Hub, and pushing stops: {part.name}: {reason}. Training continues; push the "
                    f"rest with: {push_command(self.folder)}"
                )
            elif attempts.num_failed == 1:
                self.say(f"not yet pushed to the Hub: {part.name}: {reason}; trying again")

    def _record(self, part: Part, commit: str) -> None:
        self._known.add(commit)
        try:
            record_push(self.folder, part, self.target, commit=commit)
        except OSError as error:  # the next start finds it on the Hub
            self.say(f"{self.folder.push_path}: cannot write to it ({reason_of(error)}). The push itself succeeded.")


@dataclass
class Drain:
    """Wait for a publisher's queue at the end of a run, in short slices between which the caller can check for signals.

    Attributes:
        publisher: The publisher.
        timeout_s: The longest wait, in seconds.
        say: Prints a line.
    """

    publisher: Publisher
    timeout_s: float
    say: Callable[[str], None]
    _deadline: float = field(init=False)
    _next_line: float = field(init=False)

    def __post_init__(self) -> None:
        now = time.monotonic()
        self._deadline, self._next_line = now + self.timeout_s, now + 2 * SLICE_S
        self.publisher.hurry()

    def shorten(self) -> None:
        """Reduce the wait to the grace period of a signal."""
        self._deadline = min(self._deadline, time.monotonic() + GRACE_S)

    def wait(self) -> bool:
        """Wait for one slice; return True to wait again."""
        now = time.monotonic()
        if now >= self._deadline or self.publisher.attempts.not_before >= self._deadline:
            return False
        is_busy = self.publisher.wait(min(SLICE_S, self._deadline - now))
        if is_busy and time.monotonic() >= self._next_line:
            self._next_line += PROGRESS_EVERY_S
            left_s = max(0.0, self._deadline - time.monotonic())
            self.say(f"waiting for the Hub: {self.publisher.head}; at most {left_s:,.0f} s more (--push_timeout)")
        return is_busy

    def finish(self) -> list[str]:
        """Stop pushing, print the result of each part, and return a line for each one not on the Hub."""
        unpushed = self.publisher.close()
        target = self.publisher.target
        if names := [part.name for part, reason in self.publisher.outcomes.items() if not reason]:
            self.say(f"on the Hub at {target.url}: {', '.join(names)}")
        for line in unpushed:
            self.say(f"NOT PUSHED to the Hub: {line}")
        if unpushed:
            self.say(f"push the rest with: {push_command(self.publisher.folder)}")
        return unpushed


def start_upload(stdin: Any, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    """Start the child process of a push: the token is in its environment, and a terminal's signals do not reach it."""
    paths = [str(Path(mtloop.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if token := get_token():
        environment["HF_TOKEN"] = token
    return subprocess.Popen(
        [sys.executable, "-m", "mtloop.hub.upload"],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        start_new_session=True,
    )


def push_command(folder: RunFolder) -> str:
    """Return the command that pushes the missing parts."""
    return f"python -m mtloop push {folder.path}"
