"""One update is the gradient of the mean over its target tokens, however divided; the loop does each thing when due."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from mtloop.atomic import read_json_lines
from mtloop.checkpoint.listing import list_checkpoints
from mtloop.checkpoint.manifest import read_manifest, write_manifest
from mtloop.config.settings import changed
from mtloop.errors import RunFailed, UserError
from mtloop.trainer.loop import train
from mtloop.trainer.recovery import MAX_OVERFLOW_REPEATS
from mtloop.trainer.report import count, epoch_of, evaluate_and_record
from mtloop.trainer.step import mark_last, train_step
from tests.support.commands import command
from tests.support.scores import score_with_intervals

checkpoint = command("checkpoint")

SMALL = 300  # padded tokens of a micro-batch: a few pairs
ONE = 10_000  # an overhead that leaves an update of 16 pairs in one micro-batch


def first_update(run):
    return next(run.loader.updates(epoch=0, cursor=0))


def gradients_of(run, update):
    """Make an update without its optimizer step: return the sum of the token losses and the gradient (not clipped)."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.optimizer, "step", lambda: found.append(gradient_of(run)))
        patch.setattr(run.scheduler, "step", lambda: None)
        stats = train_step(run, update)
    return stats.loss_sum.item(), found[0]


def weights_of(run):
    return {name: weight.detach().clone() for name, weight in run.model.state_dict().items()}


def has_moved(run, before):
    return any(not torch.equal(weight, before[name]) for name, weight in run.model.state_dict().items())


def gradient_of(run):
    """All gradients as one vector; float64, because torch's norm of a million fp32 numbers is off by 1e-4."""
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).double()


def distance(one, other):
    """Relative to the length of the vectors."""
    return ((one - other).norm() / other.norm()).item()


def records(run):
    return [json.loads(line) for line in run.folder.metrics.path.read_text(encoding="utf-8").splitlines()]


def steps_with(run, key):
    return [record["step"] for record in records(run) if key in record]


