"""recovery: an update that ran out of memory is divided again and stays the same."""

import json

import pytest
import torch

from mtloop.errors import RunFailed
from mtloop.trainer import step
from mtloop.trainer.loop import train
from mtloop.trainer.step import train_step

LIMIT = 400  # padded tokens that fit into the memory of these tests: an update of 16 pairs has more


def padded_tokens(batch):
    return batch["input_ids"].numel() + batch["labels"].numel()


def short_of_memory(monkeypatch, limit, *, where="forward"):
    """Limit the memory to so many padded tokens; return the sizes of all micro-batches."""
    sizes, loss_sum = [], step.batch_loss_sum

    def limited(model, batch, *wrapped_model, **options):
        sizes.append(padded_tokens(batch))
        if where == "forward" and sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss_sum(model, batch, *wrapped_model, **options)

    monkeypatch.setattr(step, "batch_loss_sum", limited)
    return sizes


def losses_of(run):
    lines = [json.loads(line) for line in run.folder.metrics.path.read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


FLAGS = {"max_train_steps": 6, "logging_steps": 1, "max_eval_samples": 4}


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_train_step_divides_an_update_again_after_out_of_memory(new_run, monkeypatch, capsys, num_workers):
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
        "step 1: out of memory; continuing with --max_tokens_per_micro_batch 2,048 (was 4,096); "
        "the updates stay the same"
    )
    assert len(printed) == len(set(printed)) <= 4
    assert run.state.step == 6 and run.state.train_time_s > 0


@pytest.mark.slow
def test_train_step_divides_an_update_again_after_out_of_memory_in_backward(new_run, monkeypatch):
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
def test_the_next_start_begins_with_the_lowered_limit(new_run, monkeypatch, capsys):
    sizes = short_of_memory(monkeypatch, LIMIT)
    train(new_run(**FLAGS))
    found = new_run(**FLAGS).folder.run_record["micro_batch"]
    assert found["is_limit"] and found["max_tokens"] <= LIMIT
    sizes.clear()
    again = new_run(**{**FLAGS, "max_train_steps": 8, "allow_changed": True})
    train(again)
    assert sizes and max(sizes) <= LIMIT
    assert again.checkpointer.identity["max_tokens_per_micro_batch"] == found["max_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["fp16"], indirect=True)
def test_fp16_gradients_are_unscaled_again_after_out_of_memory_in_the_clip(new_run, runtime, monkeypatch):
    run = new_run(sentences_per_update=4)
    clip, failures = runtime.clip_gradients, [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]

    def limited(*arguments):
        norm = clip(*arguments)
        if failures:
            raise failures.pop()
        return norm

    monkeypatch.setattr(runtime, "clip_gradients", limited)
    stats = train_step(run, next(run.loader.updates(epoch=0, cursor=0)))
    expected = new_run("plain", sentences_per_update=4)
    assert stats.loss_sum.item() == pytest.approx(
        train_step(expected, next(expected.loader.updates(epoch=0, cursor=0))).loss_sum.item(), rel=1e-2
    )
    assert not stats.is_skipped and run.loader.max_tokens_per_micro_batch == 2_048


def test_out_of_memory_with_a_single_row_ends_the_run(new_run, monkeypatch):
    short_of_memory(monkeypatch, 5)
    run = new_run(**FLAGS)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    with pytest.raises(RunFailed, match="step 1: out of memory with one row at a time. Lower --max_source_length"):
        train(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.state_dict().items())


def test_another_runtime_error_is_raised(new_run, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "batch_loss_sum", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train(new_run(**FLAGS))
