"""One module a command; mtloop.cli.main says what each has."""