def reference_loss(run, update, smoothing=0.0):
    """The update as one batch padded by hand: torch's own mean over its target tokens."""
    pad_id = run.tokenizer.pad_token_id
    rows = [run.loader.encoded[int(i)] for i in update.sentence_ids]
    longest_source = max(len(row["input_ids"]) for row in rows)
    longest_target = max(len(row["labels"]) for row in rows)
    ids = torch.full((len(rows), longest_source), pad_id)
    labels = torch.full((len(rows), longest_target), pad_id)
    is_target = torch.zeros(len(rows), longest_target, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
        is_target[number, : len(row["labels"])] = True
    decoder_ids = torch.cat([torch.full((len(rows), 1), pad_id), labels[:, :-1]], dim=1)  # Marian starts with padding
    logits = run.model(input_ids=ids, attention_mask=(ids != pad_id).long(), decoder_input_ids=decoder_ids).logits
    return torch.nn.functional.cross_entropy(logits[is_target], labels[is_target], label_smoothing=smoothing)


# the gradient


@pytest.mark.parametrize("smoothing", [0.1, pytest.param(0.0, marks=pytest.mark.slow)])
def test_loss_and_gradient_are_those_of_the_full_batch_however_divided(new_run, smoothing):
    run = new_run(label_smoothing_factor=smoothing, micro_batch_overhead=ONE, max_grad_norm=0.0)
    update = first_update(run)
    assert len(update.micro_batches) == 1
    reference = reference_loss(run, update, smoothing)
    reference.backward()
    expected = gradient_of(run)
    # 16 pairs: in one forward, in a few, and each alone.
    for max_tokens, possible_numbers in ((4096, [1]), (SMALL, range(2, 9)), (1, [16])):
        run.optimizer.zero_grad()
        run.loader.max_tokens_per_micro_batch = max_tokens
        update = first_update(run)
        assert len(update.micro_batches) in possible_numbers
        loss_sum, gradient = gradients_of(run, update)
        assert loss_sum / update.target_tokens == pytest.approx(reference.item(), abs=1e-6)
        assert distance(gradient, expected) < 1e-6


def test_one_step_is_the_same_for_one_micro_batch_and_for_many(new_run):
    runs = [new_run("one", micro_batch_overhead=ONE), new_run("many", max_tokens_per_micro_batch=SMALL)]
    updates = [first_update(run) for run in runs]
    assert len(updates[0].micro_batches) == 1 < len(updates[1].micro_batches)
    one, many = (train_step(run, update) for run, update in zip(runs, updates, strict=True))
    assert one.loss_sum.item() == pytest.approx(many.loss_sum.item(), rel=1e-6)
    assert one.grad_norm.item() == pytest.approx(many.grad_norm.item(), rel=1e-6)
    assert (
        one.target_tokens
        == many.target_tokens
        == sum(len(runs[0].loader.encoded[int(i)]["labels"]) for i in updates[0].sentence_ids)
    )
    assert not one.is_skipped and all(p.grad is None for p in runs[0].model.parameters())


def norm_at_step(run):
    """The gradient norm that the optimizer sees, noted at its next step."""
    seen = []
    run.optimizer.optimizer.register_step_pre_hook(lambda *_: seen.append(gradient_of(run).norm().item()))
    return seen


@pytest.mark.parametrize(
    ("max_grad_norm", "clips"), [(0.01, True), (0.0, False), pytest.param(1e6, False, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_whole_gradient_is_clipped_once_and_its_norm_before_that_is_reported(new_run, max_grad_norm, clips):
    run = new_run(max_grad_norm=max_grad_norm, max_tokens_per_micro_batch=SMALL)
    update = first_update(run)
    reference_loss(run, update).backward()
    norm = gradient_of(run).norm().item()
    assert norm > 0.1  # far above 0.01, far below 1e6
    run.optimizer.zero_grad()
    seen = norm_at_step(run)
    stats = train_step(run, update)
    assert stats.grad_norm.item() == pytest.approx(norm, rel=1e-5)
    assert seen == [pytest.approx(max_grad_norm if clips else norm, rel=1e-3)]


def test_dropout_depends_on_the_step_and_not_on_what_was_drawn_before(new_run):
    run = new_run(dropout=0.3)
    update = first_update(run)
    first = gradients_of(run, update)[0]
    torch.rand(17)
    assert gradients_of(run, update)[0] == first
    run.state.step += 1
    assert gradients_of(run, update)[0] != first


@pytest.mark.slow
def test_the_learning_rate_reported_is_the_one_the_step_was_taken_with(new_run):
    run = new_run(max_train_steps=4, num_warmup_steps=2, learning_rate=8e-4)
    updates = run.loader.updates(epoch=0, cursor=0)
    before = weights_of(run)
    rates = [train_step(run, next(updates)).learning_rate]
    assert not has_moved(run, before)  # a rate of 0
    rates += [train_step(run, next(updates)).learning_rate for _ in range(3)]
    # Warm-up from 0 in 2 updates, then linearly down to 0 at update 4, which is never taken.
    assert rates == pytest.approx([0, 4e-4, 8e-4, 4e-4])


def test_mark_last():
    assert list(mark_last("abc")) == [("a", False), ("b", False), ("c", True)]


# gradients that are not finite


def spoil(run, *, steps, value=math.nan):
    """Make one entry of a weight's gradient `value` in the updates of these steps (0-based)."""

    def poison(gradient):
        if run.state.step in steps:
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
        return gradient

    next(run.model.parameters()).register_hook(poison)


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_a_gradient_that_is_not_finite_leaves_the_weights_and_names_step_and_rows(new_run, value):
    run = new_run()
    updates = run.loader.updates(epoch=0, cursor=0)
    count(run, update := next(updates), train_step(run, update))
    spoil(run, steps=[1], value=value)
    before, moments = weights_of(run), json.dumps(str(run.optimizer.state_dict()["state"]))
    update = next(updates)
    stats = train_step(run, update)
    assert stats.is_skipped and not math.isfinite(stats.grad_norm.item())
    assert not has_moved(run, before) and json.dumps(str(run.optimizer.state_dict()["state"])) == moments
    rows = [run.train_rows[int(i)]["index"] for i in update.sentence_ids]
    with pytest.raises(RunFailed) as caught:
        count(run, update, stats)
    message = str(caught.value)
    assert message.startswith("step 2: ") and "\n" not in message and "--skip_nonfinite" in message
    assert f"16 rows of the training data, the first: {', '.join(map(str, rows[:10]))}" in message
    assert run.state.step == 1


def test_an_infinite_weight_fails_the_run_before_anything_is_saved(new_run):
    run = new_run()
    with torch.no_grad():
        run.model.get_input_embeddings().weight[run.tokenizer.eos_token_id, 0] = math.inf
    before = weights_of(run)
    with pytest.raises(RunFailed, match=r"^step 1: the gradient norm is nan"):
        train(run)
    assert not has_moved(run, before) and list_checkpoints(run.folder) == []


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_a_learning_rate_that_is_not_finite_fails_the_run_with_the_weights_unchanged(new_run, monkeypatch, value):
    run = new_run(max_train_steps=3)
    before = weights_of(run)
    monkeypatch.setattr(run.scheduler, "get_last_lr", lambda: [value])
    with pytest.raises(RunFailed, match=rf"^step 1: the learning rate is {value}, the weights are unchanged\. Change"):
        train(run)
    assert not has_moved(run, before) and list_checkpoints(run.folder) == []


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_never_saved(new_run):
    run = new_run(max_train_steps=2)
    weight = run.model.get_input_embeddings().weight

    def spoil_weight(*_):
        with torch.no_grad():
            weight[0, 0] = math.nan

    run.optimizer.optimizer.register_step_post_hook(lambda *_: run.state.step == 1 and spoil_weight())
    with pytest.raises(RunFailed, match=r"^step 2: .*weight is not finite, nothing is saved"):
        train(run)
    assert list_checkpoints(run.folder) == [] and not run.folder.final_dir.exists()


@pytest.mark.slow
def test_as_many_are_tolerated_as_asked_and_the_run_goes_on(new_run, capsys):
    run = new_run(skip_nonfinite=2, max_train_steps=3, logging_steps=1)
    spoil(run, steps=[0, 1])
    before = weights_of(run)
    assert train(run) is None
    assert (run.state.step, run.state.num_nonfinite) == (3, 2)
    assert has_moved(run, before)
    assert [record["grad_norm"] is None for record in records(run) if "loss" in record] == [True, True, False]
    assert capsys.readouterr().out.count("the weights are unchanged") == 2


@pytest.mark.slow
def test_one_more_than_tolerated_fails(new_run):
    run = new_run(skip_nonfinite=1, max_train_steps=3)
    spoil(run, steps=[0, 2])
    with pytest.raises(RunFailed, match=r"^step 3: "):
        train(run)


def blind(run, monkeypatch):
    """As on an accelerator: the host reads norms where it logs, evaluates or saves, and nowhere else."""
    monkeypatch.setattr(type(run), "reads_every_norm", False)
    assert run.skips_on_device


@pytest.mark.slow
def test_the_device_leaves_out_an_update_that_the_host_has_not_read(new_run, monkeypatch, capsys):
    flags = {"skip_nonfinite": 2, "max_train_steps": 7, "logging_steps": 4}
    seeing, unseeing = new_run("seeing", **flags), new_run("unseeing", **flags)
    for run in (seeing, unseeing):
        spoil(run, steps=[1, 2])
    assert train(seeing) is None
    blind(unseeing, monkeypatch)
    assert train(unseeing) is None
    assert not has_moved(unseeing, weights_of(seeing))
    assert (unseeing.state.num_nonfinite, unseeing.recovery.unread) == (2, [])
    lines = [line for line in capsys.readouterr().out.splitlines() if "the gradient norm is nan" in line]
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 3"] * 2


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        ({"save_steps": 4}, 4),
        pytest.param({"logging_steps": 5}, 5, marks=pytest.mark.slow),
        pytest.param({"eval_steps": 6}, 6, marks=pytest.mark.slow),
    ],
)
def test_one_too_many_stops_the_weights_at_once_and_the_run_before_it_saves(new_run, monkeypatch, flags, step):
    flags = {"logging_steps": 100, "skip_nonfinite": 1, **flags}
    run = new_run(**flags, max_train_steps=7, sentences_per_update=8)  # 7 updates an epoch
    spoil(run, steps=[1, 2])  # the second is one too many; what follows would be sound, had training gone on
    after = {}
    run.optimizer.optimizer.register_step_post_hook(lambda *_: after.setdefault(run.state.step, weights_of(run)))
    blind(run, monkeypatch)
    with pytest.raises(RunFailed, match=r"^step 3: the gradient norm is nan"):
        train(run)
    assert run.state.step == step
    assert list_checkpoints(run.folder) == []
    assert not has_moved(run, after[0]) and len(after) >= 4


@pytest.mark.slow
def test_norms_are_read_after_a_while_though_nothing_is_due(new_run, monkeypatch):
    monkeypatch.setattr("mtloop.trainer.recovery.MAX_UNREAD", 3)
    run = new_run(max_train_steps=7, logging_steps=100)
    spoil(run, steps=[2])
    blind(run, monkeypatch)
    with pytest.raises(RunFailed, match=r"^step 3: "):
        train(run)
    assert run.state.step == 3  # the first was read where step 1 is logged; the next three here


@pytest.mark.slow
def test_what_was_left_out_before_a_resume_still_counts(new_run, monkeypatch):
    flags = {"skip_nonfinite": 1, "save_steps": 2, "logging_steps": 100, "max_train_steps": 6}
    first = new_run(**flags)
    spoil(first, steps=[0])
    first.total_steps = 2
    train(first)
    again = new_run(**flags)
    spoil(again, steps=[3])
    blind(again, monkeypatch)
    with pytest.raises(RunFailed, match=r"^step 4: "):
        train(again)


# fp16


def fp16_run(new_run, runtime, name, init_scale, **flags):
    """A run with dropout whose scaler starts at init_scale: a repeat that drew other masks would be another update."""
    runtime.accelerator._optimizers.clear()  # of an earlier run of the test
    runtime.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return new_run(name, dropout=0.1, num_warmup_steps=0, **flags)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["fp16"], indirect=True)
def test_an_fp16_overflow_repeats_the_update_with_a_lower_scale(new_run, runtime):
    # fp16 ends at 65,504 = 2^16: of loss / some 20 tokens, scaled by 2^27, the largest gradients lie far beyond it.
    run = fp16_run(new_run, runtime, "high", 2.0**27, sentences_per_update=1)
    stats = train_step(run, first_update(run))
    scale = runtime.accelerator.scaler.get_scale()
    assert not stats.is_skipped and math.isfinite(stats.grad_norm.item())
    num_halvings = 27 - math.log2(scale)
    assert 1 <= num_halvings <= MAX_OVERFLOW_REPEATS and num_halvings == int(num_halvings)
    # No sentence was lost and no other update slipped in: it is the update that starts with that scale.
    straight = fp16_run(new_run, runtime, "straight", scale, sentences_per_update=1)
    expected = train_step(straight, first_update(straight))
    assert runtime.accelerator.scaler.get_scale() == scale
    assert stats.grad_norm.item() == expected.grad_norm.item() and stats.loss_sum.item() == expected.loss_sum.item()
    assert not has_moved(run, weights_of(straight))
    assert {state["step"].item() for state in run.optimizer.state_dict()["state"].values()} == {1}
    assert run.scheduler.last_epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["fp16"], indirect=True)
