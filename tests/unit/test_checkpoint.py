"""Test that resumes are bitwise, checkpoints complete or invisible, and loaded by transformers."""

import copy
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from mtloop.batching.loader import TrainLoader
from mtloop.batching.plan import Budget
from mtloop.checkpoint.averaging import publish_final
from mtloop.checkpoint.listing import choose_checkpoint, find_checkpoint, list_checkpoints, set_aside
from mtloop.checkpoint.manifest import FINAL_MANIFEST_NAME, check_files, hash_file, read_manifest, write_manifest
from mtloop.checkpoint.restore import load_weights
from mtloop.checkpoint.save import Checkpointer
from mtloop.checkpoint.state import TrainState
from mtloop.config.model import ModelConfig
from mtloop.config.training import OptimizerConfig
from mtloop.errors import RunFailed, UserError
from mtloop.model.generation_config import configure_generation, shift_right
from mtloop.model.loading import build_model
from mtloop.model.loss import token_loss_sum
from mtloop.run_folder import RunFolder
from mtloop.trainer.schedule import build_optimizer, build_scheduler
from tests.support.commands import command

checkpoint = command("checkpoint")

CONFIG = "dataset_name: demo\nsource_lang: en\ntarget_lang: fr\nmodel_name_or_path: somewhere\nseed: 42\n"
# Bart, Pegasus and M2M100 name and tie their weights as MBart and Marian do.
LIKE_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("m2m_100", "bart", "pegasus")]
FAMILIES = ["marian", "t5", "mbart", *LIKE_OTHERS]


@dataclass
class Trained:
    """What a checkpoint is of, with the little that trains it."""

    checkpointer: Checkpointer
    loader: TrainLoader

    @property
    def state(self) -> TrainState:
        return self.checkpointer.state

    def train(self, num_updates: int) -> None:
        keeper = self.checkpointer
        updates = self.loader.updates(epoch=self.state.epoch, cursor=self.state.cursor)
        for update in itertools.islice(updates, num_updates):
            keeper.runtime.seed_update(self.state.step)
            for batch in update.micro_batches:
                decoder_input_ids = shift_right(keeper.model, batch["labels"])
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                logits = keeper.model(**inputs, decoder_input_ids=decoder_input_ids).logits
                (token_loss_sum(logits, batch["labels"]) / update.target_tokens).backward()
            keeper.optimizer.step()
            keeper.scheduler.step()
            keeper.optimizer.zero_grad()
            self.state.advance(
                target_tokens=update.target_tokens, updates_in_epoch=update.updates_in_epoch, time_s=0.25
            )

    def save(self, *steps: int, best: int | None = None) -> None:
        """Save as the steps that are named, with the weights as they are."""
        for step in steps:
            self.state.step = step
            if step == best:
                self.state.best_step, self.state.best_score = step, 50.0
            self.checkpointer.save()

    def snapshot(self) -> dict[str, Any]:
        """Everything that a resume must bring back."""
        keeper = self.checkpointer
        return {
            "weights": {name: tensor.clone() for name, tensor in keeper.model.state_dict().items()},
            "optimizer": keeper.optimizer.state_dict(),
            "scheduler": keeper.scheduler.state_dict(),
            "state": self.state.state_dict(),
        }


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.config_path.write_text(CONFIG)
    return folder


@pytest.fixture
def new_trained(tiny_configs, marian_tokenizer, encoded_sample, runtime, folder, tmp_path):
    """Build model, optimizer, schedule, loader and checkpointer as build_run does, a tiny model with dropout."""
    tiny_configs["marian"].save_pretrained(tmp_path / "config")

    def build(*, seed=0, save_total_limit=None, **optimizer_flags):
        torch.manual_seed(seed)
        model = build_model(
            ModelConfig(config_name=str(tmp_path / "config"), dropout=0.1), marian_tokenizer, max_length=64
        )
        configure_generation(model, marian_tokenizer, num_beams=3, max_length=20, forced_bos_token_id=None)
        flags = {"learning_rate": 1e-3, "adam_beta2": 0.98, "weight_decay": 0.01, "lr_scheduler_type": "cosine"}
        config = OptimizerConfig(**{**flags, **optimizer_flags})
        optimizer = build_optimizer(model, config)
        scheduler = build_scheduler(optimizer, config, num_warmup_steps=2, total_steps=50)
        wrapped_model, prepared = runtime.accelerator.prepare(model, optimizer)
        wrapped_model.train()
        checkpointer = Checkpointer(
            folder=folder,
            runtime=runtime,
            model=runtime.accelerator.unwrap_model(wrapped_model),
            optimizer=prepared,
            scheduler=scheduler,
            tokenizer=marian_tokenizer,
            state=TrainState(),
            save_total_limit=save_total_limit,
        )
        loader = TrainLoader(
            encoded=encoded_sample.rows.select(range(60)),
            source_lengths=encoded_sample.source_lengths[:60],
            target_lengths=encoded_sample.target_lengths[:60],
            budget=Budget(sentences=8),  # 8 updates an epoch, the last of 4 sentences
            max_tokens_per_micro_batch=150,
            micro_batch_overhead=20,
            pad_id=marian_tokenizer.pad_token_id,
            seed=1,
            rank=0,
            num_ranks=1,
        )
        return Trained(checkpointer, loader)

    return build


