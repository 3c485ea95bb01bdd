"""Every source of parallel text -> rows with a stable index; splits, filters, and what was dropped and why.

Must not know tokenizers, ranks or models. All rows live in memory-mapped Arrow files in the datasets cache, so that the
private memory of a process does not grow with the corpus, and a second process finds the first one's files.
"""