def test_an_fp16_update_that_overflows_at_every_scale_is_given_up(new_run, runtime):
    run = fp16_run(new_run, runtime, "hopeless", 2.0**60, sentences_per_update=1)
    before = weights_of(run)
    update = first_update(run)
    stats = train_step(run, update)
    assert stats.is_skipped and not has_moved(run, before)
    # The first try and each repeat halved it once.
    assert runtime.accelerator.scaler.get_scale() == 2.0 ** (60 - 1 - MAX_OVERFLOW_REPEATS)
    with pytest.raises(RunFailed, match=r"^step 1: "):
        count(run, update, stats)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["fp16"], indirect=True)
def test_an_fp16_run_that_overflows_at_first_or_is_resumed_is_the_same_run(new_run, runtime):
    # All pairs in each update: the first, from random weights, needs the lowest scale.
    flags = {"max_train_steps": 4, "sentences_per_update": 54, "logging_steps": 1, "eval_steps": 10, "save_steps": 2}
    high = fp16_run(new_run, runtime, "high", 2.0**26, **flags)
    assert train(high) is None
    scale = runtime.accelerator.scaler.get_scale()
    assert scale < 2.0**26
    straight = fp16_run(new_run, runtime, "straight", scale, **flags)
    assert train(straight) is None
    assert runtime.accelerator.scaler.get_scale() == scale
    keys = ("step", "loss", "grad_norm", "learning_rate", "target_tokens")
    losses = [
        [[record[key] for key in keys] for record in records(run) if "loss" in record] for run in (high, straight)
    ]
    assert losses[0] == losses[1] and [values[0] for values in losses[0]] == [1, 2, 3, 4]
    assert not has_moved(high, weights_of(straight))
    shutil.rmtree(high.folder.checkpoints_dir / "step_4")
    again = fp16_run(new_run, runtime, "high", 2.0**26, **flags)  # the checkpoint's scale takes its place
    assert train(again) is None
    assert runtime.accelerator.scaler.get_scale() == scale and not has_moved(again, weights_of(straight))


