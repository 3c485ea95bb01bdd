"""Plan time and peak memory of an epoch for 10^5, 10^6 and 10^7 sentence lengths.

    python tests/benchmarks/scaling.py

Each size runs in a process of its own, whose peak resident memory is that of NumPy, the lengths and the plan.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

SIZES = (10**5, 10**6, 10**7)


def plan(num_sentences: int) -> dict[str, float]:
    """Plan one epoch of lengths with the heavy tail of interface strings (median 7 and 9 tokens, cut at 128)."""
    import numpy as np

    from mtloop.batching import Budget, plan_epoch

    rng = np.random.default_rng(0)
    source = np.clip(rng.lognormal(2.0, 1.0, num_sentences), 2, 128).astype(np.int32)
    target = np.clip(rng.lognormal(2.2, 1.0, num_sentences), 2, 128).astype(np.int32)
    start = time.perf_counter()
    planned = plan_epoch(source, target, Budget(tokens=1_000), seed=0, epoch=0)
    time_s = time.perf_counter() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"updates": planned.num_updates, "time_s": time_s, "peak_mib": peak_mib}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(plan(int(sys.argv[1]))))
        return
    print(f"{'sentences':>12}{'updates':>12}{'plan time':>12}{'peak memory':>14}")
    for size in SIZES:
        command = [sys.executable, __file__, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        found = json.loads(done.stdout)
        print(f"{size:>12,}{found['updates']:>12,}{found['time_s']:>10.2f} s{found['peak_mib']:>10,.0f} MiB")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
