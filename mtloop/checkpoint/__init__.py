"""Checkpoints of a run: save, publish by renaming, verify, find, restore, prune.

A checkpoint is a folder `checkpoints/step_N` that from_pretrained loads as it is (model, generation config, tokenizer),
with `training/` inside for what a resume needs beyond the weights, and the manifest; of a LoRA run it is the merged
model, with the adapter in `adapter/`. What is exported here answers without torch; who saves and restores takes
mtloop.checkpoint.save.
"""

from mtloop.checkpoint.listing import (
    choose_checkpoint,
    epoch_of,
    find_checkpoint,
    link_names,
    list_checkpoints,
    set_aside,
)

__all__ = [
    "choose_checkpoint",
    "epoch_of",
    "find_checkpoint",
    "link_names",
    "list_checkpoints",
    "set_aside",
]
