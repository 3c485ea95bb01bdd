"""A checkpoint or final/ with one corrupt file: every command refuses it in one line, or gives the same result."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests.support.corruption import WAYS, corrupt, files_in
from tests.support.hub_server import WRITE_TOKEN, HubServer
from tests.support.launch import PROJECT, PYTHON, environment, run
from tests.support.mutations import of_named

TEXTS = "the small dog sleeps\nthe old man reads a book\n"
STEP, EARLIER = 8, 4
FLAGS = [
    "demo", "--mixed_precision", "no", "--cpu_threads", "1", "--max_train_samples", "300", "--max_eval_samples", "8",
    "--vocab_size", "304", "--num_beams", "1", "--val_max_target_length", "8", "--max_train_steps", str(STEP),
    "--logging_steps", "4", "--save_steps", "4", "--sentences_per_update", "8", "--eval_on_start", "false",
]  # fmt: skip
COMMANDS = {
    "checkpoint": ("resume", "verify", "translate", "evaluate", "export", "average", "push"),
    "final": ("train", "translate", "evaluate", "export", "push"),
}
NUM_BY_DEFAULT, NUM_IN_FULL = 5, 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A short run, with the checkpoints of steps 4 and 8, from start to end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run([PYTHON, "train.py", *FLAGS, "--output_dir", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def mtloop(*words, **environment):
    return run([PYTHON, "-m", "mtloop", *map(str, words)], **environment)


def result_of(command, folder, run_folder, tmp_path, hub):
    """Run a command on a folder of a run; return its process, and what must be as of the undisturbed folder."""
    out = tmp_path / "out"
    quick = ("--cpu_threads", "1", "--mixed_precision", "no")
    if command in ("train", "resume"):
        words = [*FLAGS, "--output_dir", str(run_folder)]
        if command == "resume":
            shutil.rmtree(run_folder / "final")
            (run_folder / "status.json").unlink()
            words += ["--resume_from_checkpoint", folder.name]
        done = run([PYTHON, "train.py", *words])
        return done, lambda: weights_of(run_folder / "final")
    if command == "verify":
        return mtloop("checkpoint", "verify", run_folder), lambda: ""
    if command == "translate":
        (tmp_path / "in.txt").write_text(TEXTS)
        done = mtloop("translate", tmp_path / "in.txt", "-o", out, "--model", folder, *quick)
        return done, out.read_text
    if command == "evaluate":
        done = mtloop("evaluate", "--model", folder, "-o", out, *quick)
        return done, lambda: [path.read_text() for path in sorted(out.rglob("*.jsonl"))]
    if command == "export":
        done = mtloop("export", "--model", folder, "-o", out, "--format", "ctranslate2", "--no_parity", *quick)
        return done, (out / "model.bin").read_bytes
    if command == "average":
        done = mtloop("average", "--checkpoints", folder, folder.parent / f"step_{EARLIER}", "-o", out)
        return done, lambda: weights_of(out)
    name = f"team/run-{tmp_path.name}-{os.urandom(4).hex()}".lower().replace("_", "-")
    access = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE_TOKEN}
    done = mtloop("push", run_folder, "--hub_model_id", name, **access)
    return done, lambda: [
        {file: sha for file, sha in files.items() if file != "README.md"} for _, files in hub.commits(name)
    ]


def weights_of(folder):
    return {name: weight.numpy().tobytes() for name, weight in load_file(folder / "model.safetensors").items()}


def combinations(whole):
    """List all of (place, command, file, way), in a seeded order."""
    found = [
        (place, command, name, way)
        for place, folder in (("checkpoint", whole / "checkpoints" / f"step_{STEP}"), ("final", whole / "final"))
        for command in COMMANDS[place]
        for name in files_in(folder)
        for way in WAYS
    ]
    random.Random(0).shuffle(found)
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, NUM_BY_DEFAULT), pytest.param(NUM_BY_DEFAULT, NUM_IN_FULL, marks=pytest.mark.full)],
)
def test_corrupt_file_is_refused_or_changes_nothing(whole, hub, tmp_path, start, end):
    undisturbed, counts = {}, {}
    for number, (place, command, name, way) in enumerate(combinations(whole)[start:end], start):
        found = {}
        for is_corrupt in (False, True):
            if not is_corrupt and (place, command) in undisturbed:
                continue
            work = tmp_path / f"{number}-{is_corrupt}"
            shutil.copytree(whole, work / "run", symlinks=True)
            run_folder = work / "run"
            folder = run_folder / "final" if place == "final" else run_folder / "checkpoints" / f"step_{STEP}"
            if is_corrupt:
                other = run_folder / "checkpoints" / f"step_{EARLIER}"
                corrupt(folder, name, way, other=other, seed=number)
            done, value = result_of(command, folder, run_folder, work, hub)
            what = f"{place} {command} {name} {way}: {done.stdout[-500:]}\n{done.stderr[-1500:]}"
            assert "Traceback" not in done.stdout + done.stderr and done.returncode in (0, 1, 2, 3), what
            if not is_corrupt:
                assert done.returncode == 0, what
                undisturbed[place, command] = value()
            elif done.returncode == 0:
                assert value() == undisturbed[place, command], what
                found[place, command] = "same"
            else:
                assert "mtloop: error: " in done.stderr or done.returncode in (1, 3), what
                found[place, command] = "refused"
        key = (place, command, way, found[place, command])
        counts[key] = counts.get(key, 0) + 1
    print(json.dumps({" ".join(key): count for key, count in sorted(counts.items())}, indent=1), file=sys.stderr)


@pytest.fixture
def run_folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def train(run_folder, *words):
    return run([PYTHON, "train.py", *FLAGS, "--output_dir", str(run_folder), *words])


def test_final_without_its_weights_is_made_again(whole, run_folder):
    (run_folder / "final" / "model.safetensors").unlink()
    done = train(run_folder)
    line = f"{run_folder}/final is corrupt (model.safetensors is missing); making it again from its checkpoint"
    assert done.returncode == 0 and line in done.stdout, done.stderr
    assert weights_of(run_folder / "final") == weights_of(whole / "final")
    assert "this run is finished" in train(run_folder).stdout


def test_refused_resume_leaves_the_run_finished(run_folder):
    before = json.loads((run_folder / "status.json").read_text())
    (run_folder / "checkpoints" / f"step_{EARLIER}" / "model.safetensors").write_bytes(b"")
    done = train(run_folder, "--resume_from_checkpoint", f"step_{EARLIER}")
    assert done.returncode == 2 and f"step_{EARLIER} is corrupt (model.safetensors has 0 bytes" in done.stderr
    assert json.loads((run_folder / "status.json").read_text()) == before and before["status"] == "finished"


def test_start_after_a_kill_says_so(run_folder):
    status = json.loads((run_folder / "status.json").read_text())
    (run_folder / "status.json").write_text(json.dumps({**status, "status": "running", "pid": 2**22 + 1}))
    done = train(run_folder)
    assert done.returncode == 0, done.stderr
    assert f"process {2**22 + 1} was killed, or its machine stopped; the same command continues the run" in done.stdout
    assert json.loads((run_folder / "status.json").read_text())["status"] == "finished"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 100), marks=pytest.mark.full)], ids=["4", "96"])
def test_mutated_file_of_the_run(whole, tmp_path, seeds):
    names = [name for name in files_in(whole) if "/" not in name and name.endswith((".json", ".jsonl", ".yaml"))]
    for seed in seeds:
        choice = random.Random(seed)
        run_folder = tmp_path / str(seed)
        shutil.copytree(whole, run_folder, symlinks=True)
        file = run_folder / names[seed % len(names)]
        file.write_bytes(of_named(choice, file.name, file.read_bytes()))
        if seed % 2:  # an unfinished run
            shutil.rmtree(run_folder / "final")
        done = train(run_folder)
        what = f"seed {seed}, {file.name}: {done.stdout[-500:]}\n{done.stderr[-1500:]}"
        assert "Traceback" not in done.stdout + done.stderr and done.returncode in (0, 2), what
        assert done.returncode == 0 or done.stderr.count("mtloop: error: ") == 1, what


def words_of(command, whole, out):
    step = whole / "checkpoints" / f"step_{STEP}"
    quick = ["--cpu_threads", "1", "--mixed_precision", "no"]
    return {
        "translate": ["translate", out.parent / "in.txt", "-o", out, "--model", whole, *quick],
        "evaluate": ["evaluate", "--model", whole, "-o", out, "--num_resamples", "10", *quick],
        "export": ["export", "--model", whole, "-o", out, "--format", "ctranslate2", "--no_parity", *quick],
        "average": ["average", "--checkpoints", step, whole / "checkpoints" / f"step_{EARLIER}", "-o", out],
    }[command]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("command", "num_kills"),
    [
        ("average", 1),
        *(pytest.param(name, 5, marks=pytest.mark.full) for name in ("translate", "evaluate", "export", "average")),
    ],
)
def test_kill_leaves_nothing_half_written(whole, tmp_path, command, num_kills):
    (tmp_path / "in.txt").write_text(TEXTS * 200)
    expected, out = tmp_path / "expected" / "out", tmp_path / "out"
    expected.parent.mkdir()
    (expected.parent / "in.txt").write_text(TEXTS * 200)
    start = time.monotonic()
    done = mtloop(*words_of(command, whole, expected))
    duration_s = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    for number in range(num_kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "mtloop", *map(str, words_of(command, whole, out))],
            env=environment(), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Kill it once it has a partial file, or at a moment of the second half.
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob(".tmp-out-*")):
            time.sleep(0.001)
        time.sleep(random.Random(number).random() * duration_s / 4 if number else 0)
        process.kill()
        process.wait()
        if out.exists() and command != "evaluate":  # evaluate writes a folder of whole files
            assert content_of(out) == content_of(expected)
    done = mtloop(*words_of(command, whole, out))
    # The averages of a run that ended before the kill are in the way of the next.
    assert done.returncode == 0 or "already exists" in done.stderr, done.stderr
    assert content_of(out) == content_of(expected)
    assert not [path for path in tmp_path.rglob(".*") if path.name.startswith((".tmp-", ".old-"))]


def content_of(path):
    """Return the content of a file, or of each file of a folder, less what names the time or the place."""
    if path.is_file():
        return path.read_bytes()
    return {name: (path / name).read_bytes() for name in files_in(path) if name != "mtloop_export.json"}
