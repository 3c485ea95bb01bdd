"""The faster precision is the one that is taken, kept with the run, and nothing is trained by measuring."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtloop.batching import plan_epoch
from mtloop.trainer import precision as module
from mtloop.trainer.precision import MIN_FORWARDS, measure_gain, settle_precision, typical_micro_batch

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
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def be(seconds):
        made = []

        def wait(run, batch, *, with_exchange):
            made.append((run.runtime.precision, len(batch["labels"])))
            now[0] += seconds[run.runtime.precision]

        monkeypatch.setattr(module, "forward_and_backward", wait)
        return made

    return be


@pytest.mark.parametrize(
    ("bf16_s", "expected"), [(0.005, "bf16"), (0.04, "no"), (0.0195, "no")], ids=["faster", "slower", "about as fast"]
)
def test_the_faster_one_is_taken_and_the_run_keeps_it(new_run, open_runtime, cost, capsys, bf16_s, expected):
    made = cost({"no": 0.02, "bf16": bf16_s})
    run = new_run(**LONG)
    settle_precision(run)
    assert open_runtime.precision == expected
    found = run.folder.run_record["precision"]
    assert found["name"] == expected
    assert found["bf16_gain"] == pytest.approx(0.02 / bf16_s)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"precision {'bf16' if expected == 'bf16' else 'fp32'}: ")
    assert f"{found['bf16_gain']:.2g} times as fast" in said
    num_made = len(made)
    open_runtime.precision = "no"
    settle_precision(new_run(**LONG))  # the same run, begun again
    assert open_runtime.precision == expected and len(made) == num_made
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_where_bf16_is_hopeless_a_few_rows_tell(new_run, cost):
    made = cost({"no": 0.001, "bf16": 0.02})
    run = new_run(**LONG)
    ids, _ = typical_micro_batch(run.loader)
    assert measure_gain(run) < 0.5
    assert {rows for _, rows in made} == {-(-len(ids) // module.PART_STEP)} and len(made) == 4


def test_a_warm_up_that_takes_for_ever_is_the_only_one(new_run, cost):
    made = cost({"no": 0.5, "bf16": 20.0})
    assert measure_gain(new_run(**LONG)) == pytest.approx(0.025)
    assert [precision for precision, _ in made] == ["no", "bf16"]


def test_a_large_model_is_measured_on_fewer_rows(new_run, cost, monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 0.2)
    run = new_run(**LONG)
    ids, _ = typical_micro_batch(run.loader)
    part = -(-len(ids) // module.PART_STEP)
    made = cost({"no": 0.02, "bf16": 0.02})
    measure_gain(run)
    # Two of each precision in 0.2 s are 50 ms for one: 2.5 times what the part took.
    assert max(rows for _, rows in made) == int(2.5 * part) < len(ids)


@pytest.mark.parametrize("flags", [{"max_train_steps": MIN_FORWARDS // 8}, {}], ids=["25 updates", "3 epochs of 4"])
def test_a_run_too_short_to_gain_is_not_measured(new_run, cost, capsys, flags):
    made = cost({"no": 0.0, "bf16": 0.0})
    settle_precision(new_run(**flags))
    assert made == []
    assert capsys.readouterr().out.splitlines()[-1] == "precision fp32: the run is too short to try bf16"


def test_nothing_is_measured_where_somebody_insists(new_run, cost, runtime):
    runtime.can_choose_precision = False
    made = cost({"no": 0.0, "bf16": 0.0})
    run = new_run(**LONG)
    settle_precision(run)
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
