"""curves.png, drawn from metrics.jsonl."""

import struct
import sys

import numpy as np
import pytest

from mtloop.run_folder import RunFolder
from mtloop.trainer.curves import _line_through, _pairs_of, _running_mean, draw_curves, figure_of
from tests.support.records import evaluation, update


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def figure():
    """Draw lines of metrics.jsonl."""
    pytest.importorskip("matplotlib")
    return figure_of


def timed(step, bleu=31.25, **scores):
    """An evaluation: an update takes half a second until the 40th, 2 s from then on."""
    return evaluation(step, bleu) | {"train_time_s": min(step, 40) * 0.5 + max(step - 40, 0) * 2.0} | scores


def curves_of(axes):
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines}


@pytest.mark.slow
def test_draw_curves_writes_a_picture_without_pyplot(folder):
    pytest.importorskip("matplotlib")
    had_pyplot = "matplotlib.pyplot" in sys.modules
    for step in range(1, 60):
        folder.metrics.append(update(step, loss=6 / step))
    folder.metrics.append(timed(20))
    draw_curves(folder)
    data = (folder.path / "curves.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and 10_000 < len(data) < 500_000
    assert struct.unpack(">II", data[16:24]) == (1100, 500)  # 11 x 5 inches at 100 dots
    # pyplot has one backend for the whole process: a notebook's own pictures must go on showing.
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_figure_draws_losses_that_are_finite(figure):
    lines = [update(step, loss=None if step == 3 else 12.0 - step) for step in range(1, 11)]
    loss, *_ = figure(
        [*lines, timed(0, eval_loss=None), timed(5, eval_loss=9), timed(5), {"split": "test", **timed(10)}]
    ).axes
    drawn = curves_of(loss)
    steps = [step for step in range(1, 11) if step != 3]
    assert drawn["training, one update"] == drawn["training, running mean"] == (steps, [12.0 - step for step in steps])
    assert drawn["validation"] == ([5], [1.5]) and "lowest validation 1.500 at update 5" in loss.get_title()


def test_figure_fits_axis_of_a_metric_to_its_scores_and_intervals(figure):
    scores = {0: (27.5, 1.0), 20: (30.0, 1.5), 40: (33.25, 1.25), 50: (33.0, 1.0)}
    lines = [timed(step, bleu, bleu_ci=half, chrf=50 + step / 10) for step, (bleu, half) in scores.items()]
    _, bleu, chrf = figure([update(1), *lines]).axes
    (line,) = bleu.lines
    assert line.get_xdata().tolist() == list(scores) and line.get_ydata().tolist() == [
        one for one, _ in scores.values()
    ]
    (band,) = bleu.collections
    box = band.get_paths()[0].get_extents()
    assert (box.y0, box.y1) == (26.5, 34.5)  # 27.5 - 1, 33.25 + 1.25
    low, high = bleu.get_ylim()
    assert 26 < low < 26.5 and 34.5 < high < 35
    assert bleu.get_title() == "Validation BLEU: best 33.25 at update 40"
    assert chrf.get_title() == "Validation chrF: best 55.00 at update 50" and not chrf.collections
    assert 49 < chrf.get_ylim()[0] < 50 and 55 < chrf.get_ylim()[1] < 56


def test_figure_keeps_intervals_within_the_limits_of_a_metric(figure):
    _, bleu, _ = figure([timed(0, 0.5, bleu_ci=2.0), timed(10, 99.0, bleu_ci=3.0)]).axes
    box = bleu.collections[0].get_paths()[0].get_extents()
    assert (box.y0, box.y1) == (0, 100)


def test_figure_shows_time_of_training_above_updates(figure):
    loss, bleu, chrf = figure([timed(0), timed(40), timed(60)]).axes
    for axes in (loss, bleu):
        (top,) = axes.child_axes
        assert top.get_xlabel() == "seconds of training"
        # 40 updates of half a second, then 2 s each; beyond the last as before it.
        assert top._functions[0](np.array([-2.0, 20.0, 40.0, 50.0, 61.0])).tolist() == [-1, 10, 20, 40, 62]
        assert top._functions[1](np.array([10.0, 40.0, 62.0])).tolist() == [20, 50, 61]
    assert not chrf.child_axes and chrf.get_xlabel() == "update" and not bleu.get_xlabel()
    for times, unit in (([0.0, 600.0], "minutes"), ([0.0, 90_000.0], "hours")):
        axes = figure([timed(step, train_time_s=time_s) for step, time_s in zip((0, 9), times, strict=True)]).axes[0]
        assert axes.child_axes[0].get_xlabel() == f"{unit} of training"
    for lines in ([evaluation(10)], [timed(0)]):  # of an older run, and before training
        assert not figure(lines).axes[0].child_axes


def test_figure_draws_every_pair_and_the_mean(figure):
    def of_pairs(step, pairs):
        scores = {
            f"{name}_{pair}": 10.0 * (number + 1) for number, pair in enumerate(pairs) for name in ("bleu", "chrf")
        }
        return timed(step, **scores, **{f"{name}_ci": 0.5 for name in scores})

    _, bleu, _ = figure([of_pairs(step, ["en-fr", "pt_BR-de"]) for step in (0, 10)]).axes
    drawn = curves_of(bleu)
    assert drawn == {
        "en-fr": ([0, 10], [10, 10]), "pt_BR-de": ([0, 10], [20, 20]), "mean of the pairs": ([0, 10], [31.25, 31.25])
    }  # fmt: skip
    assert len(bleu.collections) == 2
    _, bleu, _ = figure([of_pairs(0, [f"en-x{number}" for number in range(7)])]).axes
    assert [text.get_text() for text in bleu.get_legend().get_texts()] == ["each pair", "mean of the pairs"]
    assert len(bleu.lines) == 8 and not bleu.collections


def test_pairs_of_are_not_metrics_of_a_longer_name():
    scores = ("chrf", "chrf_pp", "chrf_en-fr", "chrf_en-fr_ci", "chrf_pp_en-fr", "chrf_signature")
    assert _pairs_of(dict.fromkeys(scores, 1.0)) == ["en-fr"]


def test_figure_draws_own_metrics_and_those_whose_less_is_better(figure):
    own = {
        "user_metrics": {"length": False, "comet": True},
        "length": 3.0,
        "comet": 0.8,
        "ter": 50.0,
        "exact_match": 1.0,
    }
    _, *panels = figure([timed(0, **own), timed(10, **own | {"length": 2.0, "comet": None})]).axes
    titles = [axes.get_title() for axes in panels]
    assert [title.split(":")[0] for title in titles] == [
        f"Validation {title}"
        for title in ("BLEU", "chrF", "length, lower is better", "comet", "TER, lower is better", "exact match")
    ]
    assert titles[2].endswith("best 2.00 at update 10") and titles[3].endswith("best 0.80 at update 0")


def test_figure_without_metrics_or_evaluations_is_the_loss(figure):
    lines = [update(step) for step in (1, 2)]
    without = {name: value for name, value in timed(2).items() if not name.startswith(("bleu", "chrf"))}
    for records in (lines, [*lines, without], [without], [{"split": "test", **without}]):
        (loss,) = figure(records).axes
        assert loss.get_title().startswith("Loss")


def test_without_metrics_there_are_no_curves(folder, tmp_path):
    draw_curves(folder)
    assert list(tmp_path.iterdir()) == []


def test_running_mean_is_over_a_twentieth_of_the_values():
    means = _running_mean(np.arange(1.0, 401.0))
    # 1; (1 + 2) / 2; ...; (1 + ... + 20) / 20; then 2 ... 21 and so on, last 381 ... 400.
    assert means[[0, 1, 19, 20, 399]] == pytest.approx([1, 1.5, 10.5, 11.5, 390.5])
    few = np.arange(39.0)
    assert _running_mean(few) == pytest.approx(few)  # 39 // 20 = 1
    assert _running_mean(np.arange(1.0, 5001.0))[-1] == 4975.5  # of 4951 ... 5000, 1 %


def test_line_through_goes_on_beyond_its_ends():
    value = _line_through(np.array([0, 10, 20]), np.array([0.0, 5.0, 25.0]))
    assert value(np.array([-2.0, 4.0, 10.0, 15.0, 21.0])).tolist() == [-1, 2, 5, 15, 27]
