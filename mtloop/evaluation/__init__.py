"""Loss and scores of a model on rows, and their significance."""
