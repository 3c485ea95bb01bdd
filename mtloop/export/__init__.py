"""`mtloop export`: a model in the format of a faster engine, with proof that it translates the same. Layer 5."""
