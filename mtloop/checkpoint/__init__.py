"""Checkpoints of a run: save, publish by renaming, verify, find, restore, prune.

A checkpoint is a folder `checkpoints/step_N` that from_pretrained loads as it is (model, generation config, tokenizer).
`training/` inside holds what a resume needs in addition to the weights, and the manifest. For a LoRA run it is the
merged model, with the adapter in `adapter/`.
"""
