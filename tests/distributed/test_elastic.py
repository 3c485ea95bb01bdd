"""A run saved on some processes goes on with others: the same updates, each sentence once, the same loss."""

import json

import pytest

from tests.support.launch import run, start_command

pytestmark = pytest.mark.distributed

# 960 pairs in updates of 16: 60 updates an epoch. About 16 * 37 tokens an update: several micro-batches a rank.
NUM_ROWS, NUM_UPDATES = 960, 60
FLAGS = [
    "demo", "--mixed_precision", "no", "--dropout", "0", "--cpu_threads", "1", "--max_train_samples", NUM_ROWS,
    "--max_eval_samples", "12", "--vocab_size", "400", "--num_beams", "1", "--val_max_target_length", "16",
    "--sentences_per_update", "16", "--max_tokens_per_micro_batch", "150",
    "--num_train_epochs", "1",
]  # fmt: skip


def train(tmp_path, name, *segments):
    """Train one run in segments of (processes, step to stop at); return what its updates were made of."""
    folder, log = tmp_path / name, tmp_path / f"{name}.jsonl"
    for num_processes, stop_step in segments:
        worker = ["tests/distributed/worker_train.py", num_processes, stop_step, log]
        done = run(start_command(*worker, *FLAGS, "--output_dir", folder, num_processes=num_processes))
        assert (folder / "status.json").exists(), done.stderr[-3000:]
        status = json.loads((folder / "status.json").read_text())
        expected = ("stopped", 143, stop_step) if stop_step else ("finished", 0, NUM_UPDATES)
        assert (status["status"], status["exit_status"], status["step"]) == expected, done.stderr[-3000:]
        if stop_step:
            assert (folder / "checkpoints" / f"step_{stop_step}").is_dir()
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.full
def test_from_two_processes_to_one_to_three_in_the_middle_of_an_epoch(tmp_path):
    straight = train(tmp_path, "straight", (2, 0))
    elastic = train(tmp_path, "elastic", (2, 20), (1, 40), (3, 0))
    assert [record["step"] for record in elastic] == list(range(1, NUM_UPDATES + 1))
    assert [record["ids"] for record in elastic] == [record["ids"] for record in straight]
    assert sorted(sum((record["ids"] for record in elastic), [])) == list(range(NUM_ROWS))
    assert [len(record["num_micro_batches"]) for record in elastic] == [2] * 20 + [1] * 20 + [3] * 20
    assert min(min(record["num_micro_batches"]) for record in elastic) > 1  # under accumulation
    for a, b in zip(straight, elastic, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), b["step"]
    largest = max(abs(b["loss"] / a["loss"] - 1) for a, b in zip(straight, elastic, strict=True))
    print(f"largest relative difference of a loss over {NUM_UPDATES} updates: {largest:.1e}")
