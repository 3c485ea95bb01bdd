"""Worker: train.py itself, with a line for every update of what it was made of, and a stop at a step of one's choice.

worker_train.py NUM_RANKS STOP_STEP LOG.jsonl [flags of train.py]     (STOP_STEP 0: to the end)
"""

import json
import os
import signal
import sys
from pathlib import Path

from mtloop.cli.commands.train import main
from mtloop.trainer import loop


def logged(train_step, num_ranks: int, stop_step: int, log: Path):
    def step(run, update):
        runtime = run.runtime
        assert runtime.accelerator.num_processes == num_ranks, runtime.accelerator.num_processes
        stats = train_step(run, update)
        (loss_sum,) = runtime.sum_over_ranks(stats.loss_sum)
        record = {
            "step": run.state.step + 1,
            "epoch": run.state.epoch,
            "ids": sorted(update.sentence_ids.tolist()),
            "loss": loss_sum / update.target_tokens,
            "num_micro_batches": runtime.gather_objects([len(update.micro_batches)]),
        }
        if runtime.is_main:
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if record["step"] == stop_step and runtime.rank == num_ranks - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stats

    return step


if __name__ == "__main__":
    loop.train_step = logged(loop.train_step, int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
