"""budget: what a device has room for is found by trying, and where memory gives out the updates stay the same."""

import json

import pytest
import torch

from mtloop.errors import RunFailed, UserError
from mtloop.trainer import step, train, train_step
from mtloop.trainer.budget import PROBE_TOKENS, note_limit, probe, settle_micro_batches

LIMIT = 400  # padded tokens that the device of these tests has room for: an update of 16 pairs has more


def padded_tokens(batch):
    return batch["input_ids"].numel() + batch["labels"].numel()


def short_of_memory(monkeypatch, limit, *, where="forward"):
    """A device that has room for so many padded tokens; return the sizes of all that went through it."""
    sizes, loss_sum = [], step.batch_loss_sum

    def limited(model, batch, **options):
        sizes.append(padded_tokens(batch))
        if where == "forward" and sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss_sum(model, batch, **options)

    monkeypatch.setattr(step, "batch_loss_sum", limited)
    return sizes


def losses_of(run):
    lines = [json.loads(line) for line in run.folder.metrics.path.read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


FLAGS = {"max_train_steps": 6, "logging_steps": 1, "max_eval_samples": 4}


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_update_that_has_no_room_is_divided_and_stays_the_same(new_run, monkeypatch, capsys, num_workers):
    plain = new_run("plain", **FLAGS)
    train(plain)
    capsys.readouterr()
    sizes = short_of_memory(monkeypatch, LIMIT)
    run = new_run("short", dataloader_num_workers=num_workers, **FLAGS)
    train(run)
    monkeypatch.undo()
    assert max(sizes) > LIMIT and run.loader.max_tokens_per_micro_batch <= LIMIT
    for mine, theirs in zip(losses_of(run), losses_of(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    printed = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    # 4,096 is halved until an update fits: each time one line, and never again once it does.
    assert printed[0] == (
        "step 1: out of memory; --max_tokens_per_micro_batch is 2,048 from here on, not 4,096; the updates are the same"
    )
    assert len(printed) == len(set(printed)) <= 4
    assert run.state.step == 6 and run.state.train_time_s > 0


@pytest.mark.slow
def test_memory_that_gives_out_in_the_backward_is_the_same(new_run, monkeypatch):
    plain = new_run("plain", **FLAGS)
    train(plain)
    run = new_run("short", **FLAGS)
    sizes = short_of_memory(monkeypatch, LIMIT, where="backward")
    backward = run.runtime.accelerator.backward

    def limited(loss):
        if sizes[-1] > LIMIT:
            backward(loss)  # all of it: what is half done must not count twice
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        backward(loss)

    monkeypatch.setattr(run.runtime.accelerator, "backward", limited)
    train(run)
    for mine, theirs in zip(losses_of(run), losses_of(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_the_next_start_begins_with_what_there_was_room_for(new_run, monkeypatch, capsys):
    sizes = short_of_memory(monkeypatch, LIMIT)
    train(new_run(**FLAGS))
    found = new_run(**FLAGS).folder.run_record["micro_batch"]
    assert found["is_limit"] and found["max_tokens"] <= LIMIT
    sizes.clear()
    again = new_run(**{**FLAGS, "max_train_steps": 8, "allow_changed": True})
    train(again)
    assert sizes and max(sizes) <= LIMIT
    assert again.checkpointer.identity["max_tokens_per_micro_batch"] == found["max_tokens"]


def test_a_row_that_has_no_room_alone_ends_the_run(new_run, monkeypatch):
    short_of_memory(monkeypatch, 5)
    run = new_run(**FLAGS)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    with pytest.raises(RunFailed, match="step 1: out of memory with one row at a time; lower --max_source_length"):
        train(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.state_dict().items())


def test_another_error_is_not_taken_for_it(new_run, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "batch_loss_sum", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train(new_run(**FLAGS))


# auto


def available(monkeypatch, num_bytes):
    monkeypatch.setattr("mtloop.trainer.budget.free_memory", lambda device: num_bytes)


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
    monkeypatch.setattr("mtloop.trainer.budget.probe", lambda run: pytest.fail("it was looked for again"))
    longer = {**FLAGS, "max_train_steps": 8, "allow_changed": True}
    again = new_run(max_tokens_per_micro_batch="auto", **longer)
    settle_micro_batches(again)
    assert again.loader.max_tokens_per_micro_batch == tokens
    monkeypatch.setattr("mtloop.trainer.budget.probe", lambda run: 777)
    again.checkpointer.identity["hardware"] = "device cuda"
    settle_micro_batches(again)
    assert again.loader.max_tokens_per_micro_batch == 777


def test_a_number_that_is_given_holds_whatever_was_found(new_run, monkeypatch):
    available(monkeypatch, 10**9)
    settle_micro_batches(new_run(max_tokens_per_micro_batch="auto"))
    run = new_run(max_tokens_per_micro_batch=5_000)
    settle_micro_batches(run)
    assert run.loader.max_tokens_per_micro_batch == 5_000
    note_limit(run)  # it had no room
    run = new_run(max_tokens_per_micro_batch=5_000)
    settle_micro_batches(run)
    assert run.loader.max_tokens_per_micro_batch == 2_500


def test_auto_needs_shapes_that_may_change(new_run):
    with pytest.raises(UserError, match="--max_tokens_per_micro_batch auto: with --pad_to buckets"):
        new_run(max_tokens_per_micro_batch="auto", pad_to="buckets")
