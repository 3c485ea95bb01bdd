"""Keep what libraries print out of the output."""

from __future__ import annotations

import sys


def silence_libraries() -> None:
    """Keep the libraries' progress bars and advice out of the output; their errors still show."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.warnoptions:
        import warnings

        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
