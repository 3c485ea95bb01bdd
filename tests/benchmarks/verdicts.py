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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mtloop.run_folder import RunFolder
from tests.benchmarks.material import (
    ROOT,
    VALID_PAIRS,
    choose,
    load_pairs,
    model_folder,
    parser_of,
    train_command,
    train_with_mtloop,
    write_splits,
)

SENTENCES = 32
WARM_UP = 3
TIMEOUT_S = 120
# A run of fewer forwards is not measured.
LONG_RUN = 1_000


def speed(given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path) -> float:
    """Return the median target tokens a second of the updates behind the warm-up."""
    lines = train_with_mtloop(
        given, model, files, folder, "--max_train_steps", WARM_UP + given.updates, "--sentences_per_update", SENTENCES,
        "--logging_steps", 1, "--val_max_target_length", 2,
    )  # fmt: skip
    return statistics.median([line["tokens_per_s"] for line in lines if "loss" in line][WARM_UP:])


def verdict(given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path) -> tuple[str, float]:
    """Start a run; return the precision that it chooses, and bf16's gain as it measured it."""
    command = train_command(
        given, model, files, folder, "--max_train_steps", LONG_RUN, "--sentences_per_update", SENTENCES,
    )  # fmt: skip
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end and run.poll() is None:
            if found := RunFolder(folder).run_record.get("precision"):
                return found["name"], found["bf16_gain"]
            time.sleep(0.1)
    finally:
        run.kill()
        run.wait()
    sys.exit(f"no verdict in {TIMEOUT_S} s")


def main() -> None:
    """Print the speeds and the verdicts."""
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=5, help="updates of each precision, behind 3 of warm-up")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        every = load_pairs(given)
        pairs = choose(every, (WARM_UP + given.updates) * SENTENCES + VALID_PAIRS)
        model = model_folder(given, every, folder)
        files = write_splits(folder, pairs, VALID_PAIRS, given)
        speeds = {}
        for precision in ("no", "bf16"):
            given.precision = precision
            speeds[precision] = speed(given, model, files, folder / precision)
        faster = max(speeds, key=lambda name: speeds[name])
        print(f"training: fp32 {speeds['no']:.0f}, bf16 {speeds['bf16']:.0f} target tokens/s", flush=True)
        given.precision = "auto"
        verdicts = [verdict(given, model, files, folder / f"auto-{number}") for number in range(given.rounds)]
        gains = [gain for _, gain in verdicts]
        agreeing = sum(name == faster for name, _ in verdicts)
        print(f"auto: bf16 {min(gains):.2f} to {max(gains):.2f} times as fast; {agreeing} of {len(verdicts)} agree")


if __name__ == "__main__":
    main()
