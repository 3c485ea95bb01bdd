"""TERM, INT, USR1, HUP to the launcher, to one rank, to all, at every moment: one checkpoint, and on it goes bitwise.

`pytest --full tests/e2e/test_signals.py` runs every combination.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mtloop.checkpoint.listing import list_checkpoints
from mtloop.run_folder import RunFolder
from tests.support.launch import PROJECT, PYTHON, environment, free_port, launch_command, run, start_command
from tests.support.lives import Life, leftovers
from tests.support.runs import assert_same_run, metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Two epochs of some 36 updates, and 40 rows that are translated in 20 batches or more.
FLAGS = [
    "demo", "--mixed_precision", "no", "--cpu_threads", "1", "--dropout", "0.1", "--max_train_samples", "300",
    "--tokens_per_update", "225",
    "--max_eval_samples", "40", "--vocab_size", "400", "--num_beams", "1", "--val_max_target_length", "16",
    "--num_train_epochs", "2",
    "--logging_steps", "1", "--eval_max_tokens", "64",
]  # fmt: skip
MOMENTS = ("training", "evaluation", "saving")
ALL = list(itertools.product((1, 2), ("launcher", "rank", "group"), (0, 2), MOMENTS))
# What is known to be hard: launchers that orphan, workers that die first.
SOME = [(2, "rank", 2, "training")]


def pytest_generate_tests(metafunc):
    if "combination" in metafunc.fixturenames:
        combinations = ALL if metafunc.config.getoption("--full") else SOME
        names = ["-".join(map(str, combination)) for combination in combinations]
        metafunc.parametrize("combination", combinations, ids=names)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nobody touched, by number of processes; made when asked for."""
    made = {}

    def of(num_processes):
        if num_processes not in made:
            folder = made[num_processes] = tmp_path_factory.mktemp("whole") / "run"
            done = run(start_command("train.py", *FLAGS, "--output_dir", folder, num_processes=num_processes))
            assert done.returncode == 0, done.stderr[-3000:]
        return made[num_processes]

    return of


def begin(tmp_path, moment, num_processes, *flags):
    """Start a run and wait for the moment."""
    folder, signs = tmp_path / "run", tmp_path / "signs"
    signs.mkdir()
    life = Life(
        folder,
        [*FLAGS, *flags],
        num_processes,
        script=["tests/e2e/worker_moments.py", moment, signs],
        command=launch_command,
        is_real=True,
    )
    assert life.wait_for((signs / moment).exists), life.output[-3000:]
    return life, signs


def send(life, target, number):
    processes = life.processes()
    launcher, ranks = processes[0], processes[1 : life.num_processes + 1]
    for process in {"launcher": [launcher], "rank": ranks[-1:], "group": processes}[target]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    return launcher.wait()


def status_of(folder):
    return json.loads((folder / "status.json").read_text())


def assert_stopped(life, signs, number, exit_status):
    """One newest checkpoint at the one step at which every rank stopped; status.json as the README has it."""
    status = status_of(life.folder)
    assert (status["status"], status["exit_status"]) == ("stopped", exit_status), life.output[-3000:]
    ranks = {path.read_text() for path in signs.glob("rank_*")}
    assert len(list(signs.glob("rank_*"))) == life.num_processes
    assert ranks == {f"{status['step']} {int(number)}"}
    assert list_checkpoints(RunFolder(life.folder))[-1][0] == status["step"]
    assert leftovers(life.folder) == []
    assert "mtloop/" not in life.output  # no traceback of ours; the launcher prints its own
    return status["step"]


def assert_goes_on(life, whole, *flags):
    words = ["train.py", *FLAGS, *flags, "--output_dir", life.folder]
    done = run(start_command(*words, num_processes=life.num_processes))
    assert done.returncode == 0, done.stderr[-3000:]
    for path in (life.folder / "checkpoints").glob("step_*"):  # one more than the other has, where it was stopped
        if not (whole / "checkpoints" / path.name).exists():
            path.rename(life.folder.parent / path.name)
    assert_same_run(life.folder, whole)


def test_term_anywhere_at_any_moment(whole, tmp_path, combination):
    num_processes, target, num_workers, moment = combination
    workers = ["--dataloader_num_workers", num_workers]
    life, signs = begin(tmp_path, moment, num_processes, *workers)
    send(life, target, signal.SIGTERM)
    step = assert_stopped(life, signs, signal.SIGTERM, 143)
    epoch_end = next(line["step"] for line in metrics(whole(num_processes)) if "bleu" in line)
    if moment == "training":
        assert epoch_end < 50 <= step < 2 * epoch_end
    elif moment == "saving" and num_workers == 0:
        assert epoch_end <= step < 50  # the save is behind the loop, which goes on until it hears of the signal
    else:
        assert step == epoch_end
    evaluated = [line["step"] for line in metrics(life.folder) if "bleu" in line]
    assert evaluated == ([] if moment == "evaluation" else [epoch_end])  # abandoned, or made before
    assert_goes_on(life, whole(num_processes), *workers)


