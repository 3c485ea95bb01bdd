"""Test the lock, the checks and the atomic files of a run folder."""

import json
import os
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from mtloop.atomic import new_folder, read_json, write_json, write_text
from mtloop.config.parse import parse_config
from mtloop.errors import FieldError, RunFailed, UserError
from mtloop.run_files import RUN_FILES
from mtloop.run_folder import RunFolder
from tests.support.forked import python_forked

FLAGS = ["--train_file", "pairs.jsonl", "--source_lang", "en", "--target_lang", "fr", "--model_name_or_path", "m"]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def blocked(tmp_path):
    """A path under a regular file: not even root can write there."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "run"


def config(folder, *flags):
    return parse_config([*FLAGS, "--output_dir", str(folder.path), *flags])


def test_create_makes_an_empty_folder(folder):
    assert [path.name for path in folder.path.iterdir()] == ["checkpoints"]
    folder.create()
    assert folder.stored_config() is None and not folder.is_finished


def test_config_of_an_earlier_version_is_read_without_a_word(folder, capsys):
    lines = ["dataset_name: demo", "source_lang: en", "target_lang: fr", "train_tokenizer: true", "model_size: tiny"]
    folder.config_path.write_text("\n".join([*lines, "with_tracking: true"]))
    assert folder.stored_config().output.report_to == "all"
    assert capsys.readouterr() == ("", "")


def test_run_files_name_every_path_of_the_folder(folder):
    paths = [getattr(value, "path", value) for value in vars(folder).values()]
    below = [path for path in paths if isinstance(path, type(folder.path)) and path != folder.path]
    entries = {path.relative_to(folder.path).parts[0] for path in below}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "final"} <= entries
    assert entries <= {name.split("/")[0] for name in RUN_FILES}
    assert all("\n" not in meaning and meaning.endswith(".") for meaning in RUN_FILES.values())


def test_create_refuses_a_read_only_folder(blocked):
    with pytest.raises(UserError, match=f"--output_dir {blocked}: cannot be written .*{blocked.parent} is a file"):
        RunFolder(blocked).create()


def test_create_follows_a_link_to_a_folder_and_names_any_other(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, target in (("to_folder", "folder"), ("dangling", "gone"), ("loop", "loop"), ("to_file", "file")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "file").touch()
    RunFolder(tmp_path / "to_folder").create()
    assert (tmp_path / "folder" / "checkpoints").is_dir()
    for name, end in (
        ("dangling", "gone, which leads nowhere"),
        ("loop", "loop, which leads"),
        ("to_file", "file, a file"),
    ):
        for path in (tmp_path / name, tmp_path / name / "run"):
            with pytest.raises(UserError, match=rf"^--output_dir {path}: .*{name} is a link to {end}.*\)\. Give"):
                RunFolder(path).create()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="checkpoints is a link to .*gone, which leads nowhere"):
        RunFolder(tmp_path / "run").create()
    assert not (tmp_path / "gone").exists()


def test_new_folder_replaces_the_folder_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").touch()
    (tmp_path / "final").symlink_to("disk")
    with new_folder(tmp_path / "final") as partial:
        (partial / "new").touch()
    assert (tmp_path / "final").is_symlink() and sorted(tmp_path.iterdir()) == [tmp_path / "disk", tmp_path / "final"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]


def test_check_config_accepts_the_stored_run(folder):
    asked = config(folder, "--seed", "7", "--learning_rate", "3e-4")
    assert folder.check_config(asked) is None
    folder.write_config(asked)
    assert folder.check_config(asked) == asked
    # What a run may change when it goes on: not part of what makes it the same run.
    assert folder.check_config(config(folder, "--seed", "7", "--learning_rate", "3e-4", "--save_total_limit", "2"))


def test_check_config_refuses_another_run_with_its_differences(folder):
    folder.write_config(config(folder, "--seed", "7", "--learning_rate", "3e-4"))
    with pytest.raises(UserError) as caught:
        folder.check_config(config(folder, "--seed", "8", "--learning_rate", "1e-4"))
    message = str(caught.value)
    assert "\n" not in message and str(folder.path) in message
    assert "--seed: 7 in the run folder, 8 asked" in message
    assert "--learning_rate: 0.0003 in the run folder, 0.0001 asked" in message
    assert message.count("asked") == 2  # nothing else differs


def test_check_config_names_an_invalid_file(folder):
    folder.config_path.write_text("learning_rate: [fast\n")
    with pytest.raises((UserError, FieldError), match="config.yaml"):
        folder.check_config(config(folder))


def report(data="a", tokenizer="t", **sources):
    """A data.json of fingerprints that are one letter 64 times."""
    prints = {"data": data * 64, "tokenizer": tokenizer * 64}
    return {"fingerprint": (data + tokenizer) * 32, "fingerprints": prints, "sources": sources, "name": "é"}


def source(name, letter):
    return [{"path": name, "size": 3, "sha256": letter * 64}]


def test_check_data_refuses_other_data_with_the_differences(folder):
    before = report("a", train=source("old.csv", "1"), valid=source("v.csv", "2"))
    assert folder.check_data(before) == []  # nothing stored yet
    folder.write_data(before)
    assert read_json(folder.data_path) == before
    assert folder.check_data(before) == []
    assert folder.check_data(report("a", train=source("moved.csv", "1"))) == []  # where a file lies is not what it is
    cases = {
        "the source of train has changed \\(old.csv 111111111111, now old.csv 333333333333\\)": report(
            "b", train=source("old.csv", "3"), valid=source("v.csv", "2")
        ),
        "the source of test has changed \\(none, now t.csv 444444444444\\)": report(
            "b", train=source("old.csv", "1"), valid=source("v.csv", "2"), test=source("t.csv", "4")
        ),
        "the tokenizer changed \\(fingerprint tttttttttttt, now uuuuuuuuuuuu\\)": report(
            "a", "u", train=source("old.csv", "1"), valid=source("v.csv", "2")
        ),
        "the rows changed \\(fingerprint aaaaaaaaaaaa, now cccccccccccc\\)": report(
            "c", train=source("old.csv", "1"), valid=source("v.csv", "2")
        ),
    }
    for line, now in cases.items():
        with pytest.raises(
            UserError,
            match=f"--output_dir .*: holds a run on other data \\({line}\\). Give the same data, --allow_changed",
        ):
            folder.check_data(now)
        (let_through,) = folder.check_data(now, allow_changed=True)
        assert let_through == line.replace("\\", "")


def test_record_changes_keeps_earlier_ones(folder):
    folder.start_run(config(folder), report())
    run_id = folder.run_record["run_id"]
    assert len(run_id) == 32 and folder.run_record["changes"] == []
    folder.record_changes(["--seed: 1 in the run folder, 2 asked"], step=7)
    folder.record_changes(["the rows changed"], step=9)
    assert folder.run_record == {
        "run_id": run_id,
        "changes": [
            {"step": 7, "changed": ["--seed: 1 in the run folder, 2 asked"]},
            {"step": 9, "changed": ["the rows changed"]},
        ],
    }


# Two processes


HOLD = """
import sys, time
from pathlib import Path
from mtloop.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).lock(print)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(folder, project):
    """Another process that has the folder."""
    with python_forked():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True, cwd=project
        )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_lock_refuses_a_second_process(folder, holder):
    said = []
    with pytest.raises(UserError, match=f"--output_dir {folder.path}: process {holder.pid} on .* is training in it"):
        folder.lock(said.append, wait_s=0.5)
    assert len(said) == 1 and f"process {holder.pid}" in said[0]
    holder.kill()
    holder.wait()
    folder.lock(said.append, wait_s=0)  # a dead owner's lock is nobody's
    assert len(said) == 1 and read_json(folder.path / ".lock")["pid"] == os.getpid()
    folder.unlock()


