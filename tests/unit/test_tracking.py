"""Record a run: metrics.jsonl, hypotheses, and trackers that may fail."""

import json
import time

import pytest
from accelerate.tracking import GeneralTracker

from mtloop.config.environment import HardwareConfig
from mtloop.errors import RunFailed
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.tracking import Stopwatch, Tracker
from tests.support.records import evaluation, update


@pytest.fixture
def tracker(runtime, tmp_path):
    return Tracker(folder=RunFolder(tmp_path), runtime=runtime)


def strict_records(tracker):
    """Read metrics.jsonl as a strict reader does: NaN and Infinity are no JSON."""
    lines = tracker.folder.metrics.path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl")) for line in lines]


# metrics.jsonl


def test_every_record_is_a_line_in_order(tracker):
    tracker.log_update(update(1))
    tracker.log_evaluation("valid", evaluation(100))
    tracker.log_evaluation("test", evaluation(100, bleu=30.0))
    assert strict_records(tracker) == [update(1), evaluation(100), {"split": "test", **evaluation(100, bleu=30.0)}]


def test_the_curves_of_a_tracker_are_of_the_validation_rows_alone(runtime, tmp_path):
    collecting = FailingTracker()
    runtime.accelerator.trackers = [collecting]
    tracker = Tracker(folder=RunFolder(tmp_path), runtime=runtime, uses_trackers=True)
    tracker.log_evaluation("valid", evaluation(100))
    tracker.log_evaluation("average", evaluation(100))
    (_, valid), (_, average) = collecting.logged
    assert average == {f"average_{name}": value for name, value in valid.items()} and "bleu" in valid


def test_numbers_that_are_not_finite_are_null(tracker):
    tracker.log_update(update(1, loss=float("nan"), grad_norm=float("inf")))
    assert strict_records(tracker) == [update(1, loss=None, grad_norm=None)]


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
    tracker.log_update(update(1))
    tracker.log_evaluation("valid", evaluation(1))
    tracker.write_hypotheses(1, [(0, "a", "b")], ["c"])
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


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
    tracker = Tracker(folder=RunFolder(tmp_path), runtime=runtime, uses_trackers=True)
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
    tracker = Tracker(folder=RunFolder(tmp_path), runtime=runtime, uses_trackers=True)
    tracker.log_update(update(1, loss=4.5))
    tracker.log_update(update(3, loss=float("nan")))
    tracker.log_update(update(4, loss=2.5))
    tracker.log_evaluation("valid", evaluation(4, bleu=31.25))
    runtime.close()
    assert tracker.uses_trackers
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses[0] == (1, 4.5) and losses[-1] == (4, 2.5)
    assert [(event.step, event.value) for event in events.Scalars("bleu")] == [(4, 31.25)]
