"""One child of a selfcheck: `python -m mtloop.selfcheck.child JOB.json`, plainly or under `accelerate launch`.

A job is {"config": YAML file, "work_dir": folder, "tasks": [{"kind": ..., "name": ..., "flags": [...], ...}]}. Each
task trains or evaluates in its run folder, work_dir/name, and writes work_dir/name.json.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mtloop.atomic import write_json
from mtloop.batching.loader import Update
from mtloop.checkpoint.manifest import hash_file
from mtloop.checkpoint.restore import load_weights
from mtloop.config.parse import parse_config
from mtloop.config.settings import Config, changed
from mtloop.config.yaml_file import to_yaml
from mtloop.errors import RunFailed, UserError
from mtloop.runtime.quiet import silence_libraries
from mtloop.runtime.ranks import Runtime
from mtloop.selfcheck.parent import KILLED_AFTER, NUM_FEW, choose_save_step
from mtloop.trainer.loop import train
from mtloop.trainer.report import count, evaluate_rows
from mtloop.trainer.resume import claim_folder
from mtloop.trainer.run import Run
from mtloop.trainer.setup import build_run, resolve_budget
from mtloop.trainer.step import UpdateStats, train_step

# A corpus of 200 rows does not have 8,000 tokens: the first possible size is used.
VOCAB_SIZES = (4_000, 2_000, 1_000, 504, 320, 200, 120)
# Tokens of each translation, where a model has learned so little that it translates every text to nothing.
MIN_LENGTH = 8


def main(job_path: str) -> int:
    """Do the tasks of a job. Collective: every process of the launch calls it."""
    silence_libraries()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    work_dir = Path(job["work_dir"])
    try:
        hardware = parse_config([job["config"], *job["tasks"][0]["flags"]]).hardware
        runtime = Runtime(hardware)
        updates_per_epoch = 1
        for task in job["tasks"]:
            do = {"updates": train_updates, "run": train_whole, "evaluate": evaluate_weights}[task["kind"]]
            config = parse_config([job["config"], *task["flags"], "--output_dir", str(work_dir / task["name"])])
            if task.get("is_killed"):
                save_step = choose_save_step(updates_per_epoch)
                config, task["kill_step"] = changed(config, save_steps=save_step), save_step + KILLED_AFTER
            result = do(task, config, runtime, work_dir)
            updates_per_epoch = result.get("updates_per_epoch", updates_per_epoch)
            if runtime.is_main:
                write_json(work_dir / f"{task['name']}.json", result)
            gc.collect()  # a model a task: the next one needs the memory
            runtime.accelerator.free_memory()
        runtime.close()
    except (UserError, RunFailed) as error:
        status = 2 if isinstance(error, UserError) else 1
        if os.environ.get("RANK", "0") == "0":
            write_json(work_dir / "error.json", {"status": status, "message": str(error)})
        return status
    return 0


def build(config: Config, runtime: Runtime) -> Run:
    """Build a run as train.py does, with the largest vocabulary that its few rows allow."""
    sizes = [size for size in VOCAB_SIZES if size < (config.model.vocab_size or 0)]
    while True:
        folder, stored = claim_folder(config, runtime)
        try:
            return build_run(resolve_budget(config, stored, num_ranks=runtime.num_ranks), stored, folder, runtime)
        except UserError as error:
            if not sizes or "--vocab_size" not in str(error):
                raise
            config = changed(config, vocab_size=sizes.pop(0))


def record_of(run: Run, update: Update, stats: UpdateStats) -> dict[str, Any]:
    """Return the record of an update. Collective."""
    (loss_sum,) = run.runtime.sum_over_ranks(stats.loss_sum)
    return {
        "step": run.state.step + 1,
        "epoch": run.state.epoch,
        "ids": update.sentence_ids.tolist(),
        "loss": loss_sum / update.target_tokens,
        "grad_norm": stats.grad_norm.item(),
        "num_micro_batches": run.runtime.gather_objects([len(update.micro_batches)]),
    }


def train_updates(task: dict[str, Any], config: Config, runtime: Runtime, work_dir: Path) -> dict[str, Any]:
    """Train the updates of a run one by one, and save the last."""
    run = build(config, runtime)
    built_s = time.time() - task["started"]
    records: list[dict[str, Any]] = []
    seconds: list[float] = []
    for update in run.updates():
        start = time.perf_counter()
        stats = train_step(run, update)
        records.append(record_of(run, update, stats))
        seconds.append(time.perf_counter() - start)
        count(run, update, stats)
        if len(seconds) == 2 and task.get("is_probe"):
            probe(run, work_dir, built_s, seconds[1])
    run.checkpointer.save()
    lengths = run.loader.source_lengths + run.loader.target_lengths
    return {
        "records": records,
        "num_rows": len(run.train_rows),
        "num_ranks": runtime.num_ranks,
        "num_threads": runtime.num_threads,
        "device": runtime.device.type,
        "updates_per_epoch": run.loader.updates_per_epoch,
        "tokens_per_update": int(lengths.sum()) // run.loader.updates_per_epoch,
        "config": to_yaml(run.config),
    }


def probe(run: Run, work_dir: Path, built_s: float, update_s: float) -> None:
    """Write the seconds of a start, an update and an evaluation for the parent. Collective."""
    few = min(NUM_FEW, len(run.valid.rows))
    report = evaluate_rows(run, run.valid.first(few))
    seconds = {
        "start": built_s,
        "update": update_s,
        "evaluation": report.time_s / few * len(run.valid.rows),
        "num_ranks": run.runtime.num_ranks,
    }
    if run.runtime.is_main:
        write_json(work_dir / "probe.json", seconds)


def train_whole(task: dict[str, Any], config: Config, runtime: Runtime, work_dir: Path) -> dict[str, Any]:
    """Train with the real loop, from the newest checkpoint if there is one; die after task["kill_step"], if given."""
    run = build(config, runtime)
    log, kill_step = work_dir / f"{task['name']}.{task['log']}.jsonl", task.get("kill_step")

    def observe(run: Run, update: Update, stats: UpdateStats) -> None:
        record = record_of(run, update, stats)
        if run.runtime.is_main:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if record["step"] == kill_step:
            os.kill(os.getpid(), signal.SIGKILL)

    run.observers.append(observe)
    train(run)
    return {"sha256": hash_file(run.folder.final_dir / "model.safetensors")["sha256"]}


def evaluate_weights(task: dict[str, Any], config: Config, runtime: Runtime, work_dir: Path) -> dict[str, Any]:
    """Evaluate the weights of a checkpoint; translations that are all empty are made again with a minimum length."""
    run = build(config, runtime)
    load_weights(run.model, Path(task["checkpoint"]))
    report = evaluate_rows(run, run.valid)
    if not runtime.on_main(lambda: any(map(str.strip, report.hypotheses))):
        generation: Any = run.model.generation_config
        generation.min_length = min(MIN_LENGTH, generation.max_length)
        generation.no_repeat_ngram_size = 1  # other tokens than the most frequent one, a space
        report = evaluate_rows(run, run.valid)
    return {**report.metrics(), "hypotheses": report.hypotheses}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
