"""train(): the loop on one screen."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from mtloop.batching.loader import Feed
from mtloop.checkpoint.averaging import publish_average, publish_final
from mtloop.checkpoint.restore import load_weights
from mtloop.runtime import Interrupted, is_out_of_memory
from mtloop.trainer.budget import halve, note_limit, settle_micro_batches
from mtloop.trainer.precision import settle_precision
from mtloop.trainer.pushing import push_final, push_of_epoch, queue_earlier
from mtloop.trainer.report import count, evaluate_and_record, evaluate_on, log, report_nonfinite, together
from mtloop.trainer.resume import restore
from mtloop.trainer.run import Run
from mtloop.trainer.step import MemoryShort, train_step


def train(run: Run) -> int | None:
    """Train to the end, or until a signal, from the newest checkpoint or the start.

    Collective.

    Returns:
        The signal that stopped the run after its checkpoint was saved, None when the run is done.

    Raises:
        RunFailed: on every rank, when the run cannot go on.
    """
    settle_precision(run)
    settle_micro_batches(run)
    restore(run)
    queue_earlier(run)
    stop_signal = None
    try:
        if run.is_evaluation_pending:
            evaluate_and_record(run)
            save(run)  # training may never beat the first one: then it is the best model, and final/ is made of it
        run.tracker.open_bar(run.state.step)
        run.watch.skip()
        with contextlib.closing(Feed(run.loader, epoch=run.state.epoch, cursor=run.state.cursor)) as feed:
            while not (run.is_done or run.is_out_of_patience or stop_signal):
                update = feed.next()
                try:
                    stats = train_step(run, update)
                except MemoryShort:
                    halve(run)
                    feed.restart(epoch=run.state.epoch, cursor=run.state.cursor)
                    continue
                count(run, update, stats)
                if run.due("log"):
                    log(run, stats)
                if run.due("evaluate"):
                    evaluate_and_record(run)
                stop_signal = run.runtime.agree_on_signal(run.state.step)
                if run.due("save") or run.is_out_of_patience or stop_signal:
                    save(run)
                    stop_signal = stop_signal or run.runtime.agree_on_signal()  # one that came during the save
        run.tracker.close_bar()
        if stop_signal is None:
            finish(run)
        run.checkpointer.finish()
    except Interrupted as stop:  # in an evaluation, on every rank: it is abandoned, and made again after the resume
        run.tracker.close_bar()
        stop_signal = stop.number
        save_unless_saved(run)
    except RuntimeError as error:
        if is_out_of_memory(error):
            note_limit(run)
        raise
    finally:
        run.checkpointer.close()
    return stop_signal


def finish(run: Run) -> None:
    """Publish final/, evaluate it on the test rows where there are some, draw the curves. Collective."""
    save_unless_saved(run)  # one may have resumed from the end of a run in another folder
    average_last = run.config.evaluation.average_last
    if average_last is None:
        source = publish_final(run.checkpointer, is_best=run.config.evaluation.load_best_model_at_end)
    else:
        source = make_average(run, average_last)
    if run.test is not None:
        load_weights(run.model, source)
        evaluate_on(run, run.test)
    together(run, run.tracker.draw_curves)
    push_final(run)


def make_average(run: Run, num_epochs: int) -> Path:
    """Publish the average of the last epochs as final/ and evaluate it on the validation rows. Collective."""
    folder, runtime, end_step = run.folder, run.runtime, run.state.step
    runtime.on_main(lambda: publish_average(folder, num_epochs=num_epochs, end_step=end_step, say=runtime.say))
    load_weights(run.model, folder.final_dir)
    evaluate_on(run, replace(run.valid, name="average"))
    return folder.final_dir


def save_unless_saved(run: Run) -> None:
    """Save the step where it has no checkpoint yet; either way all that was begun stands then. Collective."""
    run.checkpointer.finish()
    if not run.runtime.on_main(lambda: run.checkpointer.is_saved):
        save(run)
        run.checkpointer.finish()


def save(run: Run) -> None:
    """Save the step once it is known to be sound, and queue it for the Hub where it ends an epoch. Collective.

    The files are written behind the loop, but not where loader processes are about to be forked: a lock that the
    writing thread holds at that moment would be locked in them for ever.
    """
    report_nonfinite(run)
    in_background = run.loader.num_workers == 0 or run.state.cursor > 0
    run.checkpointer.save(in_background=in_background, then=push_of_epoch(run))
    run.watch.skip()
