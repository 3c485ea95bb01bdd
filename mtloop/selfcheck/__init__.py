"""`python -m mtloop selfcheck`: the promises of the README, proven on the user's own model, data and launch file.

Layer 6. The parent starts child runs and compares what they wrote; it never imports torch.
"""

from mtloop.selfcheck.parent import main

__all__ = ["main"]