# what is due when


def test_due(new_run):
    run = new_run(logging_steps=10, max_train_steps=25)
    state = run.state

    def due(step, *, cursor=1, best_step=-1, **flags):
        run.config = changed(run.config, eval_steps=None, save_steps=None)
        run.config = changed(run.config, **flags)
        state.step, state.cursor, state.best_step = step, cursor, best_step
        return {event for event in ("log", "evaluate", "save") if run.due(event)}

    assert due(1) == {"log"}
    assert due(2) == set()
    assert due(10) == {"log"}
    assert due(4, cursor=0) == {"evaluate", "save"}  # the end of an epoch
    assert due(25) == {"log", "evaluate", "save"}  # the end of the run, in mid-epoch
    assert due(7, eval_steps=7) == {"evaluate"}
    assert due(14, eval_steps=7) == {"evaluate"}
    assert due(8, cursor=0, eval_steps=7) == {"save"}  # eval_steps replaces the ends of epochs
    assert due(6, save_steps=3) == {"save"}
    assert due(8, cursor=0, save_steps=3) == {"evaluate", "save"}  # save_steps comes on top of them
    assert due(7, best_step=7) == {"save"} and due(7, best_step=6) == set()


@pytest.mark.slow
def test_a_run_evaluates_logs_and_saves_at_its_steps_and_ends_in_mid_epoch(new_run, curves):
    # 54 pairs in updates of 16 are 4 updates an epoch; 6 updates end in the middle of the second.
    run = new_run(max_train_steps=6, eval_steps=5, save_steps=3, logging_steps=4, metric_for_best_model="eval_loss")
    assert (run.loader.updates_per_epoch, run.total_steps) == (4, 6)
    assert train(run) is None
    assert steps_with(run, "loss") == [1, 4, 6]
    assert steps_with(run, "eval_loss") == [5, 6]
    # save_steps 3 and 6, the epoch's end 4, a new best at 5 (the first evaluation) and at the end.
    assert [step for step, _ in list_checkpoints(run.folder)] == [3, 4, 5, 6]
    assert (run.state.step, run.state.epoch, run.state.cursor, epoch_of(run)) == (6, 1, 2, 1.5)
    assert [record["epoch"] for record in records(run)] == [0.25, 1.0, 1.25, 1.5, 1.5]
    assert run.folder.final_dir.is_dir() and (run.folder.path / "curves.png").is_file()