def assert_equal(left, right, where=""):
    """Bitwise, through dicts and lists."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left:
            assert_equal(left[name], right[name], f"{where}.{name}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}[{number}]")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    else:
        assert left == right, where


def names_in(path):
    return sorted(entry.name for entry in path.iterdir())


def hashes_of(path):
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


DAMAGES = ("cut", "empty", "flip", "garbage", "gone")


def damage(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "garbage":
        path.write_bytes(b"no such format, and no header either")
    else:
        assert how == "gone"
        path.unlink()


# Save and restore


@pytest.mark.slow
def test_restore_is_bitwise(new_trained, folder):
    first = new_trained()
    first.train(11)  # one epoch of 8, and 3 of the next
    first.state.record_score(12.5, is_greater_better=True)
    saved = first.snapshot()
    first.checkpointer.save()
    other = new_trained(seed=9)
    other.train(2)  # an optimizer with moments of its own, to be overwritten
    assert not torch.equal(other.checkpointer.model.lm_head.weight, first.checkpointer.model.lm_head.weight)
    other.checkpointer.restore(folder.checkpoints_dir / "step_11")
    assert_equal(other.snapshot(), saved)
    assert (other.state.step, other.state.epoch, other.state.cursor) == (11, 1, 3)
    assert len(saved["optimizer"]["state"]) == sum(p.requires_grad for p in first.checkpointer.model.parameters())


@pytest.mark.slow
def test_resumed_run_is_bitwise_equal_to_the_uninterrupted_one(new_trained, folder):
    straight = new_trained()
    straight.train(5)
    straight.checkpointer.save()
    straight.train(6)
    resumed = new_trained(seed=5)
    resumed.checkpointer.restore(folder.checkpoints_dir / "step_5")
    resumed.train(6)
    assert_equal(resumed.snapshot(), straight.snapshot())


def test_save_does_not_change_the_run(new_trained):
    trained = new_trained()
    trained.train(2)
    before = trained.snapshot()
    trained.checkpointer.save()
    assert_equal(trained.snapshot(), before)
    assert trained.checkpointer.model.training


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["weight", "exp_avg_sq"])
@pytest.mark.slow
def test_save_refuses_values_that_are_not_finite(new_trained, folder, kind, value):
    trained = new_trained()
    trained.train(1)
    trained.checkpointer.save()
    trained.train(1)
    weight = trained.checkpointer.model.get_input_embeddings().weight
    tensor = weight if kind == "weight" else trained.checkpointer.optimizer.state[weight][kind]
    with torch.no_grad():
        tensor[0, 0] = value
    with pytest.raises(RunFailed, match=r"^step 2: .*shared.weight is not finite, nothing is saved\..*--learning_rate"):
        trained.checkpointer.save(in_background=True)
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1"]


def test_save_accepts_finite_values_whose_sum_is_not(new_trained, folder):
    trained = new_trained()
    with torch.no_grad():
        trained.checkpointer.model.get_input_embeddings().weight.fill_(3e38)  # the largest fp32 is 3.4e38
    trained.save(1)
    assert "step_1" in names_in(folder.checkpoints_dir)


def test_restore_refuses_weights_that_are_not_finite(new_trained, folder, monkeypatch):
    trained = new_trained()
    with torch.no_grad():
        trained.checkpointer.model.get_input_embeddings().weight[0, 0] = math.nan
    monkeypatch.setattr(trained.checkpointer, "_check_finite", lambda: None)  # as an earlier version
    trained.save(1)
    with pytest.raises(UserError, match=r"step_1 cannot be read \(ValueError: .*shared.weight is not finite\)\. Name"):
        trained.checkpointer.restore(folder.checkpoints_dir / "step_1")


def rewrite(path, **change):
    """Give a checkpoint a manifest that says something else and is whole."""
    record = read_manifest(path)
    write_manifest(path, {**record, **change})


@pytest.mark.slow
def test_manifest_describes_the_checkpoint(new_trained, folder):
    trained = new_trained()
    trained.checkpointer.identity = {"run_id": "abc", "fingerprints": {"data": "d", "tokenizer": "t", "config": "c"}}
    trained.train(11)
    trained.checkpointer.save()
    path = folder.checkpoints_dir / "step_11"
    record = json.loads((path / "training" / "manifest.json").read_text())
    expected = {
        "format_version": 2, "run_id": "abc", "step": 11, "epoch": 1, "cursor": 3,
        "num_ranks": 1, "num_threads": 1, "device": "cpu", "precision": "no",
        "fingerprints": {"data": "d", "tokenizer": "t", "config": "c"}, "state": trained.state.state_dict(),
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    hashes = hashes_of(path)
    del hashes["training/manifest.json"]
    assert {name: entry["sha256"] for name, entry in record["files"].items()} == hashes
    assert {name: entry["size"] for name, entry in record["files"].items()} == {
        name: (path / name).stat().st_size for name in hashes
    }


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("num_ranks", 3, "1"),
        ("num_threads", 16, "1"),
        ("precision", "bf16", "no"),
        ("max_tokens_per_micro_batch", 7, "4096"),
        ("micro_batch_overhead", 7, "100"),
    ],
)
@pytest.mark.slow
def test_restore_logs_other_conditions(new_trained, folder, capsys, name, then, now):
    trained = new_trained()
    budgets = {"max_tokens_per_micro_batch": 4096, "micro_batch_overhead": 100}
    trained.checkpointer.identity = {**budgets, "versions": {"torch": "2", "numpy": "3"}}
    trained.save(1)
    path = folder.checkpoints_dir / "step_1"
    trained.checkpointer.restore(path)
    assert capsys.readouterr().out == ""
    rewrite(path, **{name: then})
    trained.checkpointer.restore(path)
    assert f"resumed with {name} {now}, saved with {then}: results are not bitwise equal" in capsys.readouterr().out


def test_restore_logs_other_library_versions(new_trained, folder, capsys):
    trained = new_trained()
    trained.checkpointer.identity = {"versions": {"torch": "2.14", "numpy": "3.0"}}
    trained.save(1)
    rewrite(folder.checkpoints_dir / "step_1", versions={"torch": "2.13", "numpy": "3.0"})
    trained.checkpointer.restore(folder.checkpoints_dir / "step_1")
    assert "resumed with versions torch 2.14, saved with torch 2.13: results are not" in capsys.readouterr().out


@pytest.mark.slow
def test_restore_keeps_changed_settings(new_trained, folder):
    """What --allow_changed lets through must take effect: learning rate, betas, weight decay."""
    trained = new_trained()
    trained.train(6)
    trained.checkpointer.save()
    other = new_trained(seed=4, learning_rate=3e-3, adam_beta1=0.8, weight_decay=0.2)
    other.checkpointer.restore(folder.checkpoints_dir / "step_6")
    groups = other.checkpointer.optimizer.param_groups
    # Cosine after 2 updates of warm-up: both schedules stand at the same fraction of their peak.
    fraction = trained.checkpointer.optimizer.param_groups[0]["lr"] / 1e-3
    assert groups[0]["lr"] == pytest.approx(3e-3 * fraction, rel=1e-12) and 0 < fraction < 1
    assert groups[0]["betas"] == (0.8, 0.98) and groups[0]["weight_decay"] == 0.2
    assert_equal(
        other.checkpointer.optimizer.state_dict()["state"], trained.checkpointer.optimizer.state_dict()["state"]
    )


def every_file(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


@pytest.mark.slow
def test_choose_checkpoint_skips_every_kind_of_corruption(new_trained, folder):
    trained = new_trained()
    trained.train(1)
    trained.save(1)
    trained.train(1)
    trained.save(2)
    path = folder.checkpoints_dir / "step_2"
    names = every_file(path)
    assert {"model.safetensors", "training/optimizer.pt", "training/manifest.json", "config.yaml"} < set(names)
    for name in names:
        whole = (path / name).read_bytes()
        reasons = {}
        for how in DAMAGES:
            damage(path / name, how)
            said = []
            assert choose_checkpoint(folder, None, said.append) == folder.checkpoints_dir / "step_1", (name, how)
            assert len(said) == 1 and said[0].startswith(f"checkpoint {path} is corrupt ({name}")
            reasons[how] = said[0]
            with pytest.raises(
                UserError, match=r"_checkpoint: .*step_2 is corrupt \(.*\)\. Valid checkpoints: step_1\.$"
            ):
                choose_checkpoint(folder, "step_2", said.append)
            (path / name).write_bytes(whole)
        assert "is missing" in reasons["gone"]
        assert choose_checkpoint(folder, None, print) == path


def test_choose_checkpoint_without_a_valid_one_starts_over_and_keeps_files(new_trained, folder):
    trained = new_trained()
    trained.save(1, 2)
    for step in (1, 2):
        damage(folder.checkpoints_dir / f"step_{step}" / "model.safetensors", "flip")
    said = []
    assert choose_checkpoint(folder, None, said.append) is None
    assert [line.split(" (")[0].split("/")[-1] for line in said[:2]] == ["step_2 is corrupt", "step_1 is corrupt"]
    assert said[2].startswith("no valid checkpoint is left")
    trained.state.step = 0
    trained.checkpointer.drop_later()
    assert names_in(folder.checkpoints_dir) == ["damaged_step_1", "damaged_step_2", "latest"]


@pytest.mark.parametrize("name", ["model.safetensors", "training/optimizer.pt"])
def test_restore_refuses_a_hashed_file_that_does_not_load(new_trained, folder, name):
    """As one written by a program with a fault: the manifest is true to it."""
    trained = new_trained()
    trained.train(1)
    trained.save(1)
    path = folder.checkpoints_dir / "step_1"
    damage(path / name, "garbage")
    rewrite(path, files={**read_manifest(path)["files"], name: hash_file(path / name)})
    assert choose_checkpoint(folder, None, print) == path
    with pytest.raises(UserError) as caught:
        trained.checkpointer.restore(path)
    message = str(caught.value)
    assert message.startswith(f"--resume_from_checkpoint: {path} cannot be read (") and "\n" not in message


@pytest.mark.parametrize("change", [{"state": {"step": 1, "phase_of_moon": 2}}, {"state": None}])
def test_restore_refuses_unknown_state(new_trained, folder, change):
    trained = new_trained()
    trained.save(1)
    rewrite(folder.checkpoints_dir / "step_1", **change)
    with pytest.raises(UserError, match="cannot be read"):
        trained.checkpointer.restore(folder.checkpoints_dir / "step_1")


def test_choose_checkpoint_refuses_a_newer_format(new_trained, folder):
    new_trained().save(1, 2)
    rewrite(folder.checkpoints_dir / "step_2", format_version=3)
    for asked in (None, "step_2"):
        with pytest.raises(UserError, match=r"step_2: written by a newer version .*format 3, .* reads 2\). Install"):
            choose_checkpoint(folder, asked, print)


@pytest.mark.parametrize("asked", [None, "step_2", "PATH"])
def test_choose_checkpoint_refuses_format_1(new_trained, folder, asked):
    """It had training/state.json, and no manifest."""
    new_trained().save(1, 2)
    path = folder.checkpoints_dir / "step_2"
    (path / "training" / "manifest.json").unlink()
    (path / "training" / "state.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match=r"step_2: unsupported format \(got 1\)\. Give another --output_dir"):
        choose_checkpoint(folder, str(path) if asked == "PATH" else asked, print)


def test_choose_checkpoint_ignores_file_times(new_trained, folder):
    new_trained().save(1, 2, 10)
    for age, step in enumerate((10, 2, 1)):  # the newest looks like the oldest
        os.utime(folder.checkpoints_dir / f"step_{step}", (1e9 + age, 1e9 + age))
    assert choose_checkpoint(folder, None, print) == folder.checkpoints_dir / "step_10"


# Rotation and links


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, 2, [1, 2, 3, 4, 5]),
        (2, 2, [2, 4, 5]),
        (1, 1, [1, 5]),
        (1, None, [5]),
        pytest.param(2, 5, [4, 5], marks=pytest.mark.slow),
        pytest.param(9, None, [1, 2, 3, 4, 5], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_prune_keeps_the_last_and_the_best(new_trained, folder, limit, best, kept):
    trained = new_trained(save_total_limit=limit)
    trained.save(1, 2, 3, 4, 5, best=best)
    assert [step for step, _ in list_checkpoints(folder)] == kept
    links = ["latest"] if best is None else ["best", "latest"]
    assert names_in(folder.checkpoints_dir) == sorted([*links, *(f"step_{step}" for step in kept)])
    assert os.readlink(folder.checkpoints_dir / "latest") == "step_5"
    if best is not None:
        assert os.readlink(folder.checkpoints_dir / "best") == f"step_{best}"


def test_list_checkpoints_sorts_by_number(new_trained, folder):
    trained = new_trained(save_total_limit=2)
    trained.save(9, 10, 100)
    assert [step for step, _ in list_checkpoints(folder)] == [10, 100]


def test_save_replaces_an_earlier_save_of_the_step(new_trained, folder):
    trained = new_trained()
    trained.save(3)
    before = hashes_of(folder.checkpoints_dir / "step_3")
    trained.train(2)  # the first update of the warm-up has a learning rate of 0
    trained.save(3)
    after = hashes_of(folder.checkpoints_dir / "step_3")
    assert after.keys() == before.keys() and after["model.safetensors"] != before["model.safetensors"]
    assert names_in(folder.checkpoints_dir) == ["latest", "step_3"]


def test_drop_later_removes_checkpoints_after_the_step(new_trained, folder, capsys):
    trained = new_trained()
    trained.save(2, 4, best=2)
    trained.save(6, 8, best=8)
    trained.checkpointer.restore(folder.checkpoints_dir / "step_4")
    trained.checkpointer.drop_later()
    assert [step for step, _ in list_checkpoints(folder)] == [2, 4]
    assert "step_6: training resumes before" in capsys.readouterr().out
    # The names point at what is there again: step_4 knew step_2 as the best.
    assert os.readlink(folder.checkpoints_dir / "latest") == "step_4"
    assert os.readlink(folder.checkpoints_dir / "best") == "step_2"
    assert names_in(folder.checkpoints_dir) == ["best", "latest", "step_2", "step_4"]


# A save behind the loop


@pytest.fixture
def held(monkeypatch):
    """Saves that do not get on before they are let go."""
    may_go, has_begun, fill = threading.Event(), threading.Event(), Checkpointer._fill

    def wait(*arguments):
        has_begun.set()
        assert may_go.wait(60)
        fill(*arguments)

    monkeypatch.setattr(Checkpointer, "_fill", wait)
    yield SimpleNamespace(go=may_go.set, has_begun=has_begun)
    may_go.set()


@pytest.mark.slow
def test_background_save_is_not_changed_by_later_updates(new_trained, folder, held):
    first = new_trained()
    first.train(5)
    saved = copy.deepcopy(first.snapshot())
    first.checkpointer.save(in_background=True)
    first.train(5)
    assert not list_checkpoints(folder)
    held.go()
    first.checkpointer.finish()
    first.train(3)
    first.checkpointer.save(in_background=True)  # into the same memory
    first.checkpointer.finish()
    other = new_trained(seed=9)
    other.checkpointer.restore(folder.checkpoints_dir / "step_5")
    assert_equal(other.snapshot(), saved)
    other.checkpointer.restore(folder.checkpoints_dir / "step_13")
    assert_equal(other.snapshot(), first.snapshot())


def test_background_save_writes_the_same_bytes(new_trained, folder):
    trained = new_trained()
    trained.train(2)
    files = []
    for in_background in (True, False):
        trained.checkpointer.save(in_background=in_background)
        trained.checkpointer.finish()
        files.append(hashes_of(folder.checkpoints_dir / "step_2"))
    assert files[0] == files[1] and "training/optimizer.pt" in files[0]


@pytest.mark.slow
def test_background_saves_do_not_overlap(new_trained, folder, held):
    trained = new_trained(save_total_limit=1)
    order = []
    trained.train(1)
    trained.checkpointer.save(in_background=True, then=lambda: order.append(names_in(folder.checkpoints_dir)))
    assert held.has_begun.wait(60) and order == []
    trained.train(1)
    threading.Timer(0.2, held.go).start()
    trained.checkpointer.save(in_background=True, then=lambda: order.append(names_in(folder.checkpoints_dir)))
    assert order[0] == ["latest", "step_1"]  # the first stood before the second was begun
    trained.checkpointer.finish()
    assert order[1] == ["latest", "step_2"]


@pytest.mark.parametrize(
    "where", ["check", pytest.param("finish", marks=pytest.mark.slow), pytest.param("save", marks=pytest.mark.slow)]
)
def test_background_save_error_is_raised_in_the_loop(new_trained, folder, limit_file_size, where):
    trained = new_trained()
    trained.train(1)
    trained.checkpointer.save()
    before = hashes_of(folder.checkpoints_dir / "step_1")
    trained.state.step = 2
    limit_file_size((folder.checkpoints_dir / "step_1" / "model.safetensors").stat().st_size - 1)
    pushed = []
    trained.checkpointer.save(in_background=True, then=lambda: pushed.append(2))
    trained.checkpointer._writer._thread.join()
    limit_file_size(2**40)
    with pytest.raises(RunFailed, match="step_2: saving failed"):
        getattr(trained.checkpointer, where)()
    assert pushed == [] and hashes_of(folder.checkpoints_dir / "step_1") == before
    trained.checkpointer.save(in_background=True)  # said once; the next one is another
    trained.checkpointer.finish()
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1", "step_2"]


@pytest.mark.slow
def test_close_waits_for_the_background_save(new_trained, folder, held):
    trained = new_trained()
    trained.train(1)
    trained.checkpointer.save(in_background=True)
    threading.Timer(0.2, held.go).start()
    trained.checkpointer.close()
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1"]


def test_background_save_without_host_memory_writes_at_once(new_trained, folder, monkeypatch):
    monkeypatch.setattr("mtloop.checkpoint.save.available_memory", lambda: 100_000)
    trained = new_trained()
    trained.train(1)
    trained.checkpointer.save(in_background=True)
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1"]
    assert trained.checkpointer._buffers.num_bytes == 0


# A save that fails, or is killed


@pytest.fixture
def limit_file_size():
    """A real limit on the size of files: writing beyond it fails half-way, as on a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "fails_at",
    [
        "training/optimizer.pt",
        pytest.param("config.json", marks=pytest.mark.slow),
        pytest.param("model.safetensors", marks=pytest.mark.slow),
    ],
)
def test_failed_save_keeps_the_earlier_checkpoint(new_trained, folder, limit_file_size, fails_at):
    trained = new_trained(save_total_limit=1)
    trained.train(1)
    trained.save(1)
    earlier = folder.checkpoints_dir / "step_1"
    before = hashes_of(earlier)
    trained.state.step = 2
    size = (earlier / fails_at).stat().st_size
    limit_file_size(size - 1)
    with pytest.raises(RunFailed) as caught:
        trained.checkpointer.save()
    limit_file_size(2**40)
    message = str(caught.value)
    assert f"{folder.checkpoints_dir / 'step_2'}: saving failed (" in message and "\n" not in message
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1"]
    assert hashes_of(earlier) == before and os.readlink(folder.checkpoints_dir / "latest") == "step_1"
    trained.checkpointer.save()  # once there is room again
    assert names_in(folder.checkpoints_dir) == ["latest", "step_2"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_kill_during_save_leaves_whole_checkpoints(new_trained, folder):
    """A child saves step after step with a limit of one; it is killed 5 times, 10 to 90 ms after it began to save."""
    disable_progress_bar()  # its lock lies in memory that both processes share: a killed child may hold it for ever
    trained = new_trained(save_total_limit=1)
    trained.train(1)
    trained.save(1)
    for delay_ms in range(10, 100, 20):
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(begins, b"x")
            try:
                trained.save(*range(2, 10_000))
            finally:
                os._exit(1)
        os.read(begun, 1)
        time.sleep(delay_ms / 1000)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        os.close(begun)
        os.close(begins)
        folder.sweep()
        assert all(not name.startswith(".") for name in names_in(folder.checkpoints_dir))
        found = list_checkpoints(folder)
        assert 1 <= len(found) <= 2  # two where the kill fell between publishing and pruning
        for step, path in found:
            trained.checkpointer.restore(path)
            assert trained.state.step == step
            AutoModelForSeq2SeqLM.from_pretrained(path)
            shutil.rmtree(path)
        trained.save(1)


def test_kill_between_renames_restores_the_old_checkpoint(new_trained, folder):
    new_trained().save(1, 2)
    before = hashes_of(folder.checkpoints_dir / "step_2")
    (folder.checkpoints_dir / "step_2").rename(folder.checkpoints_dir / ".old-step_2-0a1b2c3d")
    (folder.checkpoints_dir / ".tmp-step_2-4e5f6a7b").mkdir()
    folder.sweep()
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1", "step_2"]
    assert hashes_of(folder.checkpoints_dir / "step_2") == before
    # The kill came after the second rename: the new one counts.
    shutil.copytree(folder.checkpoints_dir / "step_1", folder.checkpoints_dir / ".old-step_2-0a1b2c3d")
    folder.sweep()
    assert hashes_of(folder.checkpoints_dir / "step_2") == before
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1", "step_2"]


def test_prune_reads_back_the_new_checkpoint_first(new_trained, folder, monkeypatch):
    """A disk that takes what it is given and gives back something else."""
    trained = new_trained(save_total_limit=1)
    trained.save(1)
    monkeypatch.setattr(
        "mtloop.checkpoint.save.sync_tree", lambda path: damage(path / "training" / "optimizer.pt", "flip")
    )
    trained.state.step = 2
    with pytest.raises(RunFailed, match="step_2: the disk returns other data than was written .*optimizer.pt"):
        trained.checkpointer.save()
    assert choose_checkpoint(folder, None, lambda line: None) == folder.checkpoints_dir / "step_1"


def test_save_again_reads_back_before_it_replaces(new_trained, folder, monkeypatch):
    trained = new_trained()
    trained.save(1)
    before = hashes_of(folder.checkpoints_dir / "step_1")
    monkeypatch.setattr("mtloop.checkpoint.save.sync_tree", lambda path: damage(path / "model.safetensors", "flip"))
    with pytest.raises(RunFailed, match="step_1: the disk returns other data than was written .*model.safetensors"):
        trained.checkpointer.save()
    assert hashes_of(folder.checkpoints_dir / "step_1") == before
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1"]


def test_save_checks_the_disk_space_first(new_trained, folder, monkeypatch):
    trained = new_trained()
    trained.train(1)
    trained.save(1)
    needed = sum(file.stat().st_size for file in (folder.checkpoints_dir / "step_1").rglob("*") if file.is_file())
    disk = shutil.disk_usage(folder.path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk._replace(free=needed - 6_000))
    monkeypatch.setattr(Checkpointer, "_fill", lambda *_: pytest.fail("it was begun"))
    trained.state.step = 2
    with pytest.raises(RunFailed, match=r"step_2: saving failed \(.* MB are required, .* MB are free\)\. "):
        trained.checkpointer.save()
    assert names_in(folder.checkpoints_dir) == ["latest", "step_1"]


def test_sweep_removes_leftovers_only(new_trained, folder):
    new_trained().save(1, best=1)
    before = hashes_of(folder.path)
    for parent in (folder.path, folder.checkpoints_dir):
        for name in (".tmp-step_7-abc", ".trash-step_1-abc"):
            (parent / name / "training").mkdir(parents=True)
            (parent / name / "training" / "optimizer.pt").write_text("half")
        (parent / ".tmp-latest-abc").symlink_to("step_7")
        (parent / ".tmp-best-abc").symlink_to(".")  # to a folder: the link goes, the folder stays
    folder.sweep()
    assert hashes_of(folder.path) == before
    assert names_in(folder.checkpoints_dir) == ["best", "latest", "step_1"]
    assert names_in(folder.path) == ["checkpoints", "config.yaml"]


# Finding


@pytest.fixture
def four_saved(new_trained, folder):
    """Steps 5, 8 (the end of epoch 1, the best), 10 and 16 (the end of epoch 2)."""
    trained = new_trained()
    for step, cursor, epoch in ((5, 5, 0), (8, 0, 1), (10, 2, 1), (16, 0, 2)):
        trained.state.cursor, trained.state.epoch = cursor, epoch
        trained.save(step, best=8)
    return folder


def test_find_checkpoint_by_name(four_saved):
    steps = {None: 16, "latest": 16, "true": 16, "best": 8, "epoch_1": 8, "epoch_2": 16, "step_5": 5, "step_10": 10}
    for asked, step in steps.items():
        assert find_checkpoint(four_saved, asked) == four_saved.checkpoints_dir / f"step_{step}"


def test_find_checkpoint_by_path(four_saved, tmp_path):
    path = four_saved.checkpoints_dir / "step_5"
    assert find_checkpoint(four_saved, str(path)) == path
    elsewhere = tmp_path / "copy"
    shutil.copytree(path, elsewhere)
    assert find_checkpoint(four_saved, str(elsewhere)) == elsewhere


def test_find_checkpoint_refuses_missing_ones_with_the_existing(four_saved):
    for asked in ("epoch_3", "step_6", "nowhere", "/no/such/path"):
        with pytest.raises(UserError) as caught:
            find_checkpoint(four_saved, asked)
        message = str(caught.value)
        assert message.startswith("--resume_from_checkpoint: ") and f"(got {asked})" in message and "\n" not in message
        assert message.endswith("checkpoints: best, epoch_1, epoch_2, step_10, step_16, step_5, step_8.")


def test_find_checkpoint_in_a_new_folder(folder):
    assert find_checkpoint(folder, None) is None
    for asked in ("latest", "best", "epoch_1"):
        with pytest.raises(UserError, match=rf"--resume_from_checkpoint: .* \(got {asked}\)\. .*: none"):
            find_checkpoint(folder, asked)


def test_list_checkpoints_ignores_partial_ones(four_saved):
    for name in (".tmp-step_99-abcdef", ".trash-step_98-abcdef", "step_97x", "step_"):
        (four_saved.checkpoints_dir / name).mkdir()
    (four_saved.checkpoints_dir / "step_96").write_text("a file")
    assert [step for step, _ in list_checkpoints(four_saved)] == [5, 8, 10, 16]


# The command


@pytest.fixture
def listed(four_saved):
    """The run of four_saved with two evaluations, one of test rows, and one push."""
    lines = [
        {"step": 8, "epoch": 1.0, "loss": 2.5, "target_tokens": 9},
        {"step": 8, "epoch": 1.0, "bleu": 31.25, "eval_loss": 1.0, "num_sentences": 5},
        {"step": 16, "epoch": 2.0, "bleu": 29.5, "eval_loss": 1.1, "num_sentences": 5},
        {"split": "test", "step": 16, "epoch": 2.0, "bleu": 99.0, "eval_loss": 1.0, "num_sentences": 5},
    ]
    four_saved.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 17, "bl')
    manifest = read_manifest(four_saved.checkpoints_dir / "step_8")["sha256"]
    line = {"part": "epoch 1", "step": 8, "run_id": "", "manifest": manifest, "repo_id": "a/b", "revision": "main"}
    four_saved.push_path.write_text(json.dumps({**line, "commit": "abc"}) + "\n")
    return four_saved


def table(capsys):
    """The rows that were printed: a dict of step, epoch, BLEU, MB, pushed, names and state by checkpoint."""
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if match := re.match(r" *(\S*step_\d+) +(\S+) +(\d+(?: \+ \d+)?) +(\S+) +([\d.,]+) +(yes|no) +(.*)", line):
            rows[match[1]] = match.groups()[1:]
    return rows


def test_list_describes_each_checkpoint(listed, capsys):
    assert checkpoint(["list", str(listed.path)]) == 0
    size = sum(file.stat().st_size for file in (listed.checkpoints_dir / "step_8").rglob("*") if file.is_file()) / 1e6
    assert table(capsys) == {
        "step_5": ("5", "0 + 5", "-", f"{size:.1f}", "no", "complete"),
        "step_8": ("8", "1", "31.25", f"{size:.1f}", "yes", "best  complete"),
        "step_10": ("10", "1 + 2", "-", f"{size:.1f}", "no", "complete"),
        "step_16": ("16", "2", "29.50", f"{size:.1f}", "no", "latest  complete"),
    }


def test_verify_reads_every_byte_and_list_does_not(listed, capsys):
    assert checkpoint(["verify", str(listed.path)]) == 0
    assert [row[-1].split()[-1] for row in table(capsys).values()] == ["verified"] * 4
    damage(listed.checkpoints_dir / "step_10" / "model.safetensors", "flip")
    damage(listed.checkpoints_dir / "step_5" / "training" / "optimizer.pt", "cut")
    assert checkpoint(["list", str(listed.path)]) == 0
    found = table(capsys)
    assert found["step_10"][-1] == "complete" and "corrupt: training/optimizer.pt has" in found["step_5"][-1]
    assert checkpoint(["verify", str(listed.path)]) == 1
    output = capsys.readouterr().out
    assert "corrupt: model.safetensors has changed since it was written (sha256 differs)" in output
    assert output.splitlines()[-1] == "4 checkpoint(s): 2 verified, 2 corrupt"


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--save_total_limit", "2"], [8, 10, 16]),
        pytest.param([], [8, 16], marks=pytest.mark.slow),
        pytest.param(["--save_total_limit", "9"], None, marks=pytest.mark.slow),
    ],
)
def test_prune_keeps_the_newest_and_the_best(listed, capsys, flags, kept):
    set_aside(listed, listed.checkpoints_dir / "step_5")
    assert checkpoint(["prune", str(listed.path), *flags]) == 0
    assert [step for step, _ in list_checkpoints(listed)] == (kept or [8, 10, 16])
    assert not (listed.checkpoints_dir / "damaged_step_5").exists() and "damaged_step_5" in capsys.readouterr().out
    for step, path in list_checkpoints(listed):
        assert choose_checkpoint(listed, f"step_{step}", print) == path


