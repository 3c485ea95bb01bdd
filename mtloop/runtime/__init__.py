"""Where a run computes and with whom: layer 1. Every other module takes a Runtime and never asks accelerate itself."""

from mtloop.runtime.failures import explain
from mtloop.runtime.ranks import Runtime, attempt
from mtloop.runtime.sharding import gathered, is_sharded, put, sharded_state, whole
from mtloop.runtime.signals import Interrupted

__all__ = [
    "Interrupted",
    "Runtime",
    "attempt",
    "explain",
    "gathered",
    "is_sharded",
    "put",
    "sharded_state",
    "whole",
]
