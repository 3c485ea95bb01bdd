"""calibration: the faster precision and the largest micro-batch are found, stored with the run, and change nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtloop.batching.plan import plan_epoch
from mtloop.errors import UserError
from mtloop.trainer import calibration
from mtloop.trainer.calibration import (
    MIN_FORWARDS,
    PROBE_TOKENS,
    choose_micro_batches,
    choose_precision,
    measure_gain,
    probe,
    typical_micro_batch,
)
from mtloop.trainer.loop import train
from mtloop.trainer.recovery import lower_limit_of_next_start
from mtloop.trainer.step import train_step

LONG = {"max_train_steps": MIN_FORWARDS * 10}


@pytest.fixture
def open_runtime(runtime):
    """As where neither flag nor launch file insists on a precision."""
    runtime.can_choose_precision = True
    return runtime


@pytest.fixture
def cost(open_runtime, monkeypatch):
    """Seconds of a forward and backward by precision, and the rows of each that was made: cost({...}) -> list."""
    now = [0.0]
    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def be(seconds):
        made = []

        def wait(run, batch, *, with_exchange):
            made.append((run.runtime.precision, len(batch["labels"])))
            now[0] += seconds[run.runtime.precision]

        monkeypatch.setattr(calibration, "forward_and_backward", wait)
        return made

    return be


@pytest.mark.parametrize(
    ("bf16_s", "expected"), [(0.005, "bf16"), (0.04, "no"), (0.0195, "no")], ids=["faster", "slower", "about as fast"]
)
@pytest.mark.slow
def test_the_faster_one_is_taken_and_the_run_keeps_it(new_run, open_runtime, cost, capsys, bf16_s, expected):
    made = cost({"no": 0.02, "bf16": bf16_s})
    run = new_run(**LONG)
    choose_precision(run)
    assert open_runtime.precision == expected
    found = run.folder.run_record["precision"]
    assert found["name"] == expected
    assert found["bf16_gain"] == pytest.approx(0.02 / bf16_s)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"precision {'bf16' if expected == 'bf16' else 'fp32'}: ")
    assert f"{found['bf16_gain']:.2g} times as fast" in said
    num_made = len(made)
    open_runtime.precision = "no"
    choose_precision(new_run(**LONG))  # the same run, begun again
    assert open_runtime.precision == expected and len(made) == num_made
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_where_bf16_is_hopeless_a_few_rows_tell(new_run, cost):
    made = cost({"no": 0.001, "bf16": 0.02})
    run = new_run(**LONG)
    ids, _ = typical_micro_batch(run.loader)
    assert measure_gain(run) < 0.5
    assert {rows for _, rows in made} == {-(-len(ids) // calibration.PART_STEP)} and len(made) == 4


def test_a_warm_up_that_takes_for_ever_is_the_only_one(new_run, cost):
    made = cost({"no": 0.5, "bf16": 20.0})
    assert measure_gain(new_run(**LONG)) == pytest.approx(0.025)
    assert [precision for precision, _ in made] == ["no", "bf16"]


def test_a_large_model_is_measured_on_fewer_rows(new_run, cost, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_SECONDS", 0.2)
    run = new_run(**LONG)
    ids, _ = typical_micro_batch(run.loader)
    part = -(-len(ids) // calibration.PART_STEP)
    made = cost({"no": 0.02, "bf16": 0.02})
    measure_gain(run)
    # Two of each precision in 0.2 s are 50 ms for one: 2.5 times what the part took.
    assert max(rows for _, rows in made) == int(2.5 * part) < len(ids)


@pytest.mark.parametrize("flags", [{"max_train_steps": MIN_FORWARDS // 8}, {}], ids=["25 updates", "3 epochs of 4"])
def test_a_run_too_short_to_gain_is_not_measured(new_run, cost, capsys, flags):
    made = cost({"no": 0.0, "bf16": 0.0})
    choose_precision(new_run(**flags))
    assert made == []
    assert capsys.readouterr().out.splitlines()[-1] == "precision fp32: the run is too short to try bf16"


def test_nothing_is_measured_where_somebody_insists(new_run, cost, runtime):
    runtime.can_choose_precision = False
    made = cost({"no": 0.0, "bf16": 0.0})
    run = new_run(**LONG)
    choose_precision(run)
    assert made == [] and "precision" not in run.folder.run_record


@pytest.mark.slow
def test_measuring_leaves_weights_and_gradients_as_they_are(new_run, open_runtime):
    run = new_run(**LONG)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    gain = measure_gain(run)
    assert gain > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_the_micro_batch_measured_holds_the_median_token(new_run):
    loader = new_run(sentences_per_update=16, micro_batch_overhead=50).loader
    ids, forwards = typical_micro_batch(loader)
    plan = plan_epoch(loader.target_lengths, loader.budget, seed=loader.seed, epoch=0)
    every = [one.sentence_ids for n in range(plan.num_updates) for one in loader.divide(plan.sentence_ids(n))]
    assert forwards == len(every) / plan.num_updates > 1

    def size(rows):
        return len(rows) * int(loader.source_lengths[rows].max() + loader.target_lengths[rows].max())

    assert any(np.array_equal(ids, one) for one in every)
    total = sum(map(size, every))
    assert sum(size(one) for one in every if size(one) < size(ids)) < total / 2
    assert sum(size(one) for one in every if size(one) <= size(ids)) >= total / 2


# micro-batches

FLAGS = {"max_train_steps": 6, "logging_steps": 1, "max_eval_samples": 4}


def available(monkeypatch, num_bytes):
    monkeypatch.setattr("mtloop.trainer.calibration.free_memory", lambda device: num_bytes)


@pytest.mark.slow
def test_a_larger_memory_has_room_for_more_and_nothing_is_changed_by_looking(new_run, monkeypatch):
    size = {"model_size": "tiny", "dropout": 0.1}
    run = new_run(**size, max_tokens_per_micro_batch="auto")
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    found = []
    for num_bytes in (10**6, 2 * 10**8, 4 * 10**8, 10**13):
        available(monkeypatch, num_bytes)
        found.append(probe(run))
    longest = int((run.loader.source_lengths + run.loader.target_lengths).max())
    assert PROBE_TOKENS[0] - longest < found[0] <= PROBE_TOKENS[0]  # the least that is tried
    assert found[0] < found[1] < found[2] <= found[3] == 8_192
    assert all(p.grad is None for p in run.model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.state_dict().items())
    other = new_run("other", **size)
    losses = [train_step(one, next(one.loader.updates(epoch=0, cursor=0))).loss_sum.item() for one in (run, other)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_what_was_found_is_kept_for_a_resume_on_the_same_hardware(new_run, monkeypatch, capsys):
    available(monkeypatch, 10**9)
    run = new_run(max_tokens_per_micro_batch="auto", **FLAGS)
    train(run)
    tokens = run.loader.max_tokens_per_micro_batch
    assert f"--max_tokens_per_micro_batch auto: {tokens:,} tokens of both sides in a forward" in capsys.readouterr().out
    monkeypatch.setattr("mtloop.trainer.calibration.probe", lambda run: pytest.fail("it was looked for again"))
    longer = {**FLAGS, "max_train_steps": 8, "allow_changed": True}
    again = new_run(max_tokens_per_micro_batch="auto", **longer)
    choose_micro_batches(again)
    assert again.loader.max_tokens_per_micro_batch == tokens
    monkeypatch.setattr("mtloop.trainer.calibration.probe", lambda run: 777)
    again.checkpointer.identity["hardware"] = "device cuda"
    choose_micro_batches(again)
    assert again.loader.max_tokens_per_micro_batch == 777


@pytest.mark.slow
def test_a_number_that_is_given_holds_whatever_was_found(new_run, monkeypatch):
    available(monkeypatch, 10**9)
    choose_micro_batches(new_run(max_tokens_per_micro_batch="auto"))
    run = new_run(max_tokens_per_micro_batch=5_000)
    choose_micro_batches(run)
    assert run.loader.max_tokens_per_micro_batch == 5_000
    lower_limit_of_next_start(run)  # it had no room
    run = new_run(max_tokens_per_micro_batch=5_000)
    choose_micro_batches(run)
    assert run.loader.max_tokens_per_micro_batch == 2_500


def test_auto_needs_shapes_that_may_change(new_run):
    with pytest.raises(UserError, match="--max_tokens_per_micro_batch: expected a number with --pad_to buckets"):
        new_run(max_tokens_per_micro_batch="auto", pad_to="buckets")