def test_prune_counts_valid_checkpoints_only(listed, capsys):
    """The newest is corrupt: the one before it is kept."""
    damage(listed.checkpoints_dir / "step_16" / "training" / "optimizer.pt", "flip")
    assert checkpoint(["prune", str(listed.path)]) == 0
    assert [step for step, _ in list_checkpoints(listed)] == [8, 10]
    assert os.readlink(listed.checkpoints_dir / "latest") == "step_10"
    for step in (8, 10):
        damage(listed.checkpoints_dir / f"step_{step}" / "config.yaml", "flip")
    assert checkpoint(["prune", str(listed.path)]) == 2
    assert "RUN: every checkpoint is corrupt, nothing was removed" in capsys.readouterr().err
    assert [step for step, _ in list_checkpoints(listed)] == [8, 10]


def test_prune_keeps_unpushed_epochs(listed):
    listed.config_path.write_text(CONFIG + "push_to_hub: true\n")
    listed.push_path.unlink()
    (listed.checkpoints_dir / "best").unlink()
    assert checkpoint(["prune", str(listed.path)]) == 0
    assert [step for step, _ in list_checkpoints(listed)] == [8, 16]


def test_prune_keeps_epochs_for_the_average(listed):
    listed.config_path.write_text(CONFIG + "average_last: 2\n")
    (listed.checkpoints_dir / "best").unlink()
    assert checkpoint(["prune", str(listed.path)]) == 0
    assert [step for step, _ in list_checkpoints(listed)] == [8, 16]


