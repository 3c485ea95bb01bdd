"""A process that fails, dies, hangs or computes nonsense; two runs on one folder; a clock that jumps."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mtloop.checkpoint.listing import list_checkpoints
from mtloop.run_folder import RunFolder
from tests.support.launch import PROJECT, PYTHON, environment, run, start_command
from tests.support.lives import wait_for_step

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# One epoch of 35 updates, saved every 10.
FLAGS = [
    "demo", "--mixed_precision", "no", "--cpu_threads", "1", "--max_train_samples", "300", "--max_eval_samples", "20",
    "--tokens_per_update", "225",
    "--vocab_size", "400", "--num_beams", "1", "--val_max_target_length", "16",
    "--num_train_epochs", "1", "--logging_steps", "1", "--save_steps", "10",
]  # fmt: skip


def fail(tmp_path, fault, *flags, num_processes=2):
    """Run with a fault; return what was printed and status.json. The launcher ends, and leaves nobody behind."""
    folder = tmp_path / "run"
    words = ["tests/distributed/worker_faults.py", fault, tmp_path / "signs", *FLAGS, *flags, "--output_dir", folder]
    done = run(start_command(*words, num_processes=num_processes), timeout_s=120)
    left = [
        process.pid for process in psutil.process_iter(["cmdline"]) if str(folder) in (process.info["cmdline"] or ())
    ]
    assert not left
    return done, json.loads((folder / "status.json").read_text())


def errors_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("mtloop: error: ")]


def assert_goes_on(tmp_path, step, num_processes=2):
    folder = tmp_path / "run"
    done = run(start_command("train.py", *FLAGS, "--output_dir", folder, num_processes=num_processes))
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("resumed from" in done.stdout) == (step > 0)
    if step:
        assert f"resumed from {folder}/checkpoints/step_{step}:" in done.stdout
    return done


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("save", "step_10: saving failed (No space left on device)"),
        pytest.param("metrics", "metrics.jsonl: cannot be written (Is a directory)", marks=pytest.mark.full),
    ],
)
def test_what_main_alone_fails_in_ends_every_rank_with_one_line(tmp_path, fault, message):
    done, status = fail(tmp_path, fault)
    assert len(errors_of(done)) == 1 and message in errors_of(done)[0], done.stderr[-3000:]
    assert (status["status"], status["exit_status"]) == ("failed", 1) and message in status["message"]
    assert [(tmp_path / "signs" / f"status_{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


def test_a_user_s_metric_that_fails_on_main_ends_every_rank_with_one_line(tmp_path):
    done, status = fail(tmp_path, "function", "--eval_steps", "2")
    (line,) = errors_of(done)
    assert "metrics: failing raised ZeroDivisionError: " in line and "(worker_faults.py:" in line
    assert (status["status"], status["exit_status"]) == ("failed", 2) and "metrics: failing" in status["message"]
    assert [(tmp_path / "signs" / f"status_{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


@pytest.mark.full
def test_a_fault_in_the_scoring_ends_every_rank(tmp_path):
    """One that mtloop does not know: its traceback stands on the terminal, its text in status.json."""
    done, status = fail(tmp_path, "score")
    assert "ValueError: no score" in done.stderr
    assert status["status"] == "failed" and "ValueError: no score" in status["message"]
    assert (tmp_path / "signs" / "status_1").read_text() == "1"
    assert_goes_on(tmp_path, 30)


@pytest.mark.parametrize(
    ("fault", "flags", "message"),
    [
        pytest.param("raise", [], "process 1: KeyError: 'a fault of rank 1'", marks=pytest.mark.full),
        ("die", [], "another process of the run ended"),
        pytest.param(
            "hang",
            ["--process_timeout", "5"],
            "another process of the run did not answer within --process_timeout",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_rank_that_fails_alone_ends_the_others(tmp_path, fault, flags, message):
    done, status = fail(tmp_path, fault, *flags)
    assert done.returncode == 1
    assert (status["status"], status["exit_status"]) == ("failed", 1) and message in status["message"]
    (line,) = errors_of(done)  # of rank 0, which has lost its peer
    assert line.startswith("mtloop: error: process 0: another process of the run")
    assert "Run the same command: it resumes from the newest checkpoint" in line
    if fault == "die":
        assert_goes_on(tmp_path, 20)


@pytest.mark.parametrize("who", [pytest.param("all", marks=pytest.mark.full), "1"])
def test_a_mistake_is_printed_once_by_a_process_that_makes_it(tmp_path, who):
    words = ["tests/distributed/worker_faults.py", f"mistake_{who}", tmp_path / "signs", *FLAGS]
    done = run(start_command(*words, "--output_dir", tmp_path / "run", num_processes=2), timeout_s=120)
    (line,) = errors_of(done)
    process = "process 1: " if who == "1" else ""
    assert line.startswith(f"mtloop: error: {process}--max_train_steps: ") and "(got 0)" in line


@pytest.mark.parametrize(
    ("fault", "flags", "message"),
    [
        ("loader", [], "a loader worker died, possibly for lack of memory (DataLoader worker (pid"),
        pytest.param(
            "loader_stops",
            ["--process_timeout", "3"],
            "a loader worker did not answer within --process_timeout (DataLoader worker did not answer within 3.0 s)",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_loader_worker_that_fails_is_named(tmp_path, fault, flags, message):
    done, status = fail(tmp_path, fault, "--dataloader_num_workers", "2", *flags, num_processes=1)
    (line,) = errors_of(done)
    assert f"--dataloader_num_workers: {message}" in line and "Give --dataloader_num_workers 0" in line
    assert "Traceback" not in done.stderr
    assert (status["status"], status["exit_status"]) == ("failed", 1) and message in status["message"]
    if fault == "loader":
        assert_goes_on(tmp_path, 20, num_processes=1)
    else:
        assert list_checkpoints(RunFolder(tmp_path / "run"))


def digests(tmp_path):
    return {(tmp_path / "signs" / f"{when}_{rank}").read_text() for when in ("before", "after") for rank in (0, 1)}


def test_no_number_on_one_rank_changes_the_weights_of_none(tmp_path):
    done, status = fail(tmp_path, "nan")
    assert len(digests(tmp_path)) == 1  # of both ranks, before and after
    (line,) = errors_of(done)
    assert "step 5: the gradient norm is nan, the weights are unchanged; " in line
    assert "rows of the training data, the first: " in line and "--skip_nonfinite" in line
    assert (status["status"], status["exit_status"], status["step"]) == ("failed", 1, 4)
    assert [(tmp_path / "signs" / f"status_{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


@pytest.mark.full
def test_no_number_is_tolerated_as_often_as_asked(tmp_path):
    done, status = fail(tmp_path, "nan", "--skip_nonfinite", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(digests(tmp_path)) == 1
    assert "step 5: the gradient norm is nan, the weights are unchanged" in done.stdout
    assert status["status"] == "finished"


@pytest.mark.full
def test_memory_that_gives_out_on_one_rank_halves_the_budget_on_all(tmp_path):
    """The updates after it are those of a run that had room."""
    flags = ["--dropout", "0", "--max_train_steps", "32"]
    done, status = fail(tmp_path, "memory", *flags)
    assert done.returncode == 0 and status["status"] == "finished", done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if "out of memory" in line]
    assert lines[0].startswith("step 21: out of memory; continuing with --max_tokens_per_micro_batch 2,048 (was 4,096)")
    plain = run(start_command("train.py", *FLAGS, *flags, "--output_dir", tmp_path / "plain", num_processes=2))
    assert plain.returncode == 0, plain.stderr[-3000:]
    losses = []
    for folder in ("run", "plain"):
        records = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([(line["step"], line["loss"], line["grad_norm"]) for line in records if "loss" in line])
    for mine, theirs in zip(*losses, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["micro_batch"]
    assert record["is_limit"] and record["max_tokens"] <= 300


@pytest.mark.full
def test_a_clock_that_jumps_changes_nothing(tmp_path):
    done, status = fail(tmp_path, "clock", num_processes=1)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # A day counted into 35 updates would be less than one token a second.
    assert min(line["tokens_per_s"] for line in lines if "loss" in line) > 10
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 37))
    assert [step for step, _ in list_checkpoints(RunFolder(tmp_path / "run"))] == [10, 20, 30, 35]


# Two runs on one folder


def start(folder, *flags):
    command = [sys.executable, "train.py", *FLAGS, *flags, "--output_dir", str(folder)]
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.full
def test_a_second_run_is_refused_and_a_dead_ones_folder_taken_over(tmp_path):
    folder = tmp_path / "run"
    first = start(folder, "--num_train_epochs", "500", "--dataloader_num_workers", "2")
    wait_for_step(folder, 20)
    first.send_signal(signal.SIGSTOP)  # it has the folder, and does not end while the second waits
    second = run([PYTHON, "train.py", *FLAGS, "--num_train_epochs", "500", "--output_dir", str(folder)])
    assert second.returncode == 2
    assert f"process {first.pid} on " in second.stderr and "is training in it" in second.stderr
    assert f"process {first.pid} on " in second.stdout and "waiting up to 10 s" in second.stdout
    assert json.loads((folder / "status.json").read_text())["status"] == "running"  # the first one's
    first.kill()  # its loader workers live on for a moment
    first.wait()
    third = start(folder, "--num_train_epochs", "500")
    for line in third.stdout:
        assert "waiting" not in line
        if line.startswith("resumed from "):
            break
    else:
        pytest.fail(third.stderr.read())
    third.kill()
    third.wait()


@pytest.mark.full
def test_two_processes_that_do_not_know_of_each_other(tmp_path):
    """As `mpirun -n 2 python train.py` starts them: one trains, the other is told how one run takes several."""
    both = [start(tmp_path / "run", "--num_train_epochs", "500") for _ in range(2)]
    deadline = time.monotonic() + 90
    while all(process.poll() is None for process in both):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (refused,) = [process for process in both if process.poll() is not None]
    (trains,) = [process for process in both if process is not refused]
    assert refused.returncode == 2
    errors = refused.stderr.read()
    assert f"process {trains.pid} on " in errors and "`accelerate launch`" in errors and errors.count("\n") == 1
    assert any(line.startswith("update ") for line in iter(trains.stdout.readline, ""))
    trains.kill()
    trains.wait()
