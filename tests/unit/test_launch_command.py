"""mtloop launch and mtloop configs: the launch files of a clone and of a wheel, statuses, signals."""

import os
import shutil
import signal
import sys
import threading
import time
from argparse import Namespace

import pytest

import mtloop
from mtloop.cli import launch_files as found
from mtloop.cli.commands import launch as command
from mtloop.cli.launch_files import launch_file, launch_files, purpose_of
from mtloop.cli.main import command_files, main
from mtloop.errors import RunFailed, UserError
from mtloop.runtime import launcher
from mtloop.runtime.launcher import PassedOn, launch
from mtloop.runtime.signals import Interrupted
from tests.support.launch import PROJECT

# the files


def test_launch_files_are_those_at_the_top_of_a_clone():
    files = launch_files()
    assert files["multi_gpu"] == PROJECT / "accelerate_configs" / "multi_gpu.yaml"
    assert set(files.values()) == {path for path in (PROJECT / "accelerate_configs").iterdir() if path.suffix != ".md"}


def test_launch_files_of_a_wheel_are_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "mtloop"
    package.mkdir(parents=True)
    monkeypatch.setattr(found.mtloop, "__file__", str(package / "__init__.py"))
    with pytest.raises(UserError, match="accelerate_configs is missing. Install the package"):
        launch_files()
    shutil.copytree(PROJECT / "accelerate_configs", package / "accelerate_configs")
    assert launch_files()["cpu"] == package / "accelerate_configs" / "cpu.yaml"


def test_launch_file_takes_a_name_or_a_path(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 1\n")
    assert launch_file("FILE", "cpu") == launch_files()["cpu"]
    assert launch_file("FILE", str(own)) == own
    for given in ("slurm", "none", "train", str(tmp_path)):
        with pytest.raises(UserError, match=r"^FILE: no such launch file .*Give a path, or one of cpu, "):
            launch_file("FILE", given)


def test_configs_lists_every_file_and_prints_the_path_of_one(capsys):
    assert main(["configs"]) == 0
    folder, _, *lines = capsys.readouterr().out.splitlines()
    assert folder == str(PROJECT / "accelerate_configs")
    for path in launch_files().values():
        assert any(line.split() == [path.name, *purpose_of(path).split()] for line in lines)
    assert main(["configs", "multi_gpu"]) == 0
    assert capsys.readouterr().out == f"{PROJECT}/accelerate_configs/multi_gpu.yaml\n"
    assert main(["configs", "none"]) == 2
    assert "NAME: no such launch file (got none). Give one of cpu, " in capsys.readouterr().err


# the command


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none", "train"], "FILE: no such launch file (got none)"),
        (["cpu", "push", "runs/x"], "mtloop launch: not a command for several processes (got push). Give one of train"),
        (["cpu", "--no_such_flag=1", "train"], "mtloop launch: unrecognized arguments: --no_such_flag=1"),
        (["cpu", "--num_processes", "many", "train"], "mtloop launch: --num_processes: invalid int value: 'many'"),
        (["multi_cpu", "--gpu_ids", "0", "train"], "mtloop launch: Less than two GPU ids were configured"),
        (["cpu"], "the following arguments are required: COMMAND"),
        ([], "the following arguments are required: FILE, COMMAND"),
    ],
)
def test_launch_refuses_in_one_line(capsys, words, line):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["launch", *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"mtloop: error: {line}"), error
    assert signal.getsignal(signal.SIGTERM) == before


def test_launched_commands_are_those_that_start_ranks():
    sources = {name: file.read_text("utf-8") for name, file in command_files().items()}
    ranked = {name for name, text in sources.items() if "start_runtime(" in text or "= Runtime(" in text}
    assert set(command.LAUNCHED) == ranked


def test_main_reads_the_words_that_the_xla_launcher_leaves(monkeypatch, capsys):
    """It imports mtloop, sets argv to its file and the words, calls main(), and drops what main returns."""
    monkeypatch.setattr(sys, "argv", [mtloop.__file__, "train", "--no_such_flag", "1"])
    with pytest.raises(SystemExit) as caught:
        mtloop.main()
    assert caught.value.code == 2 and "--no_such_flag" in capsys.readouterr().err


# processes

# Counts its signals until none has come for 0.3 s, then ends with the status of the first.
CHILD = """
import os, signal, sys, time
numbers = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: numbers.append(number))
open("ready", "w").close()
while not numbers:
    time.sleep(0.02)
time.sleep(0.3)
open("numbers", "w").write(" ".join(map(str, numbers)))
sys.exit(128 + numbers[0])
"""


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start a program instead of mtloop: start(source, seconds, *signals to this process once the program is ready)."""
    monkeypatch.chdir(tmp_path)

    def start(source, *numbers):
        words = ([sys.executable, "-I", "-S", "-c", source], dict(os.environ))
        monkeypatch.setattr("accelerate.utils.launch.prepare_simple_launcher_cmd_env", lambda arguments: words)

        def press():
            while not (tmp_path / "ready").exists():
                time.sleep(0.02)
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.05)

        if numbers:
            threading.Thread(target=press, daemon=True).start()
        return launch(launch_file("FILE", "cpu"), ["train", "demo"], lambda name: None)

    return start


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_launch_returns_the_status_of_the_process(start, status):
    assert start(f"raise SystemExit({status})") == status


def test_the_terminals_interrupt_does_not_reach_the_process(start):
    """A terminal sends it to all processes of its session; the launcher passes its own on."""
    assert start("import os; raise SystemExit(os.getsid(0) != os.getpid())") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_once_and_waited_for(start, tmp_path, number):
    assert start(CHILD, number) == 128 + number
    assert (tmp_path / "numbers").read_text() == str(int(number))


def test_a_process_killed_from_elsewhere_is_a_failure_of_the_run(start):
    with pytest.raises(RunFailed, match="^mtloop launch: process 0 was killed by SIGKILL, often .* Run the same"):
        start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_third_interrupt_kills_what_does_not_end(start):
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); open('ready', 'w').close(); time.sleep(60)"
    with pytest.raises(Interrupted) as caught:
        start(deaf, *[signal.SIGINT] * 3)
    assert caught.value.number == signal.SIGINT


def test_signal_without_processes_ends_the_launcher():
    passed_on = PassedOn()
    try:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    finally:
        passed_on.restore()


@pytest.mark.parametrize(
    ("statuses", "cause"),
    [
        ({0: 1, 1: -9}, 1),  # rank 0 has lost its peer
        ({1: 2, 0: -15}, 1),  # the launcher ends the others with TERM
        ({0: -15, 1: -15}, 0),
    ],
)
def test_of_processes_that_fail_at_once_the_cause_is_reported(monkeypatch, statuses, cause):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setattr(time, "time", lambda: 1000.0)

    def several(arguments):
        failures = {
            rank: ProcessFailure(local_rank=rank, pid=1, exitcode=status, error_file="none")
            for rank, status in statuses.items()
        }
        raise ChildFailedError("mtloop", failures)

    with pytest.raises(launcher._Ended) as caught:
        launcher._start_several(several, Namespace())
    assert (caught.value.rank, caught.value.status) == (cause, statuses[cause])
