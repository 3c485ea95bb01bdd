"""`python -m mtloop train ...` (or `mtloop train ...`): the commands of the installed package."""

from __future__ import annotations

import sys

from mtloop.entry import main as train


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return train(argv[1:])
    print("usage: python -m mtloop train [RECIPE] [--flag value ...]   (train --help lists the flags)", file=sys.stderr)
    return 0 if argv[:1] in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main())
