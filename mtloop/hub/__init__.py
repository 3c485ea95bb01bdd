"""The Hub: what is pushed, when and how often, the card, and a checkpoint fetched back.

Above the run folder, manifests and checkpoints that it reads; no ranks, models or tensors. The main process
alone calls it. Nothing is exported here, so that the child process of a push (upload.py) starts in 0.2 s.
"""
