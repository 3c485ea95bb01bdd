"""From a configuration to a Run: layer 5."""

from mtloop.build.data import drop_long
from mtloop.build.folder import claim_folder
from mtloop.build.run import build_run, settle_budget, start_trackers

__all__ = ["build_run", "claim_folder", "drop_long", "settle_budget", "start_trackers"]
