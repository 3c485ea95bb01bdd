"""Seconds and compilations of the same updates with --pad_to buckets and with --pad_to longest, on one XLA device.

    PJRT_DEVICE=CPU python tests/benchmarks/xla_padding.py [--updates N] [flags of train.py]

Each runs in a process of its own that has compiled nothing; the demo's rows unless flags say otherwise.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def train(pad_to: str, num_updates: int, flags: list[str]) -> dict[str, float]:
    """Train the updates; building the run is not counted."""
    from mtloop.config.parse import parse_config
    from mtloop.config.settings import resolve
    from mtloop.runtime.ranks import Runtime
    from mtloop.trainer.report import count
    from mtloop.trainer.resume import claim_folder
    from mtloop.trainer.setup import build_run, resolve_budget
    from mtloop.trainer.step import train_step

    with tempfile.TemporaryDirectory() as folder_name:
        flags = [*flags, "--output_dir", f"{folder_name}/run", "--pad_to", pad_to, "--num_beams", "1"]
        config = resolve(parse_config(flags))
        runtime = Runtime(config.hardware)
        folder, stored = claim_folder(config, runtime)
        run = build_run(resolve_budget(config, stored, num_ranks=1), stored, folder, runtime)
        start = time.perf_counter()
        for update, _ in zip(run.loader.updates(epoch=0, cursor=0), range(num_updates), strict=False):
            count(run, update, stats := train_step(run, update))
        loss = stats.loss_sum.item() / stats.target_tokens  # waits for the device
        return {"seconds": time.perf_counter() - start, "compiled": runtime.num_compilations, "loss": loss}


def main() -> None:
    flags = sys.argv[1:]
    if flags[:1] == ["--child"]:
        print(json.dumps(train(flags[1], int(flags[2]), flags[3:])))
        return
    num_updates = int(flags.pop(flags.index("--updates") + 1)) if "--updates" in flags else 50
    flags = [flag for flag in flags if flag != "--updates"] or ["demo"]
    found = {}
    print(f"{num_updates} updates\n{'pad_to':<10}{'programs':>10}{'seconds':>10}{'last loss':>12}")
    for pad_to in ("buckets", "longest"):
        command = [sys.executable, __file__, "--child", pad_to, str(num_updates), *flags, "--mixed_precision", "no"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
        found[pad_to] = json.loads(done.stdout.splitlines()[-1])
        one = found[pad_to]
        print(f"{pad_to:<10}{one['compiled']:>10}{one['seconds']:>10.1f}{one['loss']:>12.5f}", flush=True)
    print(f"buckets are {found['longest']['seconds'] / found['buckets']['seconds']:.1f} times as fast")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    main()
