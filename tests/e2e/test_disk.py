"""A run folder whose disk is full, read-only or gone: one clear line, the old checkpoints intact, and on it goes."""

import contextlib
import json
import subprocess

import pytest

from mtloop.checkpoint.listing import find_corruption, list_checkpoints
from mtloop.run_folder import RunFolder
from tests.support.launch import run, start_command
from tests.support.lives import Life, leftovers, newest_sound
from tests.support.runs import assert_same_run, short_flags, uninterrupted

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FLAGS = short_flags(2)


def mount(path, *options):
    subprocess.run(["mount", *options, "-t", "tmpfs", "tmpfs", str(path)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A tmpfs to be given a size: remount(bytes)."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount(path, "-o", "size=100m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")

    def remount(num_bytes):
        mount(path, "-o", f"remount,size={int(num_bytes)}")
        return path

    yield remount
    subprocess.run(["umount", "-l", str(path)], check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nobody touched, by number of processes; made when asked for."""
    made = {}

    def of(num_processes):
        if num_processes not in made:
            made[num_processes] = uninterrupted(tmp_path_factory.mktemp("whole"), 2, num_processes)
        return made[num_processes]

    return of


def size_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def status_of(folder):
    return json.loads((folder / "status.json").read_text())


def assert_only_sound_ones(folder):
    checkpoints = list_checkpoints(RunFolder(folder))
    assert checkpoints and not any(find_corruption(path) for _, path in checkpoints)
    assert leftovers(folder) == []
    return [step for step, _ in checkpoints]


@pytest.mark.full
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_disk_for_two_and_a_half_checkpoints(whole, disk, num_processes):
    expected = whole(num_processes)
    # The disk that is asked for, were it the run folder's alone: the files beside the checkpoints come on top.
    others = size_of(expected) - size_of(expected / "checkpoints") - size_of(expected / "final")
    folder = disk(2.5 * size_of(expected / "checkpoints" / "latest") + others) / "run"
    command = start_command("train.py", *FLAGS, "--output_dir", folder, num_processes=num_processes)
    done = run(command)
    assert done.returncode != 0
    status = status_of(folder)
    assert (status["status"], status["exit_status"]) == ("failed", 1)
    assert "step_12: saving failed (" in status["message"] and status["step"] >= 12
    assert "MB are free). Earlier checkpoints are intact." in status["message"]
    assert done.stderr.count("mtloop: error: ") == 1 and "mtloop/" not in done.stderr  # one line, no traceback of ours
    assert assert_only_sound_ones(folder) == [4, 8]
    disk(100_000_000)
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step_8:" in done.stdout
    assert_same_run(folder, expected)


@pytest.mark.full
def test_a_disk_that_fills_in_the_middle_of_a_save(whole, disk):
    expected = whole(1)
    folder = disk(100_000_000) / "run"
    life = Life(folder, FLAGS, 1)
    assert life.wait_for(lambda: newest_sound(folder) is not None)
    # Somebody else takes what is left, after the check of the free space.
    assert life.wait_for(life.is_saving)
    ballast = folder.parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 500_000):
            pass
    assert life.process.wait(timeout=120) != 0
    # status.json itself may have had no room; the line on the terminal names what had none, once.
    assert life.output.count("mtloop: error: ") == 1, life.output[-3000:]
    assert "mtloop/" not in life.output.split("mtloop: error: ")[0]  # no traceback of ours
    assert_only_sound_ones(folder)
    ballast.unlink()
    done = run(start_command("train.py", *FLAGS, "--output_dir", folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(folder, expected)


def test_a_folder_that_becomes_read_only(disk):
    folder = disk(100_000_000) / "run"
    command = start_command("train.py", *FLAGS, "--output_dir", folder)
    life = Life(folder, FLAGS, 1)
    assert life.wait_for(lambda: newest_sound(folder) is not None)
    # A mount of its own over the folder: what is opened from now on is opened there.
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        assert life.process.wait(timeout=120) != 0
        assert "mtloop: error: " in life.output and "Read-only file system" in life.output, life.output[-3000:]
        refused = run(command)
        assert "--output_dir" in refused.stderr and "cannot be written (Read-only file system)" in refused.stderr
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert_only_sound_ones(folder)


def test_a_folder_that_is_removed_does_not_come_back_as_half_of_one(tmp_path):
    folder = tmp_path / "run"
    life = Life(folder, FLAGS, 1)
    assert life.wait_for(lambda: newest_sound(folder) is not None)
    folder.rename(tmp_path / "elsewhere")
    assert life.process.wait(timeout=120) != 0
    assert life.output.count("mtloop: error: ") == 1 and "No such file or directory" in life.output
    assert not folder.exists()
    assert_only_sound_ones(tmp_path / "elsewhere")
