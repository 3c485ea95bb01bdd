"""accelerate_configs/slurm.sh, run by bash: sbatch, srun and scontrol are stand-ins for what it relies on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from tests.support.launch import PROJECT, environment

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FLAGS = [
    "--mixed_precision", "no", "--max_train_samples", "600", "--max_eval_samples", "20", "--vocab_size", "400",
    "--num_train_epochs", "4", "--num_beams", "1", "--val_max_target_length", "16",
    "--logging_steps", "1", "--cpu_threads", "1",
]  # fmt: skip

# It runs a copy of the script, in the folder and with the environment of its caller.
SBATCH = """#!/bin/bash
cp "$1" "$STAND_INS/slurm_script"
shift
exec bash "$STAND_INS/slurm_script" "$@"
"""
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
# In place of `python -m mtloop launch ...`: the words, and what the first process of a run leaves behind.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" > "$STAND_INS/words.$SLURM_NODEID"
echo "$SRUN_CPUS_PER_TASK" >> "$STAND_INS/words.$SLURM_NODEID"
if [ "$SLURM_NODEID" = 0 ] && [ -n "$RUN_STATUS" ]; then
    mkdir "$STAND_INS/my run"
    echo "{\\"status\\": \\"$RUN_STATUS\\"}" > "$STAND_INS/my run/status.json"
    ln -s "$STAND_INS/my run" "$MTLOOP_RUN_LINK"
fi
exit "$LAUNCH_STATUS"
"""


def free_job():
    """Return the number of a job whose port, as the script chooses it, nobody listens on."""
    for job in range(4711, 5711):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + job)):
                return job
    raise AssertionError("no free port")


@pytest.fixture
def submit(tmp_path):
    """Submit the script: submit(nodes, GPUs a node or None, *words, variables) returns the running sbatch."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    job = free_job()

    def start(num_nodes, num_gpus, *words, programs=(), **variables):
        for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, **dict(programs)}.items():
            (stand_ins / name).write_text(text)
            (stand_ins / name).chmod(0o755)
        settings = environment(
            STAND_INS=str(stand_ins),
            PATH=f"{stand_ins}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            SLURM_NNODES=str(num_nodes),
            SLURM_JOB_ID=str(job),
            SLURM_JOB_NODELIST="node[1-2]",
            SLURM_CPUS_PER_TASK="3",
            **variables,
        )
        settings.pop("SLURM_GPUS_ON_NODE", None)
        if num_gpus is not None:
            settings["SLURM_GPUS_ON_NODE"] = str(num_gpus)
        return subprocess.Popen(
            ["sbatch", PROJECT / "accelerate_configs" / "slurm.sh", *map(str, words)],
            cwd=PROJECT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            executable=stand_ins / "sbatch",
        )  # fmt: skip

    start.folder, start.job = stand_ins, job
    return start


@pytest.mark.parametrize(
    ("num_nodes", "num_gpus", "num_processes"), [(1, 4, 4), (2, 4, 8), (1, None, 1), (2, None, 2), (2, 0, 2)]
)
def test_script_starts_a_process_for_each_gpu_or_one_a_node(submit, num_nodes, num_gpus, num_processes):
    words = ["train", "my recipe.yaml", "--source_prefix", "a  'b\" $c "]
    programs = {"python": PYTHON}
    job = submit(num_nodes, num_gpus, *words, programs=programs, RUN_STATUS="finished", LAUNCH_STATUS="0")
    output, _ = job.communicate(timeout=60)
    assert (job.returncode, output) == (0, "")
    for node in range(num_nodes):
        assert (submit.folder / f"words.{node}").read_text().splitlines() == [
            "-m", "mtloop", "launch", "multi_node", "--num_machines", str(num_nodes), "--machine_rank", str(node),
            "--main_process_ip", "127.0.0.1", "--main_process_port", str(20000 + submit.job),
            "--num_processes", str(num_processes), *words, "3",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("run_status", "launch_status", "is_requeued"),
    [("stopped", 0, True), ("stopped", 143, True), ("finished", 0, False), ("failed", 1, False), ("", 2, False)],
)
def test_script_requeues_a_run_that_was_stopped(submit, run_status, launch_status, is_requeued):
    programs = {"python": PYTHON}
    job = submit(1, 1, "train", programs=programs, RUN_STATUS=run_status, LAUNCH_STATUS=str(launch_status))
    output, _ = job.communicate(timeout=60)
    assert (job.returncode, output) == (launch_status, "")
    requeued = submit.folder / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == f"requeue {submit.job}\n" * is_requeued


@pytest.mark.full
@pytest.mark.parametrize(
    ("num_nodes", "num_gpus", "number", "is_in_recipe"),
    [
        (2, 1, signal.SIGUSR1, False),
        (1, 2, signal.SIGTERM, True),
        (1, None, signal.SIGUSR1, True),
        (2, None, signal.SIGTERM, False),
    ],
)
def test_a_job_is_stopped_requeued_and_continues(submit, tmp_path, num_nodes, num_gpus, number, is_in_recipe):
    folder = tmp_path / "a run"
    demo = yaml.safe_load((PROJECT / "mtloop" / "config" / "recipes" / "demo.yaml").read_text())
    recipe = demo | ({"output_dir": str(folder)} if is_in_recipe else {})
    path = tmp_path / "my recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    words = ["train", path, *FLAGS, *([] if is_in_recipe else ["--output_dir", folder])]
    first = submit(num_nodes, num_gpus, *words)
    deadline = time.monotonic() + 240
    while steps_of(folder)[-1] < 20:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0][-3000:]
        time.sleep(0.1)
    for task in map(psutil.Process, map(int, (submit.folder / "tasks").read_text().split())):
        # To every process of the step, as slurmstepd does: the ranks have sessions of their own.
        for process in (task, *task.children(recursive=True)):
            process.send_signal(number)
    output, _ = first.communicate(timeout=120)
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "stopped", output[-3000:]
    assert status["exit_status"] == first.returncode == (0 if number == signal.SIGUSR1 else 143)
    assert (submit.folder / "requeued").read_text() == f"requeue {submit.job}\n"
    second = submit(num_nodes, num_gpus, *words)
    output, _ = second.communicate(timeout=240)
    assert f"resumed from {folder}/checkpoints/step_{status['step']}:" in output, output[-3000:]
    assert f"· {num_nodes * (num_gpus or 1)} process" in output
    assert second.returncode == 0 and json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert (submit.folder / "requeued").read_text() == f"requeue {submit.job}\n"  # and not again
    steps = steps_of(folder)
    assert sorted(set(steps)) == list(range(steps[-1] + 1))


def steps_of(folder):
    """Return the updates with a loss in metrics.jsonl, after 0."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [0, *(record["step"] for record in map(json.loads, lines) if "loss" in record)]