@pytest.mark.slow
def test_the_logged_loss_is_the_mean_over_the_update_and_falls(new_run):
    run = new_run(max_train_steps=8, logging_steps=1, learning_rate=1e-2, num_warmup_steps=0)
    expected = reference_loss(run, first_update(run)).item()
    train(run)
    losses = [record["loss"] for record in records(run) if "loss" in record]
    assert losses[0] == pytest.approx(expected, abs=1e-6)
    assert losses[-1] < losses[0] - 0.5  # from about ln 400 = 6 down: it learns


@pytest.mark.slow
def test_patience_ends_a_run_and_saves_it(new_run):
    # A rate of 1e-12 changes no translation: the first evaluation is the best and the two after it gain nothing.
    run = new_run(max_train_steps=9, eval_steps=1, early_stopping_patience=2, learning_rate=1e-12)
    assert train(run) is None
    assert run.state.step == 3 and steps_with(run, "bleu") == [1, 2, 3]
    assert list_checkpoints(run.folder)[-1][0] == 3 and run.folder.final_dir.is_dir()


@pytest.mark.slow
def test_a_model_that_training_never_beats_is_the_best_and_can_be_the_final_one(new_run):
    run = new_run(max_train_steps=2, eval_steps=1, eval_on_start=True, learning_rate=1e-12, load_best_model_at_end=True)
    before = weights_of(run)
    assert train(run) is None
    assert (run.state.best_step, run.state.step) == (0, 2)
    assert steps_with(run, "bleu") == [0, 1, 2]
    final = load_file(run.folder.final_dir / "model.safetensors")
    last = load_file(run.folder.checkpoints_dir / "step_2" / "model.safetensors")
    assert all(torch.equal(final[name], before[name]) for name in final)
    assert any(not torch.equal(final[name], last[name]) for name in final)


@pytest.mark.slow
def test_no_checkpoint_below_min_survival_is_the_best(new_run, tmp_path, capsys):
    pairs = tmp_path / "ui.tsv"
    pairs.write_text("en\tfr\n" + "".join(f"Open file %1 of {i}\tOuvrir le fichier %1 de {i}\n" for i in range(40)))
    run = new_run(
        train_file=pairs,
        max_train_steps=2,
        eval_steps=1,
        learning_rate=1e-12,
        early_stopping_patience=1,
        load_best_model_at_end=True,
        min_survival=99.5,
    )
    assert train(run) is None
    assert (run.state.best_step, run.state.best_score, run.state.step) == (-1, None, 2)  # patience never began
    assert [record["survival"] for record in records(run) if "survival" in record] == [0.0, 0.0]
    assert run.ending == "; no evaluation reached --min_survival 99.5, final/ holds the last weights"
    last = run.folder.checkpoints_dir / "step_2" / "model.safetensors"
    assert (run.folder.final_dir / "model.safetensors").read_bytes() == last.read_bytes()
    assert not (run.folder.checkpoints_dir / "best").exists()
    assert "%1 missing" in run.folder.hypotheses("step_2")[0]["lost"]
    capsys.readouterr()
    checkpoint(["list", str(run.folder.path)])
    note = "no best checkpoint: no evaluation reached --min_survival 99.5 (greatest 0.00)"
    assert capsys.readouterr().out.splitlines()[-1] == note


