"""Silence the progress bars and warnings of libraries."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator


def silence_libraries() -> None:
    """Silence the libraries' progress bars and warnings for the rest of the process; errors of transformers are shown.

    What datasets logs as an error it raises as well.
    """
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' progress bars and warnings inside the context."""
    import datasets
    import transformers

    shows_rows, shows_weights = (
        not datasets.are_progress_bars_disabled(),
        transformers.utils.logging.is_progress_bar_enabled(),
    )
    levels = datasets.logging.get_verbosity(), transformers.logging.get_verbosity()
    with warnings.catch_warnings():
        silence_libraries()
        try:
            yield
        finally:
            datasets.logging.set_verbosity(levels[0])
            transformers.logging.set_verbosity(levels[1])
            if shows_rows:
                datasets.enable_progress_bars()
            if shows_weights:
                transformers.utils.logging.enable_progress_bar()
