"""A training run that pushes: each epoch arrives, and a Hub that fails never stops the training."""

import hashlib
import json
import sys

import pytest

from tests.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from tests.launch import launch_command, run

pytestmark = pytest.mark.e2e

FLAGS = [
    "demo", "--max_train_samples", "300", "--max_eval_samples", "20", "--vocab_size", "320", "--num_train_epochs", "2",
    "--num_beams", "1", "--save_total_limit", "1", "--push_to_hub", "--hub_model_id", "tester/demo",
]  # fmt: skip


@pytest.fixture
def server():
    with HubServer() as started:
        yield started


def settings(server, token=WRITE_TOKEN):
    return {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": server.url, "HF_TOKEN": token}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_epoch_and_the_end_are_pushed_once(server, tmp_path, num_processes):
    folder = tmp_path / "run"
    command = launch_command("train.py", *FLAGS, "--output_dir", folder, num_processes=num_processes)
    done = run(command, **settings(server))
    assert done.returncode == 0, done.stderr[-3000:]
    messages = [message for message, _ in server.commits("tester/demo") if "raining" in message]
    # The last epoch is final/ to the byte, and the Hub's client makes no commit without a change.
    assert messages == ["Training in progress, epoch 1", "Training in progress, epoch 2"]
    _, files = server.commits("tester/demo")[-1]
    assert files["model.safetensors"] == hashlib.sha256((folder / "final/model.safetensors").read_bytes()).hexdigest()
    assert {"model.safetensors", "config.json", "generation_config.json", "source.spm", "vocab.json"} <= set(files)
    assert not any(name.startswith("training/") for name in files)
    assert json.loads((folder / "status.json").read_text())["exit_status"] == 0
    assert not list((folder / "checkpoints").glob(".push-*"))


def test_a_hub_that_fails_leaves_the_run_trained_and_status_3(server, tmp_path):
    server.fail(r"/commit/main", 403, times=100)
    folder = tmp_path / "run"
    done = run([sys.executable, "train.py", *FLAGS, "--output_dir", str(folder)], **settings(server))
    assert done.returncode == 3, done.stderr[-3000:]
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["exit_status"]) == ("finished", 3)
    assert "Training in progress, epoch 1" in status["message"]
    assert (folder / "final" / "model.safetensors").exists()
    assert WRITE_TOKEN not in done.stdout + done.stderr + (folder / "status.json").read_text()


def test_a_token_that_may_not_write_is_refused_before_anything_is_loaded(server, tmp_path):
    done = run(
        [sys.executable, "train.py", *FLAGS, "--output_dir", str(tmp_path / "run")], **settings(server, READ_TOKEN)
    )
    assert done.returncode == 2
    assert "--push_to_hub" in done.stderr and READ_TOKEN not in done.stderr
    assert "rows loaded" not in done.stdout
