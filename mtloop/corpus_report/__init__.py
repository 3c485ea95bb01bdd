"""Report what is in a corpus before a model is trained on it. Reads rows, changes none.

Must not know training. Shape letter: N rows.
"""
