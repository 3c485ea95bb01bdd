"""Loss and scores of a model on rows, and what chance makes of them."""
