"""The device and the ranks of a run. Every other module takes a Runtime and never asks accelerate itself."""

from mtloop.runtime.collectives import attempt
from mtloop.runtime.failures import explain, is_out_of_memory
from mtloop.runtime.machine import asked_precision, available_memory, free_memory
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import gathered, is_sharded, put, sharded_state, whole
from mtloop.runtime.signals import Interrupted

__all__ = [
    "Interrupted",
    "Runtime",
    "asked_precision",
    "attempt",
    "available_memory",
    "explain",
    "free_memory",
    "gathered",
    "is_out_of_memory",
    "is_sharded",
    "put",
    "sharded_state",
    "whole",
]
