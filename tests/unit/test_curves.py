"""curves.png, drawn from metrics.jsonl."""

import struct
import sys

import numpy as np
import pytest

from mtloop.run_folder import RunFolder
from mtloop.trainer.curves import _running_mean, draw_curves
from tests.support.records import evaluation, update


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.mark.slow
def test_curves_are_a_picture_that_shows_them(folder):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    had_pyplot = "matplotlib.pyplot" in sys.modules
    for step in range(1, 60):
        folder.metrics.append(update(step, loss=float("nan") if step == 3 else 6 / step))
    for step in (20, 40):
        folder.metrics.append(evaluation(step, bleu=step))
    folder.metrics.append(evaluation(59, bleu=99), split="test")
    draw_curves(folder)
    path = folder.path / "curves.png"
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1320, 480)  # 11 x 4 inches at 120 dots
    assert 10_000 < len(data) < 500_000
    pixels = image.imread(path)[..., :3]
    for color in ("b9cde5", "1f5fa8", "d1495b", "2e8b57"):  # training, its mean, validation loss, BLEU
        wanted = np.array([int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        assert (np.abs(pixels - wanted).max(axis=-1) < 0.02).sum() > 20, color
    # pyplot has one backend for the whole process: a notebook's own pictures must go on showing.
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_without_metrics_there_are_no_curves(folder, tmp_path):
    draw_curves(folder)
    assert list(tmp_path.iterdir()) == []


def test_running_mean_is_over_a_twentieth_of_the_values():
    means = _running_mean(np.arange(1.0, 401.0))
    # 1; (1 + 2) / 2; ...; (1 + ... + 20) / 20; then 2 ... 21 and so on, last 381 ... 400.
    assert means[[0, 1, 19, 20, 399]] == pytest.approx([1, 1.5, 10.5, 11.5, 390.5])
    few = np.arange(39.0)
    assert _running_mean(few) == pytest.approx(few)  # 39 // 20 = 1