@pytest.mark.slow
def test_lock_waits_for_a_process_that_leaves(folder, holder):
    killer = threading.Timer(0.5, holder.kill)
    killer.start()
    folder.lock(lambda line: None, wait_s=30)
    killer.join()
    folder.unlock()


def test_lock_is_not_inherited_by_children(folder):
    """A loader worker outlives a killed trainer for some seconds."""
    folder.lock(print, wait_s=0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    folder.unlock()
    with python_forked():
        command = [sys.executable, "-c", HOLD.replace("60", "0"), str(folder.path)]
        probe = subprocess.run(command, capture_output=True, text=True, check=False)
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)
    assert probe.stdout == "locked\n", probe.stderr


def test_is_finished_needs_status_and_model(folder):
    folder.write_status("finished", exit_status=0, message="done", step=9)
    assert read_json(folder.status_path) == {
        "status": "finished",
        "exit_status": 0,
        "message": "done",
        "step": 9,
        "command": "",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "process_start": psutil.Process().create_time(),
    }
    assert not folder.is_finished and folder.status_text == "finished at step 9"
    folder.final_dir.mkdir()
    assert folder.is_finished
    folder.write_status("running")
    assert not folder.is_finished and not folder.is_dead
    assert folder.status_text == f"running, as process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize(
    ("change", "is_dead"),
    [
        ({"pid": 2**22 + 1}, True),  # above the highest number of a process
        ({"process_start": 1.0}, True),  # a later process has the number
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),
        ({"status": "stopped", "pid": 2**22 + 1}, False),
        ({"pid": 10**30}, True),
    ],
)
def test_killed_process_is_seen(folder, change, is_dead):
    folder.write_status("running")
    write_json(folder.status_path, {**folder.status, **change})
    assert folder.is_dead == is_dead
    assert ("was killed, or its machine stopped" in folder.status_text) == is_dead


