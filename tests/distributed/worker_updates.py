"""Worker: train some updates of a run and write what each was made of.

worker_updates.py NUM_RANKS NUM_UPDATES OUT.json [flags of train.py]
"""

import json
import sys
from pathlib import Path

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.config.parse import parse_config
from mtloop.config.settings import resolve
from mtloop.model.loading import layers_of
from mtloop.runtime.quiet import silence_libraries
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import is_sharded
from mtloop.trainer.report import count
from mtloop.trainer.resume import claim_folder
from mtloop.trainer.setup import build_run, resolve_budget
from mtloop.trainer.step import train_step


def held_by(model) -> int:
    """How many parameters this rank holds: of a sharded one its part."""
    return sum((p.to_local() if is_sharded(model) else p).numel() for p in model.parameters())


def main() -> None:
    num_ranks, num_updates, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    silence_libraries()
    config = resolve(parse_config(sys.argv[4:]))
    runtime = Runtime(config.hardware)
    assert runtime.accelerator.num_processes == num_ranks, runtime.accelerator.num_processes
    folder, stored = claim_folder(config, runtime)
    run = build_run(resolve_budget(config, stored, num_ranks=runtime.num_ranks), stored, folder, runtime)
    records = []
    for update in run.loader.updates(epoch=0, cursor=0):
        own_tokens = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in update.micro_batches)
        stats = train_step(run, update)
        count(run, update, stats)
        loss_sum, tokens = runtime.sum_over_ranks(stats.loss_sum, float(own_tokens))
        records.append(
            {
                "ids": sorted(update.sentence_ids.tolist()),
                "loss": loss_sum / update.target_tokens,
                "grad_norm": stats.grad_norm.item(),
                "target_tokens": update.target_tokens,
                "tokens_seen": int(tokens),
                "num_recomputed": sum(layer.gradient_checkpointing for layer in layers_of(run.model)),
                "num_units": sum(is_sharded(module) for module in run.model.modules()),
                "num_parameters": runtime.gather_objects([held_by(run.model)]),
                "num_micro_batches": runtime.gather_objects([len(update.micro_batches)]),
                "shapes": runtime.gather_objects(
                    [[(*batch["input_ids"].shape, batch["labels"].shape[1]) for batch in update.micro_batches]]
                ),
            }
        )
        if len(records) == num_updates:
            break
    if runtime.is_main:
        out.write_text(json.dumps(records))
    runtime.close()


if __name__ == "__main__":
    main()
