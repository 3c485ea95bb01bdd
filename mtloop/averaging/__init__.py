"""`mtloop average`: the average of checkpoints, and what lies between a model and its base. Layer 5."""
