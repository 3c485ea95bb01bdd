"""Runs on a system that refuses room, files, processes or memory: one line, or they do with what there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import PROJECT, environment

pytestmark = pytest.mark.e2e

FLAGS = [
    "demo", "--max_train_samples", "300", "--max_eval_samples", "20", "--vocab_size", "320", "--num_beams", "1",
    "--val_max_target_length", "12", "--mixed_precision", "no", "--max_train_steps", "4", "--save_steps", "2",
    "--process_timeout", "20",
]  # fmt: skip
ONE_THREAD = ("--cpu_threads", "1")
PRIVATE_MOUNTS = ["unshare", "--mount", "bash", "-c"]


def mounts_or_skip():
    probe = [*PRIVATE_MOUNTS, "mount -t tmpfs none /dev/shm"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no mounts for this user")


def train(folder, before, *flags, mounts=False, threads=ONE_THREAD):
    """Train in a shell after some commands; return its status, its error lines and status.json."""
    words = [sys.executable, "train.py", *FLAGS, *threads, *flags, "--output_dir", folder]
    shell = PRIVATE_MOUNTS if mounts else ["bash", "-c"]
    done = subprocess.run(
        [*shell, f'{before} && exec "$@"', "bash", *map(str, words)],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    path = folder / "status.json"
    errors = [line for line in done.stderr.splitlines() if line.startswith("mtloop: error: ")]
    return done.returncode, errors, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("size", "message"),
    [
        pytest.param("16M", None, marks=pytest.mark.full),
        pytest.param("64k", None, marks=pytest.mark.full),  # room for the locks alone
        pytest.param("32k", "could not be started (No space left on device)", marks=pytest.mark.full),
    ],
)
def test_a_small_dev_shm(tmp_path, size, message):
    mounts_or_skip()
    mount = f"mount -t tmpfs -o size={size} none /dev/shm"
    found, errors, status = train(tmp_path / "run", mount, "--dataloader_num_workers", "2", mounts=True)
    assert (found, len(errors)) == ((0, 0) if message is None else (1, 1)), errors
    assert status["status"] == ("finished" if message is None else "failed") and status["exit_status"] == found
    if message:
        assert errors[0].startswith("mtloop: error: --dataloader_num_workers: ") and message in errors[0]
        assert "--shm-size" in errors[0] and errors[0].removeprefix("mtloop: error: ") == status["message"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("limit", "flags", "message"),
    [
        (
            "-n 10",
            ["--dataloader_num_workers", "2"],
            "--dataloader_num_workers: DataLoader worker could",
        ),
        ("-n 10", ["--preprocessing_num_workers", "2", "--overwrite_cache"], "too many open files"),
        ("-n 60", ["--dataloader_num_workers", "2"], None),
        ("-f 100", [], "step_2: saving failed (Error while serializing: I/O error: File too large"),
        ("-v 600000", [], "no more memory"),
        ("-v 1500000", [], "limit of the system: "),
    ],
)
def test_a_limit_of_the_shell(tmp_path, limit, flags, message):
    found, errors, status = train(tmp_path / "run", f"ulimit {limit}", *flags)
    assert (found, len(errors)) == ((0, 0) if message is None else (1, 1)), errors
    assert message is None or (message in errors[0] and "aise `ulimit" in errors[0] or "--shm-size" in errors[0])
    # None: ended before the run folder was claimed, or with no descriptor left to write with.
    assert status is None or status["exit_status"] in ((found,) if "-n" not in limit else (found, None))


READ_ONLY = """set -e
python=$1 home=$2 out=$3; shift 3; export HF_HOME=$home HF_DATASETS_CACHE=$home/datasets
"$python" train.py "$@" --output_dir "$out/first"
"$python" -m mtloop evaluate --model "$out/first" --num_resamples 20 --metrics bleu
"$python" -m mtloop corpus --run "$out/first" > "$out/report"
mount --bind "$home" "$home"; mount -o remount,bind,ro "$home"
touch "$home/x" && exit 3
"$python" train.py "$@" --output_dir "$out/second"
cmp "$out/first/final/model.safetensors" "$out/second/final/model.safetensors"
"$python" -m mtloop evaluate --model "$out/second" --num_resamples 20 --metrics bleu
"$python" -m mtloop corpus --run "$out/second" > "$out/report"
"$python" -m mtloop translate --text "Open the file" --model "$out/second" -o "$out/translation"
"$python" -m mtloop corpus "$out/new.tsv" --source_lang en --target_lang fr && exit 4
exit 0
"""


@pytest.mark.full
def test_a_cache_that_is_read_only_and_has_everything(tmp_path):
    mounts_or_skip()
    (tmp_path / "new.tsv").write_text("en\tfr\n" + "a\tb\n" * 40)
    words = [sys.executable, str(tmp_path / "home"), str(tmp_path), *FLAGS]
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [*PRIVATE_MOUNTS, READ_ONLY, "bash", *words],
        cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mtloop: error: ")]
    assert line.startswith("mtloop: error: HF_DATASETS_CACHE: cannot write rows") and str(tmp_path / "home") in line
    assert (tmp_path / "report").read_text() and (tmp_path / "translation").exists()


@pytest.mark.full
def test_cpu_quota_of_one_bounds_the_threads(tmp_path):
    group = Path("/sys/fs/cgroup/cpu" if Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists() else "/sys/fs/cgroup")
    group /= f"mtloop-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups for this user ({error})")
    try:
        name, value = ("cpu.max", "100000 100000") if (group / "cpu.max").exists() else ("cpu.cfs_quota_us", "100000")
        if not (group / name).exists():
            pytest.skip("no quotas of CPU here")
        (group / name).write_text(value)
        found, errors, status = train(tmp_path / "run", f"echo $$ > {group}/cgroup.procs", threads=())
    finally:
        group.rmdir()
    assert (found, errors, status["status"]) == (0, [], "finished")
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step_4" / "training" / "manifest.json").read_text())
    assert manifest["num_threads"] == 1
