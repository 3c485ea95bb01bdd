"""A run killed between epochs and started again ends as if it had not been; refusals and requests around it."""

import json
import subprocess
import time

import pytest
from safetensors.torch import load_file

from tests.support.launch import PROJECT, PYTHON, environment, launch_command, run
from tests.support.runs import assert_same_run, metrics

pytestmark = pytest.mark.e2e

FLAGS = [
    "demo", "--mixed_precision", "no", "--max_train_samples", "300", "--max_eval_samples", "40", "--vocab_size", "400",
    "--tokens_per_update", "225",
    "--num_train_epochs", "3", "--dropout", "0.1", "--logging_steps", "1", "--num_beams", "1",
    "--val_max_target_length", "16", "--cpu_threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run([PYTHON, "train.py", *FLAGS, "--output_dir", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.full  # test_kills.py kills a run at random moments, and compares it with one that was left alone
def test_killed_after_the_first_epoch_and_started_again(whole, tmp_path):
    folder = tmp_path / "run"
    command = [PYTHON, "train.py", *FLAGS, "--output_dir", str(folder)]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "latest").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)  # some updates into the second epoch
    process.kill()
    process.wait()
    assert not (folder / "final").exists()
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from" in done.stdout
    assert_same_run(folder, whole)


def test_resumed_from_a_named_checkpoint(whole, tmp_path):
    """All checkpoints stand; the last epoch is thrown away and made again."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", str(whole), str(folder)], check=True)
    command = [PYTHON, "train.py", *FLAGS, "--output_dir", str(folder)]
    missing = run([*command, "--resume_from_checkpoint", "epoch_7"])
    assert missing.returncode == 2 and "epoch_2" in missing.stderr  # the ones that are there
    assert_same_run(folder, whole)
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    done = run([*command, "--resume_from_checkpoint", "epoch_2"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training resumes before this step" in done.stdout
    assert_same_run(folder, whole)


def test_two_processes_resume_what_one_began(whole, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", str(whole), str(folder)], check=True)
    (folder / "status.json").unlink()
    flags = [*FLAGS, "--output_dir", folder, "--resume_from_checkpoint", "epoch_2", "--cpu_threads", "1"]
    done = run(launch_command("train.py", *flags, num_processes=2))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout.splitlines()[0]
    assert done.stdout.count("trained ") == 1  # printed once, not once a rank
    assert "not bitwise equal to the uninterrupted run" in done.stdout
    assert [line["step"] for line in metrics(folder)] == [line["step"] for line in metrics(whole)]


def test_a_folder_of_another_run_is_refused_and_untouched(whole):
    def contents():
        return {path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and path.name != ".lock"}

    before = contents()
    done = run([PYTHON, "train.py", *FLAGS, "--output_dir", str(whole), "--learning_rate", "0.5"])
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "--learning_rate: 0.002 in the run folder, 0.5 asked" in done.stderr
    assert contents() == before


def test_output_that_nobody_reads_stops_nothing(tmp_path):
    """As in `train.py | head`: the reader leaves after the first line."""
    command = [PYTHON, "train.py", *FLAGS, "--max_train_steps", "5", "--output_dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=120) == 0, errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"


@pytest.mark.full
def test_the_stored_config_starts_the_same_run_again(whole, tmp_path):
    folder = tmp_path / "again"
    done = run([PYTHON, "train.py", str(whole / "config.yaml"), "--output_dir", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(folder, whole)


@pytest.mark.full
def test_limits_patience_and_the_best_model(tmp_path):
    """A learning rate of 0 never gains: patience 1 stops after the second evaluation; the first one is the best."""
    folder = tmp_path / "run"
    flags = ["--learning_rate", "1e-12", "--early_stopping_patience", "1", "--metric_for_best_model", "eval_loss"]
    flags += ["--num_train_epochs", "9", "--save_total_limit", "1", "--load_best_model_at_end", "--lr_scheduler_type"]
    flags += ["constant", "--num_warmup_steps", "0", "--output_dir", str(folder)]
    done = run([PYTHON, "train.py", *FLAGS, *flags])
    assert done.returncode == 0, done.stderr[-3000:]
    evaluations = [line for line in metrics(folder) if "bleu" in line]
    names = sorted(p.name for p in (folder / "checkpoints").iterdir() if not p.is_symlink())
    best = min(evaluations, key=lambda line: line["eval_loss"])
    assert len(evaluations) < 9
    assert f"step_{best['step']}" in names and f"step_{evaluations[-1]['step']}" in names
    assert len(names) <= 2
    message = json.loads((folder / "status.json").read_text())["message"]
    assert f"that of step {best['step']}" in message and "stopped early" in message
    final, kept = (load_file(path / "model.safetensors") for path in (folder / "final", folder / "checkpoints/best"))
    assert all((final[name] == kept[name]).all() for name in kept)
