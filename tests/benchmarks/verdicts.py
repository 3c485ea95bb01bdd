"""The verdict of --mixed_precision auto beside the speed of both precisions in training, on a CPU.

    python tests/benchmarks/verdicts.py kde_en_fr.jsonl.gz [--size opus] [--rounds 10]

Trains a few updates of 32 sentences in fp32 and in bf16, and then starts --rounds runs under auto, each ended once its
verdict stands in run.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

from mtloop.metrics_log import updates_of
from mtloop.run_folder import RunFolder
from tests.benchmarks.material import (
    ROOT,
    VALID_PAIRS,
    choose,
    load_pairs,
    model_folder,
    parser_of,
    train_command,
    write_splits,
)

SENTENCES = 32
TIMEOUT_S = 600
# A run of fewer forwards is not measured.
LONG_RUN = 1_000
T = TypeVar("T")


def run_until(
    found: Callable[[RunFolder], T | None], given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path
) -> T:
    """Start a run, and end it once something is found in its folder."""
    command = train_command(
        given, model, files, folder, "--max_train_steps", LONG_RUN, "--sentences_per_update", SENTENCES,
        "--logging_steps", 1,
    )  # fmt: skip
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end and run.poll() is None:
            if (answer := found(RunFolder(folder))) is not None:
                return answer
            time.sleep(0.1)
    finally:
        run.kill()
        run.wait()
    sys.exit(f"{folder.name}: nothing found in {TIMEOUT_S} s")


def speed(given: argparse.Namespace, folder: RunFolder) -> float | None:
    """Return the median target tokens a second of the updates behind the warm-up, once they are made."""
    rates = [line["tokens_per_s"] for line in updates_of(folder.metrics.lines())][given.warmup :]
    return statistics.median(rates[: given.updates]) if len(rates) >= given.updates else None


def verdict(folder: RunFolder) -> tuple[str, float] | None:
    """Return the precision that the run has chosen, and bf16's gain as it measured it, once it has."""
    found = folder.run_record.get("precision")
    return (found["name"], found["bf16_gain"]) if found else None


def main() -> None:
    """Print the speeds and the verdicts."""
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=5, help="updates of each precision that count")
    parser.add_argument("--warmup", type=int, default=3, help="updates before them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        every = load_pairs(given)
        pairs = choose(every, (given.warmup + given.updates) * SENTENCES + VALID_PAIRS)
        model = model_folder(given, every, folder)
        files = write_splits(folder, pairs, VALID_PAIRS, given)
        speeds = {}
        for precision in ("no", "bf16"):
            given.precision = precision
            speeds[precision] = run_until(partial(speed, given), given, model, files, folder / precision)
        faster = max(speeds, key=lambda name: speeds[name])
        print(f"training: fp32 {speeds['no']:.0f}, bf16 {speeds['bf16']:.0f} target tokens/s", flush=True)
        given.precision = "auto"
        verdicts = [
            run_until(verdict, given, model, files, folder / f"auto-{number}") for number in range(given.rounds)
        ]
        gains = [gain for _, gain in verdicts]
        agreeing = sum(name == faster for name, _ in verdicts)
        print(f"auto: bf16 {min(gains):.2f} to {max(gains):.2f} times as fast; {agreeing} of {len(verdicts)} agree")


if __name__ == "__main__":
    main()
