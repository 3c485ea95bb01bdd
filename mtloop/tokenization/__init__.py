"""Load or train the tokenizer, tell it the languages, encode rows. The only user of sentencepiece.

Must not import models (but the table of families), ranks or data. Shape letter: N rows.
"""
