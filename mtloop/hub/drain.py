"""The end of a run that pushes: wait for the queue, show how far it is, and say what has become of each part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mtloop.atomic import read_json
from mtloop.hub.parts import FINAL, Target, epochs_to_push, final_part, pushed
from mtloop.hub.publisher import Publisher, push_command
from mtloop.run_folder import RunFolder

# After a signal: SIGKILL often follows it within 30 s, and the save has taken some of them.
GRACE_S = 10.0
STATUS_NOT_PUSHED = 3  # of train.py and of push
SLICE_S, PROGRESS_EVERY_S = 0.5, 15.0


@dataclass
class Drain:
    """Waits for a publisher's queue in short slices, so that its caller can look at signals in between.

    Attributes:
        publisher: Whose queue.
        timeout_s: Seconds to wait at most.
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
        """Leave no more than the grace of a signal."""
        self._deadline = min(self._deadline, time.monotonic() + GRACE_S)

    def wait(self) -> bool:
        """Wait for one slice; return whether to go on waiting."""
        now = time.monotonic()
        if now >= self._deadline or self.publisher.not_before >= self._deadline:
            return False
        is_busy = self.publisher.wait(min(SLICE_S, self._deadline - now))
        if is_busy and time.monotonic() >= self._next_line:
            self._next_line += PROGRESS_EVERY_S
            left_s = max(0.0, self._deadline - time.monotonic())
            self.say(f"waiting for the Hub: {self.publisher.head}; at most {left_s:,.0f} s more (--push_timeout)")
        return is_busy

    def finish(self) -> list[str]:
        """End what is still under way, print each part's outcome, and return a line for each one not on the Hub."""
        unpushed = self.publisher.close()
        target = self.publisher.target
        if arrived := [part.name for part, reason in self.publisher.outcomes.items() if not reason]:
            self.say(f"on the Hub at {target.url}: {', '.join(arrived)}")
        for line in unpushed:
            self.say(f"NOT PUSHED to the Hub: {line}")
        if unpushed:
            self.say(f"push what is missing with: {push_command(self.publisher.folder)}")
        return unpushed


def queue_missing(publisher: Publisher, *, with_epochs: bool, before_step: int | None = None) -> None:
    """Queue what the journal lacks: epochs whose checkpoints are here, and the end of a finished run.

    Args:
        publisher: Gets them, oldest first.
        with_epochs: False for the end alone.
        before_step: Epochs from this step on, and the end, are left out.
    """
    folder = publisher.folder
    for part in epochs_to_push(folder, publisher.target) if with_epochs else []:
        if before_step is None or part.step < before_step:
            publisher.push(part)
    if before_step is None and is_end_missing(folder, publisher.target):
        final = final_part(folder)
        assert final is not None
        publisher.push(final)


def note_pushed(folder: RunFolder, target: Target, *, with_epochs: bool) -> None:
    """Give status.json the exit status 0, once a finished run of which something was not pushed is on the Hub."""
    status = read_json(folder.status_path)
    is_behind = status.get("exit_status") == STATUS_NOT_PUSHED and folder.is_finished
    if is_behind and not is_end_missing(folder, target) and not (with_epochs and epochs_to_push(folder, target)):
        message = f"trained {status['step']:,} updates; all is pushed to {target.repo_id}"
        folder.write_status("finished", exit_status=0, message=message, step=status["step"])


def is_end_missing(folder: RunFolder, target: Target) -> bool:
    """Whether a run is finished and the journal lacks its end."""
    final = final_part(folder) if folder.is_finished else None
    return final is not None and not any(
        name == FINAL and manifest == final.manifest for _, name, manifest, _ in pushed(folder, target)
    )
