"""mtloop: a hand-written Accelerate trainer for translation models."""

import os
import sys
from typing import Any

# Threads of OpenMP wait for one another in a loop of 300,000 rounds, some milliseconds, before they sleep: beside other
# work on the same cores, training was 2.3 times as fast with 1,000. Read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Result", "Translator", "main", "train"]
__version__ = "0.1.0"  # the only place: pyproject.toml and --version read it


def main(config: Any = None, metrics: Any = ()) -> Any:
    """Train with this configuration, or run the command that the first word of a list names.

    Without arguments, in train.py, it is the program: it reads the command line, prints an error in one line, and
    returns the exit status. Anywhere else an error is raised, with that line.

    Args:
        config: As in mtloop.train, or a list such as ["evaluate", "--model", "runs/mine"].
        metrics: Functions of the user's that score translations, as in mtloop.cli.commands.train.main.

    Returns:
        The exit status of the program or of another command; a Result of a run.
    """
    from mtloop.cli.commands.train import is_train_py
    from mtloop.cli.commands.train import main as train_py

    if config is None and is_train_py():
        return train_py(None, metrics)
    if config is None and sys.argv[0] == __file__:  # the XLA launcher, of `-m mtloop`: it drops what main() returns
        from mtloop.cli.main import main as run_command

        if status := run_command(sys.argv[1:], metrics):
            raise SystemExit(status)
        return 0
    from mtloop.api import raised, train

    if isinstance(config, (list, tuple)) and config:
        from mtloop.cli.main import command_files
        from mtloop.cli.main import main as run_command

        if config[0] == "train":
            config = config[1:]
        elif config[0] in command_files():
            return raised(lambda show: run_command(config, metrics, show))
    return train(config, metrics=metrics)


def program() -> str:
    """Return how the program was called, as help and errors say it: mtloop or python -m mtloop."""
    return "mtloop" if os.path.basename(sys.argv[0]).partition(".")[0] == "mtloop" else "python -m mtloop"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name in ("Result", "train"):
        import mtloop.api

        return getattr(mtloop.api, name)
    if name == "Translator":
        from mtloop.translate.translator import Translator

        return Translator
    raise AttributeError(f"module 'mtloop' has no attribute {name!r}")
