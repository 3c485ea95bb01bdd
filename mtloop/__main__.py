"""`python -m mtloop COMMAND ...` (or `mtloop COMMAND ...`): the commands of the installed package."""

from __future__ import annotations

import sys

from mtloop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
