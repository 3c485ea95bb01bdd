"""Where a run computes and with whom: layer 1. Every other module takes a Runtime and never asks accelerate itself."""

from mtloop.runtime.ranks import Runtime, attempt

__all__ = ["Runtime", "attempt"]