def line(step):
    return json.dumps({"step": step, "loss": 1.5})


@pytest.mark.parametrize(
    ("step", "kept"),
    [(20, [10, 20]), (25, [10, 20]), (30, [10, 20, 30]), (9, []), (-1, [])],
)
def test_drop_after_removes_later_metrics(folder, step, kept):
    scored_at_the_end = [json.dumps({"split": name, "step": 10}) for name in ("average", "test")]
    folder.metrics.path.write_text("".join(one + "\n" for one in [*map(line, (10, 20, 30)), *scored_at_the_end]))
    folder.drop_after(step)
    assert folder.metrics.path.read_text() == "".join(line(s) + "\n" for s in kept)


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 20, "lo',
        b'{"step": 20, "text": "\xc3',  # cut within a character
        b"\0\0\0\0",  # what some file systems leave after a power cut
        b"20\n",
        b'{"loss": 1.5}\n',
        b'{"step": null}\n',
    ],
)
def test_drop_after_removes_an_invalid_last_line_only(folder, damaged):
    # U+2028 is a line break to str.splitlines, and JSON leaves it as it is.
    odd = json.dumps({"step": 15, "text": "a\u2028b"}, ensure_ascii=False)
    folder.metrics.path.write_bytes(f"{line(10)}\n{odd}\n".encode() + damaged)
    folder.drop_after(100)
    assert folder.metrics.path.read_bytes() == f"{line(10)}\n{odd}\n".encode()


def test_drop_after_removes_later_hypotheses(folder):
    folder.drop_after(5)  # neither file nor folder: nothing to do
    folder.hypotheses_dir.mkdir()
    for name in ("step_5", "step_10", "step_100", "test"):
        (folder.hypotheses_dir / f"{name}.jsonl").write_text("{}\n")
    folder.drop_after(10)
    assert sorted(path.stem for path in folder.hypotheses_dir.iterdir()) == ["step_10", "step_5", "test"]


@pytest.mark.parametrize("content", [None, "", '{"a": 1', "[1, 2]", "\ud800"])
def test_read_json_of_an_invalid_file_is_empty(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content, errors="surrogatepass")
    assert read_json(path) == {}


def test_write_text_is_atomic(tmp_path):
    """One thread rewrites a file of 300 kB, letter by letter; every read is one letter, 300,000 times."""
    path = tmp_path / "file"
    write_text(path, "a" * 300_000)
    is_done = threading.Event()

    def write():
        for letter in "bcdefghijklmnopqrstuvwxyz":
            write_text(path, letter * 300_000)
        is_done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not is_done.is_set():
        text = path.read_text()
        assert len(text) == 300_000 and len(set(text)) == 1
    writer.join()
    assert path.read_text() == "z" * 300_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_write_text_keeps_the_old_file_on_error(tmp_path):
    resource = pytest.importorskip("resource")  # no limit on file sizes on Windows
    path = tmp_path / "metrics.jsonl"
    write_text(path, "before\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes: a real EFBIG half-way, as a full disk would be
    try:
        with pytest.raises(RunFailed, match=f"{path}: cannot be written"):
            write_text(path, "after\n" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_write_text_names_the_file_on_error(blocked):
    with pytest.raises(RunFailed, match=f"{blocked}: cannot be written"):
        write_text(blocked, "x")


def test_refuse_foreign_names_the_files(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create()
    (tmp_path / "log.txt").write_text("mine")  # is in nobody's way
    folder.refuse_foreign()
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "final").mkdir()
    with pytest.raises(UserError, match=f"--output_dir {tmp_path}: has data.json, final, but is not a run folder"):
        folder.refuse_foreign()
    folder.update_record(run_id="a")  # a run that was killed while it began
    folder.refuse_foreign()
