"""The Run bundle, train() and train_step(): knows what happens when, and leaves how to the modules below."""

from mtloop.trainer.loop import train
from mtloop.trainer.report import count, epoch_of
from mtloop.trainer.run import Run
from mtloop.trainer.step import MAX_OVERFLOW_REPEATS, UpdateStats, accumulate_gradients, mark_last, train_step

__all__ = [
    "MAX_OVERFLOW_REPEATS",
    "Run",
    "UpdateStats",
    "accumulate_gradients",
    "count",
    "epoch_of",
    "mark_last",
    "train",
    "train_step",
]
