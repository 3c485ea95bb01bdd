"""Commands of mtloop, one module each; mtloop.cli.main describes what a module provides."""