@pytest.mark.slow
def test_the_test_rows_are_scored_with_the_final_weights(new_run, pairs_path):
    run = new_run(
        max_train_steps=3,
        eval_steps=1,
        learning_rate=1e-2,
        num_warmup_steps=0,
        metric_for_best_model="eval_loss",
        load_best_model_at_end=True,
        test_file=pairs_path,
        max_eval_samples=5,
    )
    seen = []
    original = run.state.record_score
    # The first evaluation stays the best: the last weights are then others than the final ones.
    run.state.record_score = lambda score, **kw: original(score if not seen else 99.0, **kw) and seen.append(score)
    train(run)
    assert run.state.best_step == 1
    (scored,) = [record for record in records(run) if record.get("split") == "test"]
    assert scored["num_sentences"] == 5
    best = load_file(run.folder.checkpoints_dir / "step_1" / "model.safetensors")
    assert all(torch.equal(run.model.state_dict()[name], weight) for name, weight in best.items())
    assert len((run.folder.hypotheses_dir / "test.jsonl").read_text(encoding="utf-8").splitlines()) == 5


# what chance makes of the scores


def chances(run):
    """What stands beside the scores of each evaluation of the validation rows."""
    ends = ("_ci", "_gain", "_p_value")
    return [
        {"step": record["step"], **{key: value for key, value in record.items() if key.endswith(ends)}}
        for record in records(run)
        if "bleu" in record and "split" not in record
    ]


FINE_TUNING = {"max_train_steps": 3, "eval_steps": 1, "learning_rate": 1e-2, "num_warmup_steps": 0}


@pytest.mark.slow
def test_each_evaluation_of_a_pretrained_model_is_compared_with_the_one_before_training(
    new_run, model_path, pairs_path, capsys
):
    run = new_run(**FINE_TUNING, model_name_or_path=model_path, model_size=None, test_file=pairs_path)
    train(run)
    first, *later = chances(run)
    assert set(first) == {"step", "bleu_ci", "chrf_ci"} and first["step"] == 0
    rows = [read_json_lines(run.folder.hypotheses_dir / f"step_{step}.jsonl") for step in range(4)]
    references = [row["reference"] for row in rows[0]]
    hypotheses = [[row["hypothesis"] for row in step] for step in rows]
    for step, found in enumerate(later, start=1):
        expected, before = score_with_intervals(hypotheses[step], references, "fr", baseline=hypotheses[0])
        for key in ("bleu", "chrf"):
            assert found[f"{key}_ci"] == expected[key].half_width
            assert found[f"{key}_gain"] == expected[key].score - before[key].score
            assert found[f"{key}_p_value"] == expected[key].p_value
    assert any(found["chrf_gain"] != 0 for found in later)
    assert f"  {later[-1]['bleu_gain']:+.2f}      -  " in capsys.readouterr().out  # too few rows for a p-value
    (tested,) = [record for record in records(run) if record.get("split") == "test"]
    assert "bleu_ci" in tested and "bleu_gain" not in tested  # the test rows were not translated before training


@pytest.mark.slow
def test_a_resumed_run_compares_with_the_same_start(new_run, model_path, runtime):
    flags = {**FINE_TUNING, "model_name_or_path": model_path, "model_size": None}
    whole = new_run("whole", **flags)
    train(whole)
    run = new_run("stopped", **flags)
    run.runtime.signals.listen(raises=False)
    run.optimizer.optimizer.register_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert train(run) == signal.SIGTERM and run.state.step == 1
    runtime.signals.number = None
    again = new_run("stopped", **flags)
    assert train(again) is None
    assert chances(again) == chances(whole) and len(chances(again)) == 4


@pytest.mark.slow
def test_a_run_from_scratch_is_compared_with_nothing(new_run):
    run = new_run(max_train_steps=2, eval_steps=1, eval_on_start=True)
    train(run)
    assert [set(found) for found in chances(run)] == [{"step", "bleu_ci", "chrf_ci"}] * 3


