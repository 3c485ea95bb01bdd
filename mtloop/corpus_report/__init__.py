"""Layer 5: what a person wants to know of a corpus before training on it. Reads rows, changes none.

Must not know training. Shape letter: N rows.
"""
