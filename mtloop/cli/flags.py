"""Flags of the commands that run a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mtloop.config.environment import HardwareConfig
from mtloop.config.fields import separate
from mtloop.errors import UserError
from mtloop.evaluation.metrics import METRICS, Metric
from mtloop.evaluation.selection import choose_metrics

if TYPE_CHECKING:
    from mtloop.runtime.ranks import Runtime


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add how a model is loaded, searches, and computes."""
    add = parser.add_argument
    add("--num_beams", type=int, metavar="N", help="beams of the search (none: the model's own, else 4)")
    add("--max_tokens_per_batch", type=int, default=2000, metavar="N", help="source tokens of a batch: memory (2000)")
    add(
        "--mixed_precision", choices=("no", "bf16", "fp16", "auto"), help="arithmetic (none: what the launch file says)"
    )
    add("--use_cpu", action="store_true", help="although an accelerator is present")
    add("--cpu_threads", type=int, metavar="N", help="CPU threads a process (none: the cores shared out)")
    add("--trust_remote_code", action="store_true", help="run code that the model's repository brings along")


def add_metrics_flag(parser: argparse.ArgumentParser, *default: str) -> None:
    """Add which scores are computed, and list them below the flags."""
    titles = [one.title + ("" if one.greater_is_better else ", lower is better") for one in METRICS.values()]
    known = [f"{name} ({title})" for name, title in zip(METRICS, titles, strict=True)]
    parser.epilog = f"metrics: {'; '.join(known)}. Functions: mtloop.main([...], metrics=[function])."
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=list(default),
        metavar="NAME",
        help=f"scores of the translations, listed below ({' '.join(default)})",
    )


def chosen_metrics(given: argparse.Namespace) -> tuple[Metric, ...]:
    """Return the metrics of --metrics, and those that were passed to main().

    Raises:
        UserError: naming the flag.
    """
    return choose_metrics(separate(given.metrics), given.functions)


def check_counts(given: argparse.Namespace, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        UserError: naming the flag.
    """
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give a whole number of at least 1")


def start_runtime(given: argparse.Namespace) -> Runtime:
    """Initialize the processes as the flags say. Collective."""
    from mtloop.runtime.quiet import silence_libraries
    from mtloop.runtime.ranks import Runtime

    silence_libraries()
    return Runtime(
        HardwareConfig(mixed_precision=given.mixed_precision, use_cpu=given.use_cpu, cpu_threads=given.cpu_threads)
    )
