"""Train a model: the loop, on one screen. The other modules of the package do the work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from mtloop.checkpoint.averaging import publish_average, publish_final
from mtloop.checkpoint.restore import load_weights
from mtloop.errors import UserError
from mtloop.runtime.failures import is_out_of_memory
from mtloop.runtime.signals import Interrupted
from mtloop.trainer.calibration import choose_micro_batches, choose_precision
from mtloop.trainer.curves import draw_curves
from mtloop.trainer.pushing import push_final, push_of_epoch, queue_earlier
from mtloop.trainer.recovery import lower_limit_of_next_start, report_nonfinite
from mtloop.trainer.report import count, evaluate_and_record, evaluate_on, log
from mtloop.trainer.resume import restore
from mtloop.trainer.run import Run
from mtloop.trainer.step import train_step


def train(run: Run) -> int | None:
    """Train from the newest checkpoint, or the start, to the end or a stop signal. Collective.

    Returns:
        The signal that stopped the run after it was saved; None when the run is done.

    Raises:
        RunFailed: on every rank, when the run cannot continue.
        UserError: on every rank, when a metric of the user's fails; the run is saved.
    """
    with session(run):
        evaluate_if_pending(run)
        for update in run.updates():
            stats = train_step(run, update)
            count(run, update, stats)
            if run.due("log"):
                log(run, stats)
            if run.due("evaluate"):
                evaluate_and_record(run)
            if run.due("save"):
                save(run)
            if run.check_signals():
                save_unless_saved(run)
        if run.stop_signal is None:
            finish(run)
    return run.stop_signal


@contextlib.contextmanager
def session(run: Run) -> Iterator[None]:
    """Restore the run; at the end wait for its files, and save it if a signal interrupted an evaluation. Collective."""
    choose_precision(run)
    choose_micro_batches(run)
    restore(run)
    queue_earlier(run)
    try:
        yield
        run.checkpointer.finish()
    except UserError:  # on every rank: a metric of the user's failed. The evaluation is repeated after a resume
        run.display.close()
        save_unless_saved(run)
        raise
    except Interrupted as stop:  # on every rank; the evaluation is repeated after a resume
        run.display.close()
        run.stop_signal = stop.number
        save_unless_saved(run)
    except RuntimeError as error:
        if is_out_of_memory(error):
            lower_limit_of_next_start(run)
        raise
    finally:
        run.checkpointer.close()


def evaluate_if_pending(run: Run) -> None:
    """Make the evaluation that is due before the next update, and save. Collective."""
    if run.is_evaluation_pending:
        evaluate_and_record(run)
        save(run)  # the pretrained model may be the best one: final/ is made of this checkpoint then


def finish(run: Run) -> None:
    """Publish final/, evaluate it on the test rows where there are some, draw the curves. Collective."""
    save_unless_saved(run)  # a run may have been resumed from the end of one in another folder
    average_last = run.config.evaluation.average_last
    if average_last is None:
        source = publish_final(run.checkpointer, is_best=run.config.evaluation.load_best_model_at_end)
    else:
        source = make_average(run, average_last)
    if run.test is not None:
        load_weights(run.model, source)
        evaluate_on(run, run.test)
    run.runtime.on_main(partial(draw_curves, run.folder))
    push_final(run)
    run.display.finish()  # an output that blocks delays nothing


def make_average(run: Run, num_epochs: int) -> Path:
    """Publish the average of the last epochs as final/ and evaluate it on the validation rows. Collective."""
    folder, runtime, end_step = run.folder, run.runtime, run.state.step
    runtime.on_main(lambda: publish_average(folder, num_epochs=num_epochs, end_step=end_step, say=runtime.say))
    load_weights(run.model, folder.final_dir)
    evaluate_on(run, replace(run.valid, name="average"))
    return folder.final_dir


def save_unless_saved(run: Run) -> None:
    """Save the present step unless it has a checkpoint, and wait until all checkpoints are written. Collective."""
    run.checkpointer.finish()
    if not run.runtime.on_main(lambda: run.checkpointer.is_saved):
        save(run)
        run.checkpointer.finish()


def save(run: Run) -> None:
    """Save the present step once its norms are read, and queue it for the Hub where it ends an epoch. Collective.

    The files are written in the background, but not where loader processes are about to be forked: a lock that the
    writing thread holds at that moment would stay locked in them.
    """
    report_nonfinite(run)
    in_background = run.loader.num_workers == 0 or run.state.cursor > 0
    run.checkpointer.save(in_background=in_background, then=push_of_epoch(run))
    run.watch.skip()
