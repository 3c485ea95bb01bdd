"""Does pushing slow the training down? The same run with and without pushes, on a server that takes 30 s an upload.

    python tests/benchmarks/pushing.py [--repeats 3] [--upload_s 30] [--num_train_epochs 3]

The runs alternate. The time is the loop's whole wall time, from the run's first file to final/: updates, evaluations,
saves and the queueing of pushes; what is still on its way is waited for afterwards, and not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.hub_server import WRITE_TOKEN, HubServer
from tests.support.launch import run


def loop_seconds(folder: Path, *flags: str, **settings: str) -> float:
    """Train the demo into `folder` and return the seconds of its loop."""
    done = run([sys.executable, "train.py", "--output_dir", str(folder), *flags], timeout_s=3600, **settings)
    assert done.returncode in (0, 3), done.stderr[-2000:]
    return (folder / "final").stat().st_mtime - (folder / "config.yaml").stat().st_mtime


def main() -> None:
    """Print a line a run, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--upload_s", type=float, default=30.0)
    parser.add_argument("--num_train_epochs", type=int, default=3)
    given = parser.parse_args()
    flags = ["demo", "--num_train_epochs", str(given.num_train_epochs)]
    seconds: dict[str, list[float]] = {"without": [], "with pushes": []}
    with HubServer() as server, tempfile.TemporaryDirectory() as home:
        server.hang("PUT ", silence_s=given.upload_s)
        settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": server.url}
        for number in range(given.repeats):
            for name, times in seconds.items():
                pushing = ["--push_to_hub", "--hub_model_id", f"tester/run-{number}"]
                # One upload more than the end of the run lets the last epoch arrive or be cut: not measured.
                pushing += ["--push_timeout", str(given.upload_s * 1.5)]
                # Other weights each time: the server would know the ones it has.
                more = ["--seed", str(number), *(pushing if name == "with pushes" else [])]
                num_before = sum(request.startswith("PUT") for request in server.requests)
                times.append(
                    loop_seconds(Path(home) / f"{name}-{number}", *flags, *more, **settings, HF_TOKEN=WRITE_TOKEN)
                )
                num_puts = sum(request.startswith("PUT") for request in server.requests) - num_before
                print(f"{name:>12}: {times[-1]:7.2f} s, {num_puts} uploads of {given.upload_s:g} s begun", flush=True)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"loop with pushes / without, medians of {given.repeats}: {medians['with pushes'] / medians['without']:.3f}")


if __name__ == "__main__":
    main()
