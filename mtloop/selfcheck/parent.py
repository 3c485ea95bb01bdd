"""Run a selfcheck: start the children, estimate the time, and compare their results."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil

from mtloop.atomic import read_json, read_json_lines, write_json
from mtloop.config.settings import Config, changed
from mtloop.config.yaml_file import to_yaml
from mtloop.errors import RunFailed, UserError
from mtloop.runtime.forks import free_port
from mtloop.selfcheck.compare import (
    Record,
    Row,
    compare_coverage,
    compare_evaluations,
    compare_updates,
    compare_weights,
)

NUM_UPDATES = 20
# 200 rows in all; an update small enough for several in an epoch of them.
MAX_TRAIN_ROWS, MAX_EVAL_ROWS = 160, 40
MAX_TOKENS_PER_UPDATE, MAX_SENTENCES_PER_UPDATE = 1_000, 16
DROPOUT = 0.1  # of the interrupted run: without it, random numbers that a resume gets wrong would not show
NUM_FEW = 4  # rows of an evaluation whose result is not compared
ONE_MICRO_BATCH = 1_000_000  # tokens that no update has, and an overhead that none is worth a second forward
CHILD_TIMEOUT_S = 3_600.0
LOG_NAME = "child.log"
KILLED_AFTER = 2  # updates after the checkpoint


def shrink(config: Config) -> Config:
    """Make a configuration small enough to be run six times."""

    def at_most(limit: int, value: int | None) -> int:
        return limit if value is None else min(limit, value)

    batch, data = config.batch, config.data
    values: dict[str, Any] = {
        "max_train_steps": NUM_UPDATES,
        "max_train_samples": at_most(MAX_TRAIN_ROWS, data.max_train_samples),
        "max_eval_samples": at_most(MAX_EVAL_ROWS, data.max_eval_samples),
        "test_file": None,
        "mixed_precision": "no",
        "dropout": 0.0,
        "eval_on_start": False,
        "eval_steps": NUM_UPDATES,
        "save_steps": None,
        "save_total_limit": None,
        "early_stopping_patience": None,
        "load_best_model_at_end": False,
        "average_last": None,
        "resume_from_checkpoint": None,
        "allow_changed": False,
        "push_to_hub": False,
        "report_to": None,
        "expect_processes": None,
    }
    warmup = config.optimizer.num_warmup_steps
    if warmup is not None and warmup >= 1:
        values["num_warmup_steps"] = min(warmup, NUM_UPDATES // 2)
    if batch.tokens_per_update is not None:
        values["tokens_per_update"] = min(batch.tokens_per_update, MAX_TOKENS_PER_UPDATE)
    if batch.sentences_per_update is not None:
        values["sentences_per_update"] = min(batch.sentences_per_update, MAX_SENTENCES_PER_UPDATE)
    return changed(config, **values)


@dataclass
class Selfcheck:
    """Three child processes and their results.

    Attributes:
        config: Configuration of every child.
        launch: Flags for `accelerate launch`.
        work_dir: Folder that the children write to.
    """

    config: Config
    launch: list[str]
    work_dir: Path
    results: dict[str, Any] = field(default_factory=dict)

    def run(self) -> list[Row]:
        """Start the children one after the other and compare what they wrote.

        Raises:
            UserError, RunFailed: when a child ends with one.
        """
        config_path = self.work_dir / "config.yaml"
        config_path.write_text(to_yaml(self.config), encoding="utf-8")
        print("selfcheck: measuring two updates and a few translations to estimate the time ...", flush=True)
        num_few = min(NUM_FEW, self.config.data.max_eval_samples or NUM_FEW)
        random = ["--dropout", str(DROPOUT), "--max_eval_samples", str(num_few)]
        checkpoint = str(self.work_dir / "all" / "checkpoints" / f"step_{NUM_UPDATES}")
        self._start("all processes", [
            {"kind": "updates", "name": "all", "flags": [], "is_probe": True},
            {"kind": "evaluate", "name": "all_evaluated", "flags": [], "checkpoint": checkpoint},
            {"kind": "run", "name": "whole", "flags": random, "log": "whole"},
            {"kind": "run", "name": "broken", "flags": random, "log": "killed", "is_killed": True},
        ])  # fmt: skip
        everyone = self.results["all"]
        save_step = choose_save_step(everyone["updates_per_epoch"])
        if len(self._log("broken", "killed")) <= save_step:  # it failed before the kill
            self._fail("all processes")
        # Values resolved for all processes are used for one: sentences of an update, warm-up, beams.
        config_path.write_text(everyone["config"], encoding="utf-8")
        threads = ["--cpu_threads", str(everyone["num_threads"])]
        most = str(ONE_MICRO_BATCH)
        one = [*threads, "--max_tokens_per_micro_batch", most, "--micro_batch_overhead", most]
        many = [*threads, "--max_tokens_per_micro_batch", str(max(1, everyone["tokens_per_update"] // 4))]
        self._start("one process", [
            {"kind": "updates", "name": "one", "flags": one},
            {"kind": "updates", "name": "many", "flags": many},
            {"kind": "evaluate", "name": "one_evaluated", "flags": threads, "checkpoint": checkpoint},
        ], is_launched=False)  # fmt: skip
        flags = [*random, "--save_steps", str(save_step)]
        self._start("all processes, resumed", [
            {"kind": "run", "name": "broken", "flags": flags, "log": "resumed"},
        ])  # fmt: skip
        return self._compare()

    @property
    def unproven(self) -> list[str]:
        """Return what the comparison cannot prove on this launch."""
        everyone, unproven = self.results["all"], []
        if everyone["num_ranks"] == 1:
            unproven.append("that several processes give the same (the launch started one: give --config_file)")
        if everyone["device"] != "cpu":
            unproven.append(f"that a resume gives bitwise the same weights (not checked on {everyone['device']})")
        return unproven

    def _compare(self) -> list[Row]:
        results = self.results
        everyone, one, many = (results[name] for name in ("all", "one", "many"))
        whole = self._log("whole", "whole")
        killed, resumed = (self._log("broken", name) for name in ("killed", "resumed"))
        joined = [record for record in killed if record["step"] < resumed[0]["step"]] + resumed
        num_ranks = everyone["num_ranks"]
        processes = f"1 and {num_ranks} process{'es' if num_ranks > 1 else ''}"
        if num_ranks == 1:
            processes += " (the launch starts no more: give --config_file)"
        numbers = [max(record["num_micro_batches"][0] for record in result["records"]) for result in (one, many)]
        rows = [
            compare_coverage("every sentence once an epoch", one["records"], one["num_rows"]),
            compare_coverage("every sentence once, resumed", joined, one["num_rows"]),
            compare_updates(f"{numbers[0]} and {numbers[1]} micro-batches", one["records"], many["records"]),
            compare_updates(f"updates on {processes}", one["records"], everyone["records"]),
            compare_updates("killed and resumed: updates", whole, joined, is_bitwise=everyone["device"] == "cpu"),
        ]
        if everyone["device"] == "cpu":  # sums on an accelerator do not have a fixed order
            steps = f"killed after update {killed[-1]['step']}, resumed after {resumed[0]['step'] - 1}"
            digests = (results[name]["sha256"] for name in ("whole", "broken"))
            rows.append(compare_weights("killed and resumed: weights", *digests, steps=steps))
        rows.append(
            compare_evaluations(f"evaluation on {processes}", results["one_evaluated"], results["all_evaluated"])
        )
        return rows

    def _log(self, name: str, log: str) -> list[Record]:
        return read_json_lines(self.work_dir / f"{name}.{log}.jsonl")

    def _start(self, what: str, tasks: list[dict[str, Any]], *, is_launched: bool = True) -> None:
        """Run one child to its end, at which a task may kill it, and read its results."""
        job_path = self.work_dir / "job.json"
        tasks[0]["started"] = time.time()
        for task in tasks[1:]:
            task["started"] = tasks[0]["started"]
        job = {"config": str(self.work_dir / "config.yaml"), "work_dir": str(self.work_dir), "tasks": tasks}
        write_json(job_path, job)
        command = [sys.executable, "-m"]
        if is_launched:
            command += ["accelerate.commands.accelerate_cli", "launch", *self.launch]
            command += [f"--main_process_port={free_port()}", "-m"]
        project = str(Path(__file__).parents[2])
        paths = [project, *filter(None, [os.environ.get("PYTHONPATH")])]
        with (self.work_dir / LOG_NAME).open("w") as log:
            child = subprocess.Popen(
                [*command, "mtloop.selfcheck.child", str(job_path)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                status = self._wait(child)
            finally:
                _end_processes(child)
        is_killed = tasks[-1].get("is_killed", False)
        for task in tasks[: -1 if is_killed else None]:
            if not (result := read_json(self.work_dir / f"{task['name']}.json")):
                self._fail(what)
            self.results[task["name"]] = result
        if (status == 0) == is_killed or (self.work_dir / "error.json").exists():
            self._fail(what)
        print(f"done: {what}", flush=True)

    def _wait(self, child: subprocess.Popen) -> int:
        """Wait for a child; print the estimated time once the first has measured it."""
        probe_path = self.work_dir / "probe.json"
        deadline = time.monotonic() + CHILD_TIMEOUT_S
        while child.poll() is None:
            if seconds := read_json(probe_path):
                print(estimate(seconds), flush=True)
                probe_path.unlink()
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"selfcheck: a child did not end within {CHILD_TIMEOUT_S:g} s. Give a smaller --model_size."
                )
            time.sleep(0.1)
        return child.returncode

    def _fail(self, what: str) -> NoReturn:
        if error := read_json(self.work_dir / "error.json"):
            raise (UserError if error["status"] == 2 else RunFailed)(error["message"])
        lines = (self.work_dir / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
        print(*(f"    {line}" for line in lines[-15:]), sep="\n", file=sys.stderr)
        raise RunFailed(f"selfcheck: the child on {what} failed. See its last lines above.")


def choose_save_step(updates_per_epoch: int) -> int:
    """Return the step to save at: neither it nor the next ends an epoch, so that the resume begins within one."""
    steps = [step for step in range(8, 13) if step % updates_per_epoch and (step + 1) % updates_per_epoch]
    return steps[0] if steps else 8  # of one or two updates an epoch: at the end of one


def estimate(seconds: dict[str, float]) -> str:
    """Estimate the time of a selfcheck from the seconds of a start, an update and an evaluation."""
    # All processes: 20 updates, 20 with dropout, 10 before the kill and 12 after it. One process: twice 20.
    num_updates = 62 + 40 * seconds["num_ranks"]
    num_evaluations = 1 + seconds["num_ranks"]
    parts = (3 * seconds["start"], num_updates * seconds["update"], num_evaluations * seconds["evaluation"])
    return (
        f"this takes about {_minutes(sum(parts))}: 3 starts of {seconds['start']:.0f} s, about {num_updates:.0f} "
        f"updates of {seconds['update']:.2f} s, {num_evaluations:.0f} evaluations of up to "
        f"{seconds['evaluation']:.0f} s"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _end_processes(child: subprocess.Popen) -> None:
    """Kill all processes of a child: ranks have separate sessions, and the launcher may orphan its trainer."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.kill()
    child.wait()
