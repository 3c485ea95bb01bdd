"""Generate the embedded corpus: deterministic English-French interface strings from a grammar, for demos and tests.

Must not know files, tokenizers or models: standard library only. Every English string has exactly one French
translation, so a small model can learn the mapping from 12,000 pairs. The French has a plain space before `:` and `?`
and inside « », and three full stops: SentencePiece's normalisation would turn a no-break space and an ellipsis into
these, and a hypothesis could then never equal its reference.
"""
