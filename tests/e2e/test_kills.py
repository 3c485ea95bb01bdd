"""kill -9 at random moments of one run, again and again: it ends bitwise as the run that nobody touched.

`pytest --full tests/e2e/test_kills.py` kills each run 50 times, at least 20 times inside a save.
"""

import random
import re
import shutil
import subprocess
import time

import pytest

from mtloop.checkpoint.listing import list_checkpoints
from mtloop.run_folder import RunFolder
from tests.support.launch import run, start_command
from tests.support.lives import Life, choose_victims, leftovers, newest_sound
from tests.support.runs import assert_same_run, short_flags, uninterrupted

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def kill_at_some_moment(life, rng, *, is_aimed):
    """Kill inside the next save but a few where is_aimed, else anywhere; return whether the life was still going on."""
    begun = life.log.stat().st_size, newest_sound(life.folder)
    if is_aimed:
        # Past the newest checkpoint, so that most lives bring the run on.
        life.wait_for(lambda: life.has_printed(r"update \d+ of"))
        if rng.random() < 0.7:
            life.wait_for(lambda: newest_sound(life.folder) != begun[1])
        if not life.wait_for(life.is_saving):
            return False
        time.sleep(rng.uniform(0, 0.04))
    elif rng.random() < 0.3:
        time.sleep(rng.uniform(0, 5))  # before the training, mostly
    else:
        life.wait_for(lambda: life.has_printed(r"update \d+ of"))
        time.sleep(rng.uniform(0, 1.5))
    was_going_on = not life.is_over
    life.kill(choose_victims(life, rng))
    return was_going_on


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("num_processes", "num_kills"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.full)])
def test_killed_at_any_instant_the_run_goes_on(tmp_path, is_full, num_processes, num_kills):
    num_kills = 50 if is_full else num_kills
    num_epochs = 20 if is_full else 2
    rng = random.Random(num_processes)
    whole = uninterrupted(tmp_path, num_epochs, num_processes)
    folder = tmp_path / "run"
    kills = inside_saves = 0
    was_going_on = True
    while kills < num_kills and was_going_on:  # a fast machine may end the shorter run before its last kill
        expected = newest_sound(folder)
        life = Life(folder, short_flags(num_epochs), num_processes)
        was_going_on = kill_at_some_moment(life, rng, is_aimed=kills % 3 != 2)
        assert_resumed_from(life, expected)
        kills += was_going_on
        assert was_going_on or life.process.returncode == 0, life.output[-3000:]
        inside_saves += any(name.startswith((".tmp-step", ".trash-", ".old-")) for name in leftovers(folder))
    expected = newest_sound(folder)
    life = Life(folder, short_flags(num_epochs), num_processes)
    assert life.process.wait(timeout=600) == 0, life.output[-3000:]
    assert_resumed_from(life, expected)
    print(f"{num_processes} process(es): {kills} kills, {inside_saves} of them inside a save")
    assert kills >= min(2, num_kills)
    if is_full:
        assert kills == num_kills and inside_saves >= 20
    assert_same_run(folder, whole)
    assert leftovers(folder) == []
    assert [step for step, _ in list_checkpoints(RunFolder(folder))] == [
        step for step, _ in list_checkpoints(RunFolder(whole))
    ]


def assert_resumed_from(life, expected):
    """The newest sound checkpoint was taken, if this life came as far as taking one."""
    found = re.findall(r"resumed from \S*/step_(\d+):", life.output)
    if "update" in life.output and expected is not None:
        assert found, life.output[-3000:]
    if found:
        assert [int(step) for step in found] == [expected], life.output[-3000:]


# Damage


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed in its last epoch, and the same run untouched."""
    tmp_path = tmp_path_factory.mktemp("damage")
    whole = uninterrupted(tmp_path, 2, 1)
    folder = tmp_path / "run"
    life = Life(folder, short_flags(2), 1)
    assert life.wait_for(lambda: (newest_sound(folder) or 0) >= 28)
    life.kill(life.processes())
    return whole, folder


@pytest.mark.full
@pytest.mark.parametrize(("name", "how"), [("model.safetensors", "flip"), ("training/manifest.json", "remove")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(stopped, tmp_path, name, how):
    whole, begun = stopped
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", str(begun), str(folder)], check=True)
    (before, _), (newest, path) = list_checkpoints(RunFolder(folder))[-2:]
    damaged = path / name
    if how == "remove":
        damaged.unlink()
    else:
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    command = start_command("train.py", *short_flags(2), "--output_dir", folder)
    named = run([*command, "--resume_from_checkpoint", f"step_{newest}"])
    assert f"step_{newest} is corrupt ({name}" in named.stderr and f"Valid checkpoints: step_{before}" in named.stderr
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"step_{newest} is corrupt ({name}" in done.stdout and "using the previous one" in done.stdout
    assert f"resumed from {folder}/checkpoints/step_{before}:" in done.stdout
    aside = folder / "checkpoints" / f"damaged_step_{newest}"
    assert aside.is_dir()
    shutil.rmtree(aside)
    assert_same_run(folder, whole)
