"""List the launch files, or print the path of one.

They are for `mtloop launch NAME ...` and `accelerate launch --config_file PATH ...`.
"""

from __future__ import annotations

import argparse

import mtloop
from mtloop.cli.launch_files import launch_files, launch_folder, purpose_of
from mtloop.errors import UserError
from mtloop.tables import aligned


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print only the path of this one (none: list all)")


def run(given: argparse.Namespace) -> None:
    """Run the command."""
    paths = launch_files()
    if given.name is not None:
        if given.name not in paths:
            raise UserError(f"NAME: no such launch file (got {given.name}). Give one of {', '.join(paths)}.")
        print(paths[given.name])
        return
    prog = mtloop.program()
    print(f"{launch_folder()}\n")
    print(*aligned([[path.name, purpose_of(path)] for path in paths.values()], left=2), sep="\n")
    print(
        f"\n{prog} launch NAME train ... runs a command with one; {prog} configs NAME prints its path:\n"
        f'accelerate launch --config_file "$({prog} configs multi_gpu)" -m mtloop train ...\n'
        f'sbatch "$({prog} configs slurm)" train ...'
    )
