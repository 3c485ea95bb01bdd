"""Worker: train.py itself with one fault: worker_faults.py FAULT FOLDER [flags of train.py].

FOLDER gets status_R, what main() returned on rank R, and what the fault has to show.
"""

import errno
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import torch

import mtloop.evaluation.evaluate as evaluate
from mtloop.checkpoint.save import Checkpointer
from mtloop.cli.commands.train import main
from mtloop.trainer import loop, step

RANK = int(os.environ.get("RANK", "0"))
STEP = 20  # in the update after this many
NAN_STEP = 5


def before(work, fault, *, when):
    def wrapped(*arguments, **options):
        if when(*arguments):
            fault(*arguments)
        return work(*arguments, **options)

    return wrapped


def raises(error):
    def fault(*_):
        raise error

    return fault


def turn_into_folder(run, update):
    """metrics.jsonl can no longer be appended to, not even by root."""
    path = run.folder.metrics.path
    path.unlink()
    path.mkdir()


def kill_a_loader_worker(run, update):
    victim = psutil.Process().children()[0]
    victim.kill()
    victim.wait()


def stop_the_loader_workers(run, update):
    """In the middle of what they send or not."""
    for victim in psutil.Process().children():
        victim.suspend()


def hang(run, update):
    """For ever, but for the launcher's TERM: without it the test would wait until the launcher kills, 30 s later."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(1_000)


def poisoned(loss, folder):
    """Rank 1's loss of one update is no number; each rank writes down its weights around that update."""

    def poisoned_step(run, update):
        if run.state.step + 1 != NAN_STEP:
            return original(run, update)
        (folder / f"before_{RANK}").write_text(digest_of(run))
        if RANK == 1:
            step.batch_loss_sum = lambda *arguments, **options: loss(*arguments, **options) * float("nan")
        stats = original(run, update)
        step.batch_loss_sum = loss
        (folder / f"after_{RANK}").write_text(digest_of(run))
        return stats

    original = loop.train_step
    loop.train_step = poisoned_step


def with_little_memory(loss):
    """Rank 1 alone has no room for more than 300 padded tokens from step STEP on."""

    def limited(model, batch, *wrapped_model, **options):
        if RANK == 1 and at[0] > STEP and batch["input_ids"].numel() + batch["labels"].numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(model, batch, *wrapped_model, **options)

    def noted(run, update):
        at[0] = run.state.step + 1
        return train_step(run, update)

    at, train_step = [0], loop.train_step
    step.batch_loss_sum, loop.train_step = limited, noted


def digest_of(run):
    digest = hashlib.sha256()
    for tensor in run.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def with_a_clock_that_jumps(train_step):
    """A day back, then two days ahead, in the middle of the run."""
    clock = time.time

    def stepped(run, update):
        if run.state.step == STEP - 10:
            time.time = lambda: clock() - 86_400
        if run.state.step == STEP:
            time.time = lambda: clock() + 86_400
        return train_step(run, update)

    return stepped


def failing(sources, hypotheses, references):
    """A user's metric that takes the trial before training, and not what the model translates."""
    return 1.0 / (hypotheses == references)


def inject(fault, folder):
    at_step = {"when": lambda run, _: run.state.step == STEP and RANK == 1}
    on_main = {"when": lambda run, _: run.state.step == STEP and RANK == 0}
    full = OSError(errno.ENOSPC, "No space left on device")
    if fault == "save":
        Checkpointer._fill = before(Checkpointer._fill, raises(full), when=lambda *_: RANK == 0)
    elif fault == "score":
        evaluate.scores_of = before(evaluate.scores_of, raises(ValueError("no score")), when=lambda *_: True)
    elif fault == "function":
        pass  # of the user's, which fails on main
    elif fault == "metrics":
        loop.train_step = before(loop.train_step, turn_into_folder, **on_main)
    elif fault == "raise":
        loop.train_step = before(loop.train_step, raises(KeyError("a fault of rank 1")), **at_step)
    elif fault == "die":
        loop.train_step = before(loop.train_step, lambda *_: os.kill(os.getpid(), signal.SIGKILL), **at_step)
    elif fault == "hang":
        loop.train_step = before(loop.train_step, hang, **at_step)
    elif fault == "loader":
        loop.train_step = before(loop.train_step, kill_a_loader_worker, **on_main)
    elif fault == "loader_stops":
        loop.train_step = before(loop.train_step, stop_the_loader_workers, **on_main)
    elif fault == "memory":
        with_little_memory(step.batch_loss_sum)
    elif fault == "nan":
        poisoned(step.batch_loss_sum, folder)
    elif fault in ("mistake_all", "mistake_1"):
        sys.argv += ["--max_train_steps", "0"] if fault == "mistake_all" or RANK == 1 else []
    else:
        assert fault == "clock"
        loop.train_step = with_a_clock_that_jumps(loop.train_step)


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    inject(sys.argv[1], folder)
    status = main(sys.argv[3:], [failing] if sys.argv[1] == "function" else [])
    (folder / f"status_{RANK}").write_text(str(status))
    sys.exit(status)
