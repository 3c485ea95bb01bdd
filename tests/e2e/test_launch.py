"""Every way in from a clone: notebooks, each launch file."""

import importlib.util
import json

import pytest

from tests.support.launch import PROJECT, PYTHON, free_port, launch_command, run

pytestmark = pytest.mark.e2e

SMALL = [
    "demo", "--max_train_samples", "300", "--max_eval_samples", "20", "--vocab_size", "320", "--max_train_steps", "3",
    "--num_beams", "1", "--val_max_target_length", "12",
]  # fmt: skip


@pytest.mark.full  # docs/course.ipynb trains in a real kernel, which has such arguments
@pytest.mark.parametrize("module", ["mtloop", "train"])
def test_a_notebook_never_has_its_own_arguments_read(tmp_path, module):
    """As in IPython: the program's argv is the kernel's; main comes from the package or from train.py."""
    flags = {
        "config": "demo",
        "max_train_samples": 300,
        "max_eval_samples": 20,
        "vocab_size": 320,
        "max_train_steps": 3,
        "num_beams": 1,
        "val_max_target_length": 12,
    }
    program = f"""
import sys
sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json", "--learning_rate", "77"]
from accelerate import notebook_launcher
from {module} import main
notebook_launcher(main, args=({ {**flags, "output_dir": str(tmp_path / "run")}!r},), num_processes=1)
assert main({ {**flags, "output_dir": str(tmp_path / "two"), "mixed_precision": "bf16"}!r}).exit_status == 0
"""
    done = run([PYTHON, "-c", program])
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("run", "two"):  # the second in the same process, with another precision
        assert json.loads((tmp_path / name / "status.json").read_text())["status"] == "finished"
        assert "learning_rate: 0.002" in (tmp_path / name / "config.yaml").read_text()


def test_the_xla_launcher_calls_main_without_arguments(tmp_path):
    """It imports the script, sets argv to the script's, and calls main(): the flags must be read."""
    program = f"""
import sys
sys.argv = ["/somewhere/train.py", *{[*SMALL, "--output_dir", str(tmp_path / "run")]!r}]
import train
assert train.main() == 0
"""
    done = run([PYTHON, "-c", program])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


# What each file is started with on a machine without an accelerator, and what its first line then says.
WITHOUT_ACCELERATOR = {
    "cpu": ([], 1, False),
    "multi_cpu": ([], 2, False),
    "single_gpu": ([], 1, True),
    "multi_gpu": ([], 2, True),
    # Two machines: tests/distributed/test_two_hosts.py and tests/e2e/test_slurm.py.
    "multi_node": (["--num_machines", "1", "--num_processes", "2", "--main_process_ip", "127.0.0.1"], 2, True),
}
# Refused there: each has a test of its own.
REFUSED = {"deepspeed_zero2", "fsdp", "tpu", "tpu_pod"}


def test_every_launch_file_is_started_or_refused():
    names = {path.stem for path in (PROJECT / "accelerate_configs").glob("*.yaml")}
    assert names == set(WITHOUT_ACCELERATOR) | REFUSED


@pytest.mark.parametrize(
    "name",
    # By default test_wheel.py starts cpu.yaml, and multi_gpu.yaml stands for those that only name another device.
    [
        pytest.param(name, marks=[] if name in ("multi_cpu", "multi_gpu") else pytest.mark.full)
        for name in WITHOUT_ACCELERATOR
    ],
)
def test_a_launch_file_runs_on_the_cpu_and_says_if_it_asks_for_more(tmp_path, name):
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    given, num_processes, asks_for_gpu = WITHOUT_ACCELERATOR[name]
    port = ["--main_process_port", str(free_port())] if num_processes > 1 else []
    done = run(
        [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
         f"accelerate_configs/{name}.yaml", *given, *port, "train.py", *SMALL, "--output_dir", str(tmp_path / "run")]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"device cpu · {num_processes} process")
    assert first.endswith("the launch file asks for a GPU, but none is available") == asks_for_gpu


def test_fsdp_file_on_a_cpu_is_refused(tmp_path):
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    done = run(
        [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
         "accelerate_configs/fsdp.yaml", "--num_processes", "2", "train.py", *SMALL,
         "--output_dir", str(tmp_path / "run")]
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("mtloop: error: fsdp") == 1


def test_deepspeed_file_ends_with_a_line_that_says_what_is_missing(tmp_path):
    """Its package, of which the launcher itself speaks, or else an accelerator."""
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    words = ["train.py", *SMALL, "--output_dir", tmp_path / "run"]
    command = launch_command(*words, num_processes=2, file="deepspeed_zero2")
    done = run(command)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    if importlib.util.find_spec("deepspeed") is None:
        assert done.stderr.splitlines()[-1].startswith("ImportError: DeepSpeed is not installed")
    else:
        assert done.stderr.count("mtloop: error: deepspeed") == 1


def test_trackers_are_written(tmp_path):
    flags = ["--report_to", "tensorboard", "--logging_steps", "1"]
    done = run([PYTHON, "train.py", *SMALL, *flags, "--output_dir", str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_loader_workers_give_the_same_run(tmp_path):
    losses = []
    for workers in ("0", "2"):
        folder = tmp_path / workers
        flags = ["--dataloader_num_workers", workers, "--logging_steps", "1", "--output_dir", str(folder)]
        done = run([PYTHON, "train.py", *SMALL, *flags])
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1] and len(losses[0]) == 3
