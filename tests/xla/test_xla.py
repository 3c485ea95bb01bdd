"""train.py on one XLA:CPU device, as its launcher starts it: few programs, the numbers of a CPU, kill and resume."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.support.launch import PROJECT, run, start_command

pytestmark = [pytest.mark.xla, pytest.mark.timeout(3_000)]

NUM_UPDATES = 20
MAX_COMPILATIONS = 12
DEMO = [
    "demo", "--max_train_samples", 250, "--max_eval_samples", 8, "--vocab_size", 320, "--val_max_target_length", 20,
    "--max_train_steps", NUM_UPDATES, "--num_warmup_steps", 0, "--num_beams", 1, "--logging_steps", 1,
    "--save_steps", 5, "--mixed_precision", "no",
]  # fmt: skip


def records_of(folder, key="loss"):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if key in record]


def train(xla, folder, *flags):
    done = xla.launch(*flags, "--output_dir", folder)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    return done


@pytest.fixture(scope="module")
def straight(xla, tmp_path_factory):
    """A run without an interruption, with dropout: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train(xla, folder, *DEMO, "--dropout", 0.1).stdout


def assert_few_compilations(output, what):
    """Of an epoch of training: what the line of the first evaluation counts before it."""
    found = [line for line in output.splitlines() if line.startswith("XLA: ")]
    print(f"{what}: {found[0]}")
    counts = [[int(word) for word in line.split() if word.isdigit()] for line in found]  # before it, and in it
    assert 0 < counts[0][0] <= MAX_COMPILATIONS
    assert all(count == [sum(counts[0]), 0] for count in counts[1:])  # a second epoch compiles nothing


def test_losses_are_those_of_a_cpu(xla, tmp_path):
    train(xla, tmp_path / "xla", *DEMO, "--dropout", 0)
    cpu = run(start_command("train.py", *DEMO, "--dropout", 0, "--cpu_threads", 1, "--output_dir", tmp_path / "cpu"))
    assert cpu.returncode == 0, cpu.stderr[-3000:]
    expected, found = records_of(tmp_path / "cpu"), records_of(tmp_path / "xla")
    assert len(expected) == len(found) == NUM_UPDATES
    for one, other in zip(expected, found, strict=True):
        # The same sums in another order in fp32: 1e-7 an update, and 20 updates at a rate of 1e-3 carry it on.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["target_tokens"] == one["target_tokens"]
    assert found[-1]["loss"] < 0.95 * found[0]["loss"]
    for one, other in zip(*(records_of(tmp_path / name, "eval_loss") for name in ("cpu", "xla")), strict=True):
        assert other["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)


def test_an_epoch_takes_few_compilations(straight):
    _, output = straight
    assert_few_compilations(output, "demo, an epoch")
    assert output.count("XLA: ") == 2  # after the epoch, and at the end


def test_a_run_that_is_killed_goes_on_bitwise(xla, straight, tmp_path):
    command = xla.launch_command(*DEMO, "--dropout", 0.1, "--output_dir", tmp_path / "run")
    process = subprocess.Popen(
        command, cwd=PROJECT, env=xla.variables(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 900
    try:
        while not (tmp_path / "run" / "checkpoints" / "step_5").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "run" / "final").exists()
    done = train(xla, tmp_path / "run", *DEMO, "--dropout", 0.1)
    assert "resumed from" in done.stdout and "not bitwise" not in done.stdout
    assert [r["loss"] for r in records_of(tmp_path / "run")] == [r["loss"] for r in records_of(straight[0])]
    weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in (tmp_path / "run", straight[0])]
    assert weights[0] == weights[1]


def test_kde_pairs_take_few_compilations_an_epoch(xla, kde_path, tmp_path):
    done = train(
        xla, tmp_path / "run", "--train_file", kde_path, "--source_lang", "en", "--target_lang", "fr",
        "--train_tokenizer", "--vocab_size", 2_000, "--model_size", "tiny", "--max_train_samples", 3_000,
        "--max_eval_samples", 8, "--val_max_target_length", 16, "--num_train_epochs", 1, "--logging_steps", 5,
        "--mixed_precision", "no",
    )  # fmt: skip
    assert_few_compilations(done.stdout, "KDE pairs, an epoch")


def test_a_mistake_has_its_status_under_the_launcher(xla):
    done = xla.launch("demo", "--learning_rate", "fast")
    assert done.returncode == 2
    assert "mtloop: error: --learning_rate: invalid float value: 'fast'" in done.stderr
