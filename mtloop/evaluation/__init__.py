"""`mtloop evaluate`: any model on any test sets, with confidence intervals, against a baseline. Layer 4."""
