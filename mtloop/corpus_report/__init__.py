"""Report on the rows of a corpus before a model is trained on it: lengths, suspicious rows, overlap of the splits.

Must not know training. Shape letter: N rows.
"""
