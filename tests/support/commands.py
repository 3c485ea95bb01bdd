"""Commands of mtloop in this process."""

from collections.abc import Callable, Iterable
from typing import Any

from mtloop.cli.main import main


def command(name: str) -> Callable[[Iterable[Any]], int]:
    """Return a function that runs a command with the words given to it, and returns its exit status."""
    return lambda words: main([name, *map(str, words)])