@pytest.mark.full
@pytest.mark.parametrize("other_signal", [(signal.SIGUSR1, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_other_signals_on_two_processes(whole, tmp_path, other_signal):
    number, status = other_signal
    life, signs = begin(tmp_path, "training", 2)
    launcher_status = send(life, "rank", number)
    assert_stopped(life, signs, number, status)
    assert launcher_status == (0 if status == 0 else 1)  # what the launcher makes of it
    if number == signal.SIGUSR1:
        assert_goes_on(life, whole(2))


def started(command, sign):
    """Start a command; return its process once it has written the file `sign`."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_interrupt_through_mtloop_launch_saves_once_and_returns_its_status(tmp_path):
    folder = tmp_path / "run"
    command = [PYTHON, "-m", "mtloop", "launch", "multi_cpu", "--main_process_port", free_port(), "train", *FLAGS]
    process = started([*command, "--output_dir", folder], folder / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    status = status_of(folder)
    assert (status["status"], status["exit_status"], process.returncode) == ("stopped", 130, 130), errors[-3000:]
    assert list_checkpoints(RunFolder(folder))[-1][0] == status["step"] > 0
    assert output.count("stopped by SIGINT and saved") == 1
    # accelerate launch adds a traceback and lines of torch's launcher; torch may warn of the network of a host.
    assert "Traceback" not in errors and "elastic" not in errors and "mtloop: " not in errors, errors


def test_a_launcher_that_is_killed_at_the_start_takes_its_ranks_with_it(tmp_path):
    """It keeps the store at which the ranks meet: they would wait for that for half an hour."""
    life = Life(tmp_path / "run", FLAGS, 2)
    assert life.wait_for(lambda: len(life.processes()) == 3)
    ranks = life.processes()[1:]
    life.kill(life.processes()[:1])
    assert not any(rank.is_running() for rank in ranks)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_signal_while_the_data_are_read_ends_the_run_at_once(tmp_path):
    signs = tmp_path
    command = [PYTHON, "tests/e2e/worker_moments.py", "building", signs, *FLAGS, "--output_dir", signs / "run"]
    process = started(command, signs / "building")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == "mtloop: stopped: SIGTERM before the training began\n"
    status = status_of(signs / "run")
    assert (status["status"], status["exit_status"]) == ("stopped", 143)
    assert "before the training began; the same command starts it" in status["message"]
    assert leftovers(signs / "run") == []


@pytest.mark.full
def test_a_second_interrupt_leaves_at_once_and_the_run_goes_on(whole, tmp_path):
    folder, signs = tmp_path / "run", tmp_path / "signs"
    signs.mkdir()
    command = [PYTHON, "tests/e2e/worker_moments.py", "saving", signs, *FLAGS, "--output_dir", folder]
    process = subprocess.Popen(list(map(str, command)), cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (signs / "saving").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # two of the same signal at once are one
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert not list_checkpoints(RunFolder(folder))  # it was inside the first save
    done = run([PYTHON, "train.py", *FLAGS, "--output_dir", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(folder, whole(1))


@pytest.mark.full
def test_under_nohup_the_run_outlives_its_shell(tmp_path):
    """The shell that started it goes away, and HUP comes to all that it started: neither stops the run."""
    folder = tmp_path / "run"
    words = [sys.executable, "train.py", *FLAGS, "--num_train_epochs", "1", "--output_dir", str(folder)]
    script = f"nohup {' '.join(words)} > {tmp_path / 'log'} 2>&1 & echo $!"
    shell = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env=environment(), capture_output=True, text=True, check=True
    )
    trainer = psutil.Process(int(shell.stdout))
    assert trainer.ppid() != os.getpid()  # the shell is gone, and nobody of ours is its parent
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and trainer.is_running(), (tmp_path / "log").read_text()
        time.sleep(0.01)
    trainer.send_signal(signal.SIGHUP)
    psutil.wait_procs([trainer], timeout=120)
    assert status_of(folder)["status"] == "finished"


def test_an_interrupt_that_the_shell_ignores_stays_ignored(tmp_path):
    """As in a script's background (`train.py &`): Ctrl-C at the terminal is not meant for it, TERM is."""
    folder = tmp_path / "run"
    script = f"trap '' INT; exec {sys.executable} train.py {' '.join(FLAGS)} --output_dir {folder}"
    life = Life(folder, [], 1, script=[], command=lambda *_, **__: ["bash", "-c", script])
    assert life.wait_for(lambda: life.has_printed(r"update \d+ of"))
    before = life.last_step
    life.process.send_signal(signal.SIGINT)
    assert life.wait_for(lambda: life.last_step > before + 2), life.output[-3000:]
    life.process.send_signal(signal.SIGTERM)
    assert life.process.wait(timeout=60) == 143
    assert status_of(folder)["status"] == "stopped" and "SIGTERM" in status_of(folder)["message"]
