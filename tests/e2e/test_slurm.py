"""The SLURM script of docs/hardware.md, run by bash; srun and scontrol are stand-ins for what it relies on."""

import json
import os
import re
import signal
import subprocess

import psutil
import pytest

from tests.support.launch import PROJECT, environment, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FLAGS = [
    "demo", "--mixed_precision", "no", "--max_train_samples", "600", "--max_eval_samples", "20", "--vocab_size", "400",
    "--num_train_epochs", "4", "--num_beams", "1", "--val_max_target_length", "16",
    "--logging_steps", "1", "--cpu_threads", "1",
]  # fmt: skip

# One task a node, each in a session of its own, as slurmstepd starts them.
SRUN = """#!/bin/bash
pids=()
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node setsid "$@" & pids+=($!)
done
echo "${pids[@]}" > "$STAND_INS/tasks"
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$STAND_INS/requeued"; fi
"""


@pytest.fixture
def job(tmp_path):
    """Start the script as sbatch would: job(nodes, processes a node, *flags)."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    page = (PROJECT / "docs" / "hardware.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    assert script.count("29500") == 1

    def start(num_nodes, num_processes, *flags):
        path = tmp_path / "train.slurm"
        path.write_text(script.replace("29500", str(free_port())))
        settings = {
            "STAND_INS": str(stand_ins),
            "PATH": f"{stand_ins}:{os.environ['PATH']}",
            "SLURM_NNODES": str(num_nodes),
            "SLURM_GPUS_ON_NODE": str(num_processes),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }
        return subprocess.Popen(
            ["bash", str(path), *flags],
            cwd=PROJECT,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.mark.full
@pytest.mark.parametrize(("num_nodes", "num_processes", "number"), [(2, 1, signal.SIGUSR1), (1, 2, signal.SIGTERM)])
def test_a_job_is_stopped_requeued_and_goes_on(job, tmp_path, num_nodes, num_processes, number):
    folder = tmp_path / "run"
    flags = [*FLAGS, "--output_dir", str(folder)]
    first = job(num_nodes, num_processes, *flags)
    for line in first.stdout:
        if line.startswith("update 20 "):
            break
    for task in map(psutil.Process, map(int, (tmp_path / "bin" / "tasks").read_text().split())):
        # To every process of the step, as slurmstepd does: the ranks have sessions of their own.
        for process in (task, *task.children(recursive=True)):
            process.send_signal(number)
    output, _ = first.communicate(timeout=120)
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "stopped", output[-3000:]
    assert status["exit_status"] == (0 if number == signal.SIGUSR1 else 143)
    assert (tmp_path / "bin" / "requeued").read_text() == "requeue 4711\n"
    second = job(num_nodes, num_processes, *flags)
    output, _ = second.communicate(timeout=240)
    assert f"resumed from {folder}/checkpoints/step_{status['step']}:" in output, output[-3000:]
    assert f"{num_nodes * num_processes} processes" in output
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert (tmp_path / "bin" / "requeued").read_text() == "requeue 4711\n"  # and not again
    steps = [json.loads(line).get("step") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in line
    ]
    assert sorted(set(losses)) == list(range(1, steps[-1] + 1))
