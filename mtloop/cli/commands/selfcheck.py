"""Prove on your own model, data and launch file that the numbers hold.

In fp32 and on at most 200 rows: 20 updates as one micro-batch, as many, and on all processes; a run that is killed and
resumed; one evaluation on one and on all processes. All other flags are those of train.py. Status 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import mtloop
from mtloop.cli.flags import number_type
from mtloop.cli.launch_files import launch_file
from mtloop.cli.main import Parser
from mtloop.config.parse import parse_config
from mtloop.config.settings import resolve
from mtloop.runtime.signals import restore_handlers
from mtloop.selfcheck.parent import Selfcheck, shrink
from mtloop.tables import aligned


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the launcher."""
    parser.add_argument("--config_file", metavar="F", help="a launch file: a name of `mtloop configs`, or a path")
    parser.add_argument(
        "--num_processes", type=number_type("num_processes"), metavar="N", help="processes, as for `accelerate launch`"
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the flags of the launcher; the rest are those of train.py."""
    parser = Parser(prog=f"{mtloop.program()} selfcheck", description=__doc__, allow_abbrev=False)
    add_flags(parser)
    given, rest = parser.parse_known_args(words)
    return argparse.Namespace(**vars(given), train_flags=rest)


def run(given: argparse.Namespace) -> int:
    """Run the command; return 1 if something differs."""
    old_handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    work_dir = Path(tempfile.mkdtemp(prefix="mtloop-selfcheck-"))
    try:
        config_file = given.config_file and launch_file("--config_file", given.config_file)
        flags = {"config_file": config_file, "num_processes": given.num_processes}
        launch = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        selfcheck = Selfcheck(config=shrink(resolve(parse_config(given.train_flags))), launch=launch, work_dir=work_dir)
        rows = selfcheck.run()
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
        restore_handlers(old_handlers)  # Python continues: a notebook, a test
    lines = aligned([[row.name, "equal" if row.is_equal else "NOT EQUAL", row.figures] for row in rows], left=3)
    print("", *lines, sep="\n")
    differing = [row.name for row in rows if not row.is_equal]
    verdict = f"not equal: {', '.join(differing)}" if differing else "all equal"
    print("; not proven: ".join([verdict, *filter(None, [", ".join(selfcheck.unproven)])]))
    return 1 if differing else 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # through the finally clauses, which end the children