@pytest.mark.slow
def test_train_writes_results_before_printing_and_saves_before_samples(new_run, monkeypatch):
    run, events = new_run(max_train_steps=1, eval_on_start=True), []
    save, evaluation = run.checkpointer.save, run.display.evaluation

    def saving(**how):
        events.append("save")
        save(**how)

    def printing(name, record, **how):
        is_written = (run.folder.hypotheses_dir / f"step_{record['step']}.jsonl").exists()
        events.append("row" if is_written and chances(run)[-1]["step"] == record["step"] else "too early")
        evaluation(name, record, **how)

    monkeypatch.setattr(run.checkpointer, "save", saving)
    monkeypatch.setattr(run.display, "evaluation", printing)
    monkeypatch.setattr(run.display, "finish", lambda: events.append("samples"))
    train(run)
    assert events == ["row", "save"] * 2 + ["samples"] and (run.folder.final_dir / "model.safetensors").exists()


@pytest.mark.slow
def test_hypotheses_of_other_rows_are_no_start(new_run, model_path):
    run = new_run(**FINE_TUNING, model_name_or_path=model_path, model_size=None)
    evaluate_and_record(run)
    path = run.folder.hypotheses_dir / "step_0.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    run.state.step = 1
    for others in ([*lines[1:], lines[0]], lines[:-1], ["{}", *lines[1:]]):
        path.write_text("".join(line + "\n" for line in others), encoding="utf-8")
        evaluate_and_record(run)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    evaluate_and_record(run)
    assert ["bleu_gain" in found for found in chances(run)] == [False, False, False, False, True]


# stopping and going on


@pytest.mark.slow
def test_a_stopped_run_is_saved_and_the_same_run_goes_on_bitwise(new_run, runtime):
    flags = {"max_train_steps": 4, "logging_steps": 1, "dropout": 0.1}
    whole = new_run("whole", **flags)
    train(whole)
    run = new_run("stopped", **flags)
    run.runtime.signals.listen(raises=False)
    run.optimizer.optimizer.register_step_post_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGTERM) if run.state.step == 1 else None  # in the second update
    )
    assert train(run) == signal.SIGTERM
    assert run.state.step == 2 and [step for step, _ in list_checkpoints(run.folder)] == [2]
    assert not run.folder.final_dir.exists()
    runtime.signals.number = None
    again = new_run("stopped", **flags)
    assert train(again) is None
    assert steps_with(again, "loss") == [1, 2, 3, 4]
    losses = [[r["loss"] for r in records(one) if "loss" in r] for one in (whole, again)]
    assert losses[0] == losses[1]
    assert not has_moved(again, weights_of(whole))
    # Killed between its last checkpoint and final/, it only makes what is missing.
    shutil.rmtree(again.folder.final_dir)
    assert train(new_run("stopped", **flags)) is None
    assert steps_with(again, "loss") == [1, 2, 3, 4] and (again.folder.final_dir / "model.safetensors").is_file()


# an evaluation that a signal cuts short


@pytest.mark.slow
@pytest.mark.parametrize("eval_on_start", [False, True])
def test_an_evaluation_that_a_signal_ends_is_made_again_after_the_resume(new_run, runtime, monkeypatch, eval_on_start):
    flags = {"max_train_steps": 8, "logging_steps": 1, "dropout": 0.1, "eval_on_start": eval_on_start}
    whole = new_run("whole", **flags)
    train(whole)
    run = new_run("stopped", **flags)
    runtime.signals.listen(raises=False)
    translated = []

    def stop_in_the_evaluation(*arguments, **options):
        translated.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return generate(*arguments, **options)

    generate = run.model.generate
    monkeypatch.setattr(run.model, "generate", stop_in_the_evaluation)
    run.config = changed(run.config, eval_max_tokens=20)  # a batch a sentence or two: the others are not translated
    assert train(run) == signal.SIGTERM
    step = 0 if eval_on_start else 4  # the end of the first epoch
    assert run.state.step == step and len(translated) == 1
    assert [number for number, _ in list_checkpoints(run.folder)] == [step]
    assert not run.folder.metrics.path.exists() or not steps_with(run, "bleu")
    runtime.signals.number = None
    again = new_run("stopped", **flags)
    assert train(again) is None
    assert steps_with(again, "bleu") == steps_with(whole, "bleu") == [0, 4, 8][not eval_on_start :]
    scores = [[(r["step"], r["bleu"], r["eval_loss"]) for r in records(one) if "bleu" in r] for one in (whole, again)]
    assert scores[0] == scores[1] and not has_moved(again, weights_of(whole))
    assert again.state.state_dict() == {**whole.state.state_dict(), "train_time_s": again.state.train_time_s}


# going on changed


