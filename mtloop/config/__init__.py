"""Settings of a run: fields, flags, YAML, recipes, and the defaults that follow from other settings."""
