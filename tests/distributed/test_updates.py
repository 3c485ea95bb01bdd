"""Invariant 1: an update does not depend on how many processes share it or on how it is cut."""

import json

import pytest

from tests.support.launch import launch

pytestmark = pytest.mark.distributed

NUM_UPDATES = 20
WORKER = "tests/distributed/worker_updates.py"
# What is computed once for an update, however it is divided.
OF_THE_WHOLE_UPDATE = ["--label_smoothing_factor", 0.1, "--max_grad_norm", 0.5, "--weight_decay", 0.1]


def train_updates(tmp_path, num_processes, *flags):
    out = tmp_path / f"updates_{num_processes}_{'_'.join(map(str, flags)).strip('-')}.json"
    run_dir = out.with_suffix("")
    launch(
        WORKER, num_processes, NUM_UPDATES, out, "demo", "--max_train_samples", 1_000, "--output_dir", run_dir,
        "--mixed_precision", "no", "--dropout", "0", *OF_THE_WHOLE_UPDATE, *flags,
        num_processes=num_processes,
    )  # fmt: skip
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_updates(tmp_path_factory.mktemp("alone"), 1, "--micro_batch_overhead", 100_000)


@pytest.fixture(scope="module")
def one_sentence(tmp_path_factory):
    return train_updates(tmp_path_factory.mktemp("one"), 1, "--sentences_per_update", 1)


def assert_same_updates(expected, found):
    assert len(found) == len(expected) == NUM_UPDATES
    for a, b in zip(expected, found, strict=True):
        assert a["ids"] == b["ids"]
        assert a["target_tokens"] == b["target_tokens"] == b["tokens_seen"]
        assert len(set(b["num_micro_batches"])) == 1
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)


def test_the_reference_is_one_micro_batch_an_update(alone):
    # Some 25 pairs of about 37 tokens are far below the 4,096 of a micro-batch, and a second one costs too much.
    assert all(record["num_micro_batches"] == [1] for record in alone)
    assert alone[-1]["loss"] < alone[0]["loss"]
    assert max(record["grad_norm"] for record in alone) > 0.5  # clipping happens


@pytest.mark.parametrize(
    ("num_processes", "max_tokens"),
    [pytest.param(1, 200, marks=pytest.mark.full), pytest.param(2, 4_096, marks=pytest.mark.full), (2, 200)],
)
def test_updates_are_the_same_on_any_processes_and_micro_batches(alone, tmp_path, num_processes, max_tokens):
    """Also where each of two ranks computes the activations of its micro-batches again."""
    again = ["--gradient_checkpointing"] if num_processes > 1 else []
    found = train_updates(tmp_path, num_processes, "--max_tokens_per_micro_batch", max_tokens, *again)
    if max_tokens == 200:
        assert all(record["num_micro_batches"][0] > 1 for record in found)
    assert alone[0]["num_recomputed"] == 0 and bool(found[0]["num_recomputed"]) == (num_processes > 1)
    assert_same_updates(alone, found)


@pytest.mark.parametrize("num_processes", [pytest.param(1, marks=pytest.mark.full), 2])
@pytest.mark.parametrize(("pad_to", "max_shapes"), [("buckets", 8), pytest.param("fixed", 1, marks=pytest.mark.full)])
def test_padding_to_few_shapes_changes_no_update(alone, tmp_path, num_processes, pad_to, max_shapes):
    flags = ["--pad_to", pad_to, "--max_tokens_per_micro_batch", 600]
    found = train_updates(tmp_path, num_processes, *flags)
    assert_same_updates(alone, found)
    by_rank = [record["shapes"] for record in found]
    assert all(shapes == [shapes[0]] * num_processes for shapes in by_rank)
    kinds = {tuple(shape) for shapes in by_rank for shape in shapes[0]}
    assert 1 <= len(kinds) <= max_shapes


@pytest.mark.parametrize("sharded", [[], ["--shard_model"]], ids=["whole", "sharded"])
def test_a_rank_without_a_sentence_changes_nothing(one_sentence, tmp_path, sharded):
    """One sentence an update on two ranks: one of them only keeps step."""
    assert all(len(record["ids"]) == 1 for record in one_sentence)
    assert_same_updates(one_sentence, train_updates(tmp_path, 2, "--sentences_per_update", 1, *sharded))