@pytest.mark.slow
def test_changed_settings_are_refused_or_let_through_and_recorded(new_run):
    first = new_run(max_train_steps=2, learning_rate=1e-3, num_warmup_steps=0, lr_scheduler_type="constant")
    train(first)
    others = {"num_warmup_steps": 0, "lr_scheduler_type": "constant", "learning_rate": 5e-4, "max_train_steps": 4}
    with pytest.raises(UserError, match="--learning_rate: 0.001 in the run folder, 0.0005 asked.*--allow_changed"):
        new_run(**others)
    run = new_run(**others, allow_changed=True, logging_steps=1)
    assert [line.split(":")[0] for line in run.different] == ["--learning_rate", "--max_train_steps"]
    train(run)
    assert [record["learning_rate"] for record in records(run) if "loss" in record and record["step"] > 2] == [5e-4] * 2
    (change,) = run.folder.run_record["changes"]
    assert change["step"] == 2 and change["changed"] == run.different
    assert run.folder.stored_config().optimizer.learning_rate == 5e-4
    assert new_run(**others).different == []  # from now on these are the run's own settings


@pytest.mark.slow
def test_changed_data_is_refused_or_let_through_and_the_epoch_begins_again(new_run, pairs_path, tmp_path, capsys):
    path = tmp_path / "mine.json"
    pairs = json.loads(pairs_path.read_text())["data"]
    path.write_text(json.dumps({"data": pairs}))
    first = new_run(train_file=path, max_train_steps=2, lr_scheduler_type="constant", num_warmup_steps=0)
    train(first)
    before = first.checkpointer.identity["fingerprints"]
    path.write_text(json.dumps({"data": pairs[:40]}))  # 36 to train on: 3 updates an epoch
    flags = {"train_file": path, "max_train_steps": 8, "lr_scheduler_type": "constant", "num_warmup_steps": 0}
    with pytest.raises(UserError, match="--max_train_steps"):
        new_run(**flags)
    with pytest.raises(
        UserError, match=r"other data \(the source of train has changed \(.*mine.json .*--allow_changed"
    ):
        new_run(**{**flags, "max_train_steps": 2})
    run = new_run(**flags, allow_changed=True)
    capsys.readouterr()
    train(run)
    output = capsys.readouterr().out
    assert "the updates of an epoch have changed: restarting epoch 1" in output
    assert "continuing from step 2 with changed settings: --max_train_steps" in output
    assert (run.state.step, run.state.epoch, run.state.cursor) == (8, 2, 0)  # 6 updates of 3 an epoch
    (change,) = run.folder.run_record["changes"]
    assert [line.split(" (")[0] for line in change["changed"]][1:] == ["the source of train has changed"]
    assert run.folder.check_data(run.data_report) == []
    after = json.loads((run.folder.checkpoints_dir / "step_8" / "training" / "manifest.json").read_text())
    assert after["fingerprints"]["data"] != before["data"] and after["run_id"] == run.folder.run_record["run_id"]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_taken_if_its_data_are_the_same(new_run, pairs_path, tmp_path, capsys):
    other = new_run("other", max_train_steps=3)
    train(other)
    asked = {"resume_from_checkpoint": str(other.folder.checkpoints_dir / "step_3"), "max_train_steps": 5}
    run = new_run("mine", **asked)
    train(run)
    assert "the checkpoint belongs to another run" in capsys.readouterr().out and run.state.step == 5
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"data": json.loads(pairs_path.read_text())["data"][:40]}))
    with pytest.raises(UserError, match="--resume_from_checkpoint .*step_3: it was trained with other data"):
        train(new_run("third", **asked, train_file=path))
    train(new_run("fourth", **asked, train_file=path, allow_changed=True))


@pytest.mark.slow
def test_a_run_begun_with_other_updates_is_refused(new_run):
    flags = {"max_train_steps": 4, "save_steps": 2, "max_eval_samples": 2}
    run = new_run("old", **flags)
    assert train(run) is None
    path = run.folder.checkpoints_dir / "step_4"
    record = read_manifest(path)
    del record["plan_version"]
    write_manifest(path, record)
    with pytest.raises(UserError, match=r"--output_dir .*old: .*drew other updates. Give a new --output_dir") as caught:
        train(new_run("old", **flags))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["bf16"], indirect=True)
@pytest.mark.slow
def test_a_weight_is_cast_once_an_update(new_run):
    run = new_run(max_tokens_per_micro_batch=SMALL)
    update = first_update(run)
    assert len(update.micro_batches) > 2
    casts = Casts(run.model.model.encoder.layers[0].fc1.weight)
    with casts:
        train_step(run, update)
    assert casts.number == 1
    with casts:
        gradients_of(run, update)
    assert casts.number == 2  # the next update has other weights


class Casts(TorchDispatchMode):
    """Counts how often a weight is cast."""

    def __init__(self, weight):
        super().__init__()
        self.pointer, self.number = weight.data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.pointer:
            self.number += 1
        return function(*args, **(kwargs or {}))
