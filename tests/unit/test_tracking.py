"""What a run leaves to be read: metrics.jsonl, the table, hypotheses, curves, and trackers that may fail."""

import json
import struct
import sys
import time

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker

from mtloop.config.environment import HardwareConfig
from mtloop.errors import RunFailed
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.tracking import Stopwatch, Tracker, _one_line, _running_mean

pytestmark = pytest.mark.usefixtures("curves")


@pytest.fixture
def tracker(runtime, tmp_path):
    return Tracker(folder=RunFolder(tmp_path), runtime=runtime, total_steps=1_200)


def update(step, loss=4.5, grad_norm=1.25):
    return {
        "step": step,
        "epoch": step / 100,
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": 2e-5,
        "target_tokens": 999,
        "tokens_per_s": 12_345.6,
    }


def evaluation(step, bleu=31.25, eval_loss=1.5):
    return {
        "step": step,
        "epoch": step / 100,
        "eval_loss": eval_loss,
        "perplexity": 4.4817,
        "bleu": bleu,
        "bleu_signature": "nrefs:1",
        "chrf": 55.5,
        "num_sentences": 6,
        "eval_time_s": 2.5,
        "sentences_per_s": 98.76,
    }


def strict_records(tracker):
    """Read metrics.jsonl as a strict reader does: NaN and Infinity are no JSON."""
    lines = tracker.folder.metrics.path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl")) for line in lines]


# metrics.jsonl and the console


def test_every_record_is_a_line_in_order(tracker):
    tracker.log_update(update(1))
    tracker.log_evaluation("valid", evaluation(100), epoch=1.0)
    tracker.log_evaluation("test", evaluation(100, bleu=30.0), epoch=1.0)
    assert strict_records(tracker) == [update(1), evaluation(100), {"split": "test", **evaluation(100, bleu=30.0)}]


def test_the_curves_of_a_tracker_are_of_the_validation_rows_alone(runtime, tmp_path):
    collecting = FailingTracker()
    runtime.accelerator.trackers = [collecting]
    tracker = Tracker(folder=RunFolder(tmp_path), runtime=runtime, total_steps=5, uses_trackers=True)
    tracker.log_evaluation("valid", evaluation(100), epoch=1.0)
    tracker.log_evaluation("average", evaluation(100), epoch=1.0)
    (_, valid), (_, average) = collecting.logged
    assert average == {f"average_{name}": value for name, value in valid.items()} and "bleu" in valid


def test_numbers_that_are_not_finite_are_null(tracker):
    tracker.log_update(update(1, loss=float("nan"), grad_norm=float("inf")))
    assert strict_records(tracker) == [update(1, loss=None, grad_norm=None)]


