"""Inference: texts and files in, translations out. Layer 3.

Must not know references, scores of a corpus, or training. Shape letters: B sentences, S source tokens.
"""
