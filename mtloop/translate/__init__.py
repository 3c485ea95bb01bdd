"""Translate texts and files, and interpolate between two models. Must not know training."""