def test_checkpoint_command_refuses_other_folders(tmp_path, capsys):
    for arguments in (["list", str(tmp_path)], ["verify", str(tmp_path / "no")], ["prune", str(tmp_path)]):
        assert checkpoint(arguments) == 2
        assert "RUN: not a run folder" in capsys.readouterr().err
    RunFolder(tmp_path).create()
    assert checkpoint(["prune", str(tmp_path), "--save_total_limit", "0"]) == 2
    assert "--save_total_limit: expected a whole number from 1 to 1000000000 (got 0)." in capsys.readouterr().err
    assert checkpoint(["list", str(tmp_path)]) == 0 and "no checkpoint yet" in capsys.readouterr().out


# Exports


@pytest.mark.slow
def test_checkpoint_loads_with_transformers(new_trained, folder, marian_tokenizer):
    trained = new_trained()
    trained.train(3)
    trained.checkpointer.save()
    path = folder.checkpoints_dir / "step_3"
    model = AutoModelForSeq2SeqLM.from_pretrained(path)
    assert_equal(dict(model.state_dict()), dict(trained.checkpointer.model.state_dict()))
    generation = model.generation_config
    assert (generation.num_beams, generation.max_length) == (3, 20)
    assert (generation.pad_token_id, generation.eos_token_id, generation.decoder_start_token_id) == (399, 0, 399)
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "Open the file in a new window"
    assert tokenizer(text)["input_ids"] == marian_tokenizer(text)["input_ids"]
    assert tokenizer(text_target=text)["input_ids"] == marian_tokenizer(text_target=text)["input_ids"]
    assert model.generate(**tokenizer(text, return_tensors="pt")).shape[1] <= 20
    assert (path / "config.yaml").read_text() == CONFIG


