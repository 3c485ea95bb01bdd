"""Texts and files in, translations out; two engines, and two models, beside one another.

Must not know training.
"""
