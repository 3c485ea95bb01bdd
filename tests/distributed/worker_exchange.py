"""Worker: what ranks tell each other as tensors, as on devices that have no collective of objects.

worker_exchange.py OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import torch

from mtloop.config.environment import HardwareConfig
from mtloop.runtime.collectives import exchange
from mtloop.runtime.ranks import Runtime


def main() -> None:
    runtime = Runtime(HardwareConfig())
    assert runtime.accelerator.num_processes == 2
    # Of unequal size: one fits the smallest tensor, the other is many times as long.
    mine = {"rank": runtime.rank, "text": "é" * (10 + 5_000 * runtime.rank)}
    objects = exchange(runtime.accelerator, mine)
    plain = {
        "items": runtime.gather_objects([runtime.rank, None]),
        "main": runtime.broadcast(runtime.rank),
        "sum": runtime.sum_over_ranks(0.5, runtime.rank),
        "rows": runtime.gather_rows(torch.full((runtime.rank, 3), 7), pad_id=-1).tolist(),
    }
    type(runtime).is_xla = True  # the same, in tensors alone
    tensors = {
        "items": runtime.gather_objects([runtime.rank, None]),
        "main": runtime.broadcast(runtime.rank),
        "sum": runtime.sum_over_ranks(0.5, runtime.rank),
        "rows": runtime.gather_rows(torch.full((runtime.rank, 3), 7), pad_id=-1).tolist(),
    }
    type(runtime).is_xla = False
    found = {"lengths": [len(one["text"]) for one in objects], "ranks": [one["rank"] for one in objects]}
    Path(sys.argv[1], f"{runtime.rank}.json").write_text(json.dumps([found, plain, tensors]))
    runtime.close()


if __name__ == "__main__":
    main()