@pytest.mark.parametrize(
    ("is_best", "best", "expected"),
    [
        (True, 2, 2),
        pytest.param(False, 2, 5, marks=pytest.mark.slow),
        pytest.param(True, None, 5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_publish_final_copies_the_best_or_the_last(new_trained, folder, is_best, best, expected):
    trained = new_trained()
    folder.final_dir.mkdir()
    (folder.final_dir / "old").write_text("")
    for step in (2, 5):
        trained.train(2)
        trained.save(step, best=best)
    source = publish_final(trained.checkpointer, is_best=is_best)
    assert source == folder.checkpoints_dir / f"step_{expected}"
    its_files = {name: value for name, value in hashes_of(source).items() if not name.startswith("training/")}
    final = {name: value for name, value in hashes_of(folder.final_dir).items() if name != FINAL_MANIFEST_NAME}
    assert final == its_files and "model.safetensors" in its_files
    assert names_in(folder.path) == ["checkpoints", "config.yaml", "final"]
    manifest = check_files(folder.final_dir)
    assert (manifest["step"], manifest["manifest"]) == (expected, read_manifest(source)["sha256"])
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == its_files


def test_publish_final_keeps_the_old_one_on_error(new_trained, folder, limit_file_size):
    trained = new_trained()
    trained.save(1)
    publish_final(trained.checkpointer, is_best=False)
    before = hashes_of(folder.final_dir)
    limit_file_size(10_000)
    with pytest.raises(RunFailed, match=f"{folder.final_dir}: cannot be written"):
        publish_final(trained.checkpointer, is_best=False)
    limit_file_size(2**40)
    assert hashes_of(folder.final_dir) == before
    assert names_in(folder.path) == ["checkpoints", "config.yaml", "final"]


# Weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_size", ["50GB", "20KB"])
def test_load_weights_in_place_with_tied_weights(tiny_configs, tmp_path, family, max_shard_size):
    torch.manual_seed(0)
    source, target = (AutoModelForSeq2SeqLM.from_config(tiny_configs[family]) for _ in range(2))
    with torch.no_grad():
        for parameter in source.parameters():  # biases and gains are alike in every new model
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    source.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    table = target.get_input_embeddings().weight
    load_weights(target, tmp_path)
    assert_equal(dict(target.state_dict()), dict(source.state_dict()))
    # In place, and still tied.
    assert target.get_input_embeddings().weight is table
    assert target.get_output_embeddings().weight is table


def test_load_weights_with_untied_embeddings(tiny_configs, tmp_path):
    config = type(tiny_configs["bart"]).from_dict({**tiny_configs["bart"].to_dict(), "tie_word_embeddings": False})
    source, target = (AutoModelForSeq2SeqLM.from_config(config) for _ in range(2))
    source.save_pretrained(tmp_path)
    load_weights(target, tmp_path)
    assert_equal(dict(target.state_dict()), dict(source.state_dict()))
    assert not torch.equal(target.lm_head.weight, target.model.shared.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.encoder.layernorm_embedding.weight": None}, "lacks the weights .*layernorm_embedding"),
        ({"model.encoder.new.weight": torch.ones(2)}, "has weights that the model lacks: .*new.weight"),
        (
            {"final_logits_bias": torch.ones(1, 3)},
            r"is of another model: final_logits_bias has the shape \[1, 3\], expected \[1, 400\]",
        ),
    ],
)
def test_load_weights_refuses_another_model(tiny_configs, tmp_path, change, message):
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs["bart"])
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    with pytest.raises((ValueError, RuntimeError), match=message):
        load_weights(model, tmp_path)


def test_load_weights_refuses_a_folder_without_weights(tiny_configs, tmp_path):
    with pytest.raises(ValueError, match="lacks the weights"):
        load_weights(AutoModelForSeq2SeqLM.from_config(tiny_configs["t5"]), tmp_path)