def test_without_a_terminal_an_update_is_a_line(tracker, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    tracker.open_bar(0)
    tracker.log_update(update(1_000))
    tracker.close_bar()
    assert capsys.readouterr() == ("update 1,000 of 1,200: loss 4.500, lr 2e-05, 12,346 tokens/s\n", "")


def test_on_a_terminal_a_bar_shows_the_update(tracker, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tracker.open_bar(10)
    tracker.advance()
    tracker.log_update(update(11))
    assert tracker._bar.n == 11 and tracker._bar.total == 1_200
    tracker.close_bar()
    shown = capsys.readouterr()
    assert "11/1200" in shown.err and "loss 4.500" in shown.err and "update 11 of" not in shown.out
    tracker.advance()  # a closed bar stays closed


def test_the_table_aligns_its_columns_and_names_them_once_until_samples_come_between(tracker, capsys):
    tracker.log_evaluation("valid", evaluation(1), epoch=0)
    tracker.log_update(update(1))
    capsys.readouterr()
    tracker.log_evaluation("valid", evaluation(1_100), epoch=1.23456)
    tracker.print_samples([("a source", "a reference", "a hypothesis")])
    tracker.log_evaluation("test", evaluation(1_100), epoch=2.0)
    lines = capsys.readouterr().out.splitlines()
    row, *samples, empty, header, last = lines
    assert row.split()[:9] == ["1.235", "1,100", "4.5000", "1.5000", "4.48", "31.25", "55.50", "12,346", "98.8"]
    assert [line.split(maxsplit=1)[-1].strip() for line in samples] == [
        "source      a source",
        "a reference",
        "a hypothesis",
    ]
    assert empty == "" and header.split()[:2] == ["epoch", "step"] and last.split()[0] == "test"
    assert len(row) == len(header) == len(last)
    assert header.index("BLEU") + len("BLEU") == row.index("31.25") + len("31.25")


def test_a_row_says_what_chance_makes_of_bleu_and_fits_a_wide_terminal(tracker, capsys):
    tracker.log_evaluation("valid", {**evaluation(1_199, bleu=52.9), "bleu_ci": 1.2}, epoch=1)
    tracker.print_samples([])
    gain = {"bleu_ci": 1.204, "bleu_gain": 13.7, "bleu_p_value": 1 / 1001}
    tracker.log_evaluation("valid", {**evaluation(1_200, bleu=52.9), **gain}, epoch=2)
    _, plain_header, plain, _, header, row = capsys.readouterr().out.splitlines()
    assert "  52.90 ± 1.20  " in plain and "  52.90 ± 1.20 (+13.70, p = 0.001)  " in row
    assert header.index("BLEU") + len("BLEU") == row.index("0.001)") + len("0.001)")
    assert len(plain_header) == len(plain) == 103 and len(header) == len(row) <= 123


def test_a_row_without_an_update_before_it_has_dashes(tracker, capsys):
    tracker.log_evaluation("valid", {**evaluation(0), "perplexity": 1e300}, epoch=0)
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert cells[2] == cells[7] == "-" and cells[4] == "1.0e+300"


def test_a_sample_stays_on_its_line():
    assert _one_line("a\nb\tc\x1b[31m") == r"a\nb\tc\x1b[31m"
    assert _one_line("10\xa0%") == "10\xa0%" and _one_line("a\u200bb") == r"a\u200bb"
    assert _one_line("x" * 161) == "x" * 157 + "..." and len(_one_line("x" * 160)) == 160


# files


def test_hypotheses_are_written_row_by_row(tracker):
    rows = [(7, "a source", "une référence"), (2, "two\nlines", "\u2028")]
    tracker.write_hypotheses(12, rows, ["une hypothèse", ""])
    tracker.write_hypotheses(12, rows, ["a", "b"], name="test")
    path = tracker.folder.hypotheses_dir / "step_12.jsonl"
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") == 2 and "référence" in text
    assert [json.loads(line) for line in text.split("\n")[:-1]] == [
        {"index": 7, "source": "a source", "reference": "une référence", "hypothesis": "une hypothèse"},
        {"index": 2, "source": "two\nlines", "reference": "\u2028", "hypothesis": ""},
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == ["step_12.jsonl", "test.jsonl"]


def test_a_file_that_cannot_be_written_fails_the_run_in_one_line(tracker):
    tracker.folder.metrics.path.mkdir()
    with pytest.raises(RunFailed, match=r"metrics\.jsonl: cannot be written \(Is a directory\)\. Free disk space"):
        tracker.log_update(update(1))
    tracker.folder.hypotheses_dir.write_text("")
    with pytest.raises(RunFailed, match=r"step_1\.jsonl: cannot be written"):
        tracker.write_hypotheses(1, [(0, "a", "b")], ["c"])


def test_a_process_that_is_not_main_writes_nothing(tracker, runtime, tmp_path, capsys):
    runtime.is_main = False
    tracker.open_bar(0)
    tracker.log_update(update(1))
    tracker.log_evaluation("valid", evaluation(1), epoch=1)
    tracker.write_hypotheses(1, [(0, "a", "b")], ["c"])
    tracker.draw_curves()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


# curves


@pytest.mark.slow
def test_curves_are_a_picture_that_shows_them(tracker):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    had_pyplot = "matplotlib.pyplot" in sys.modules
    for step in range(1, 60):
        tracker.log_update(update(step, loss=float("nan") if step == 3 else 6 / step))
    for step in (20, 40):
        tracker.log_evaluation("valid", evaluation(step, bleu=step), epoch=1)
    tracker.log_evaluation("test", evaluation(59, bleu=99), epoch=1)
    tracker.draw_curves()
    path = tracker.folder.path / "curves.png"
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


def test_without_metrics_there_are_no_curves(tracker, tmp_path):
    tracker.draw_curves()
    assert list(tmp_path.iterdir()) == []


def test_running_mean_is_over_a_twentieth_of_the_values():
    means = _running_mean(np.arange(1.0, 401.0))
    # 1; (1 + 2) / 2; ...; (1 + ... + 20) / 20; then 2 ... 21 and so on, last 381 ... 400.
    assert means[[0, 1, 19, 20, 399]] == pytest.approx([1, 1.5, 10.5, 11.5, 390.5])
    few = np.arange(39.0)
    assert _running_mean(few) == pytest.approx(few)  # 39 // 20 = 1


def test_the_stopwatch_leaves_out_what_is_skipped():
    watch = Stopwatch()
    time.sleep(0.02)
    assert watch.lap() >= 0.02
    time.sleep(0.02)
    watch.skip()
    assert watch.lap() < 0.02


# trackers


class FailingTracker(GeneralTracker):
    """A tracker whose service goes away at the second record."""

    name = "failing"
    requires_logging_directory = False
    tracker = None
    main_process_only = True

    def __init__(self):
        super().__init__()
        self.logged = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))
        if len(self.logged) == 2:
            raise ConnectionError("the service is away")

    def finish(self):
        pass


def test_a_tracker_that_fails_is_left_alone_and_training_goes_on(runtime, tmp_path, capsys):
    failing = FailingTracker()
    runtime.accelerator.trackers = [failing]
    tracker = Tracker(folder=RunFolder(tmp_path), runtime=runtime, total_steps=5, uses_trackers=True)
    for step in (1, 2, 3):
        tracker.log_update(update(step))
    assert [step for step, _ in failing.logged] == [1, 2]
    # Numbers alone, and the step once.
    assert failing.logged[0][1] == {name: value for name, value in update(1).items() if name != "step"}
    assert [record["step"] for record in strict_records(tracker)] == [1, 2, 3]
    assert (
        capsys.readouterr().out.count("tracking failed, training continues: ConnectionError: the service is away") == 1
    )


def test_tensorboard_files_hold_what_was_logged(fresh_accelerate, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runtime = Runtime(HardwareConfig(use_cpu=True, cpu_threads=1), project_dir=str(tmp_path), report_to="tensorboard")
    runtime.accelerator.init_trackers("mtloop", config={"seed": 42})
    tracker = Tracker(folder=RunFolder(tmp_path), runtime=runtime, total_steps=5, uses_trackers=True)
    tracker.log_update(update(1, loss=4.5))
    tracker.log_update(update(3, loss=float("nan")))
    tracker.log_update(update(4, loss=2.5))
    tracker.log_evaluation("valid", evaluation(4, bleu=31.25), epoch=1)
    runtime.close()
    assert tracker.uses_trackers
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses[0] == (1, 4.5) and losses[-1] == (4, 2.5)
    assert [(event.step, event.value) for event in events.Scalars("bleu")] == [(4, 31.25)]
