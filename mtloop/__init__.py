"""mtloop: a hand-written Accelerate trainer for translation models."""

from mtloop.entry import main

__all__ = ["main"]
__version__ = "0.1.0"
