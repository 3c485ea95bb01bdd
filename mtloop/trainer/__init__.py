"""Train: the loop, one step, recovery from failed updates, setup, resume and reports."""
