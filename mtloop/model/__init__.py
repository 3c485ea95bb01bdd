"""Load or build the seq2seq model, configure its generation, compute its loss, adapt it with LoRA.

Must not import data, ranks or training.
"""
