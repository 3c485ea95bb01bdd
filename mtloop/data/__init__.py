"""Load every source of parallel text as rows with a stable index, split and filter them, and report what was dropped.

Must not know tokenizers, ranks or models. All rows are in memory-mapped Arrow files in the datasets cache: the private
memory of a process does not grow with the corpus, and a second process uses the files of the first.
"""
