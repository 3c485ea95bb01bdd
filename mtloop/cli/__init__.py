"""The commands, their flags, errors and exit statuses."""
