"""Runs that several test files make and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support.launch import run, start_command

CLOCKS = ("tokens_per_s", "sentences_per_s", "eval_time_s", "train_time_s")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on a clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def assert_same_run(folder: Path, whole: Path) -> None:
    """Assert that two run folders have the same files, the same metrics and bitwise the same final weights."""
    assert metrics(folder) == metrics(whole)
    found, expected = (load_file(path / "final" / "model.safetensors") for path in (folder, whole))
    assert all((found[name] == expected[name]).all() for name in expected)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in whole.iterdir())


def short_flags(num_epochs: int) -> list[str]:
    """Return the flags of a short demo: some 24 updates an epoch, a save every 4, the two newest and the best kept."""
    return [
        "demo", "--mixed_precision", "no", "--cpu_threads", "1", "--dropout", "0.1", "--max_train_samples", "600",
        "--max_eval_samples", "40", "--vocab_size", "400", "--num_beams", "1", "--val_max_target_length", "16",
        "--num_train_epochs", str(num_epochs),
        "--logging_steps", "1", "--save_steps", "4", "--save_total_limit", "2",
    ]  # fmt: skip


def uninterrupted(tmp_path: Path, num_epochs: int, num_processes: int) -> Path:
    """Make the short run from start to end; return its folder."""
    folder = tmp_path / "whole"
    words = ["train.py", *short_flags(num_epochs), "--output_dir", folder]
    done = run(start_command(*words, num_processes=num_processes), timeout_s=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder
