"""mtloop: a hand-written Accelerate trainer for translation models."""

from typing import Any

__all__ = ["main"]
__version__ = "0.1.0"


def main(config: Any = None) -> int:
    """Train as the configuration says, and return the exit status: mtloop.entry.main, imported when it is called."""
    from mtloop.entry import main as train

    return train(config)
