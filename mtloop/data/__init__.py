"""Layer 1: every source of parallel text -> rows with a stable index; splits, filters, and what was dropped and why.

Must not know tokenizers, ranks or models. All rows live in memory-mapped Arrow files in the datasets cache, so that the
private memory of a process does not grow with the corpus, and a second process finds the first one's files.
"""

from mtloop.data.load import Corpus, describe, load_corpus, load_test_set
from mtloop.data.rows import Columns

__all__ = ["Columns", "Corpus", "describe", "load_corpus", "load_test_set"]
