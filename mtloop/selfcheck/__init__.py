"""The promises of the README, proven on the user's own model, data and launch file.

The parent starts child runs and compares what they wrote; it never imports torch.
"""
