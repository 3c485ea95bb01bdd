"""Worker: train.py itself, which shows a moment of the run and makes it last: worker_moments.py MOMENT FOLDER [flags].

MOMENT is training, evaluation, saving or building; FOLDER gets a file of that name when it begins, and rank_N with the
step at which that rank ended. Nothing else is changed.
"""

import sys
import time
from pathlib import Path

import mtloop.generation.engine as engines
import mtloop.trainer.setup_inputs as inputs
from mtloop.checkpoint.save import Checkpointer
from mtloop.cli.commands.train import main
from mtloop.trainer import loop


def shown(work, folder: Path, moment: str, *, when=lambda *_: True, after_s: float = 0.0):
    """Work that first leaves the file, and then takes longer than it would."""

    def wrapped(*arguments, **options):
        if when(*arguments):
            (folder / moment).touch()
            time.sleep(after_s)
        return work(*arguments, **options)

    return wrapped


def slow_generation(generate):
    """Each batch takes a second: an evaluation that is not abandoned takes half a minute."""

    def slow(model, *arguments, **options):
        original = model.generate

        def one_batch(*args, **kwargs):
            time.sleep(1)
            return original(*args, **kwargs)

        model.generate = one_batch
        try:
            return generate(model, *arguments, **options)
        finally:
            del model.generate

    return slow


def reporting(train, folder: Path):
    def reported(run):
        stop_signal = train(run)
        (folder / f"rank_{run.runtime.rank}").write_text(f"{run.state.step} {stop_signal}")
        return stop_signal

    return reported


if __name__ == "__main__":
    moment, folder = sys.argv[1], Path(sys.argv[2])
    if moment == "training":
        at_step = lambda run, _: run.state.step == 49  # noqa: E731
        loop.train_step = shown(loop.train_step, folder, moment, when=at_step, after_s=0.5)
    elif moment == "evaluation":
        engines.generate_rows = shown(slow_generation(engines.generate_rows), folder, moment)
    elif moment == "saving":
        is_epoch_end = lambda keeper, path, snapshot: snapshot.state["cursor"] == 0  # noqa: E731
        Checkpointer._fill = shown(Checkpointer._fill, folder, moment, when=is_epoch_end, after_s=1.0)
    else:
        inputs.load_corpus = shown(inputs.load_corpus, folder, moment, after_s=5.0)
    loop.train = reporting(loop.train, folder)
    sys.exit(main(sys.argv[3:]))
