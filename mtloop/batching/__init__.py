"""The plan: which sentences each update holds, and how they are divided over ranks and micro-batches.

Owns every decision about batches as a pure function of (lengths, budgets, seed, epoch, num_ranks). Must not know texts,
tensors, devices or the process it runs in: rank and rank count are parameters.
"""

from mtloop.batching.division import (
    MicroBatch,
    cut_by_tokens,
    divide_into_shapes,
    divide_update,
    plan_evaluation,
    plan_static_evaluation,
)
from mtloop.batching.plan import PLAN_VERSION, Budget, EpochPlan, count_updates, plan_epoch
from mtloop.batching.shapes import Shape, choose_evaluation_shapes, choose_shapes

__all__ = [
    "PLAN_VERSION",
    "Budget",
    "EpochPlan",
    "MicroBatch",
    "Shape",
    "choose_evaluation_shapes",
    "choose_shapes",
    "count_updates",
    "cut_by_tokens",
    "divide_into_shapes",
    "divide_update",
    "plan_epoch",
    "plan_evaluation",
    "plan_static_evaluation",
]
