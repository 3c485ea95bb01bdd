"""Test hub.publisher and hub.upload: each part is pushed once, in order, under the faults of a server."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from huggingface_hub import constants

from mtloop.atomic import read_json_lines
from mtloop.checkpoint.manifest import read_manifest
from mtloop.hub import publisher as publisher_module
from mtloop.hub.client import without_token
from mtloop.hub.parts import (
    Target,
    absent_epochs,
    epoch_part,
    epoch_parts,
    final_part,
    gone_commits,
    missing_parts,
    pushed,
    record_push,
)
from mtloop.hub.publisher import Drain, Publisher
from mtloop.hub.upload import is_overtaken, order_of, read_key
from mtloop.run_folder import RunFolder
from tests.support.forked import python_forked, python_started
from tests.support.hub_runs import QUICK_CLIENT, RUN_ID, hashes, make_run, write_checkpoint
from tests.support.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, create_repo
from tests.support.launch import PROJECT

REPO = "tester/model"
TARGET = Target(repo_id=REPO)
EPOCHS = [f"Training in progress, epoch {epoch}" for epoch in (1, 2, 3)]
WHOLE = [*EPOCHS, "Training complete"]


@pytest.fixture
def server(monkeypatch):
    """Start a server with an empty repository, to which the children of this process push."""
    with HubServer() as started:
        create_repo(started, b'{"name": "model"}')
        settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": started.url}
        for name, value in {**QUICK_CLIENT, **settings, "HF_TOKEN": WRITE_TOKEN}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(publisher_module, "MAX_WAIT_S", 0.1)  # between attempts, unless the server asks for more
        with python_forked():
            yield started


@pytest.fixture
def open_publisher():
    """Return a function that makes publishers, which keep their lines in `.said` and are closed at the end."""
    opened = []

    def start(folder, target=TARGET, **settings):
        said = []
        publisher = Publisher(folder=folder, target=target, say=said.append, **{"push_timeout_s": 30.0, **settings})
        publisher.said = said
        opened.append(publisher)
        return publisher

    yield start
    for publisher in opened:
        publisher.close()


def push_all(publisher, *, timeout_s=40.0):
    """Push the missing parts, wait, and return the lines of those not on the Hub."""
    publisher.push_missing(with_epochs=True)
    waiting = Drain(publisher, timeout_s, publisher.say)
    while waiting.wait():
        pass
    return waiting.finish()


def wait_for(server, text):
    """Wait for a request that contains the text."""
    while not any(text in request for request in server.requests):
        time.sleep(0.01)


def keys_of_branch(server):
    """Return the key of each commit of the branch main, newest first, as keys_of."""
    return {commit.oid: read_key(commit.description) for commit in reversed(server.repos[REPO].commits)}


def titles(server, branch="main"):
    return [message for message, _ in server.commits(REPO, branch)]


def assert_whole(server, folder, epochs=3):
    """Check that every epoch and the end are on the server once, in order, tagged and unchanged."""
    assert titles(server) == [*EPOCHS[:epochs], "Training complete"]
    repo = server.repos[REPO]
    for number, commit in enumerate(repo.commits[1:-1], start=1):
        assert repo.tags[f"epoch-{number}"] == commit.oid
        manifest = read_manifest(folder.checkpoints_dir / f"step_{10 * number}")
        assert read_key(commit.description) == (RUN_ID, f"epoch {number}", manifest["sha256"])
        saved = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        for name, sha in commit.files.items():
            if name not in ("README.md", "metrics.jsonl"):
                assert sha == saved[name], name
    assert set(repo.tags) == {f"epoch-{number}" for number in range(1, epochs + 1)}
    lines = read_json_lines(folder.push_path)
    assert [line["part"] for line in lines] == [*(f"epoch {number}" for number in range(1, epochs + 1)), "final"]
    assert [line["commit"] for line in lines] == [commit.oid for commit in repo.commits[1:]]


@pytest.mark.slow
def test_push_each_part_once_in_order(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, is_finished=True)
    publisher = open_publisher(folder)
    assert push_all(publisher) == []
    assert_whole(server, folder)
    names = ["README.md", "config.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "source.spm"]
    for commit in server.repos[REPO].commits[1:]:
        assert sorted(commit.files) == [*names, "tokenizer_config.json"]
    said = [line for line in publisher.said if not line.startswith("waiting for the Hub: ")]
    assert said[:4] == [f"pushed to {REPO}: {name}" for name in ("epoch 1", "epoch 2", "epoch 3", "final")]
    assert said[4:] == [f"on the Hub at https://huggingface.co/{REPO}: epoch 1, epoch 2, epoch 3, final"]
    # What was known at an epoch's end stands in its metrics, and no more.
    for number, commit in enumerate(server.repos[REPO].commits[1:4], start=1):
        lines = [json.loads(line) for line in server.blobs[commit.files["metrics.jsonl"]].splitlines()]
        assert max(line["step"] for line in lines) == 10 * number and len(lines) == 1 + 3 * number
    assert f"Bearer {WRITE_TOKEN}" not in "".join(publisher.said)


FAULTS = {
    "500 on the commit": lambda server: server.fail("POST .*/commit/", 500, times=3),
    "503 on everything": lambda server: server.fail(".", 503, times=5),
    "408": lambda server: server.fail("POST .*/preupload", 408, times=2),
    "429 with Retry-After": lambda server: server.fail("POST .*/commit/", 429, retry_after=1),
    "a competing commit": lambda server: server.fail("POST .*/commit/", 412, times=2),
    "a tag that fails": lambda server: server.fail("POST .*/tag/", 502, times=2),
    "the lookup fails": lambda server: server.fail("GET .*/commits/", 500, times=2),
    "reset before the commit is stored": lambda server: server.reset("POST .*/commit/", times=2),
    "reset after the commit is stored": lambda server: server.reset("POST .*/commit/", times=3, when="after"),
    "reset after the tag is stored": lambda server: server.reset("POST .*/tag/", times=2, when="after"),
    "cut in the middle of a PUT": lambda server: server.reset("PUT ", times=2, when="within"),
    "silence": lambda server: server.hang("POST .*/commit/", times=1),
    "a slow drip": lambda server: server.drip("POST .*/commit/", every_s=0.3),
    "an address that has expired": lambda server: server.fail("PUT ", 403, times=1),
}


# Of an answer that is lost, of a server that is silent, and of a file that is cut short.
REPRESENTATIVES = {
    "reset after the commit is stored": [pytest.mark.slow],
    "silence": [pytest.mark.slow],
    "cut in the middle of a PUT": [pytest.mark.slow],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=REPRESENTATIVES.get(name, pytest.mark.full)) for name in FAULTS]
)
def test_push_survives_transient_faults(server, open_publisher, tmp_path, name):
    folder = make_run(tmp_path, epochs=1, is_finished=True)
    FAULTS[name](server)
    # Silence and the drip end with the push: it is cut off after 3 s, and its connection with it.
    publisher = open_publisher(folder, push_timeout_s=3.0)
    start = time.monotonic()
    assert push_all(publisher) == [], publisher.said
    assert_whole(server, folder, epochs=1)
    if name.startswith("429"):
        assert time.monotonic() - start >= 1.0
    if name in ("silence", "a slow drip"):
        assert any("stopped after 3 s (--push_timeout); trying again" in line for line in publisher.said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(lambda server: server.fail("POST .*/commit/", 401), "401", id="401", marks=pytest.mark.full),
        pytest.param(lambda server: server.fail("POST .*/preupload", 403), "403", id="403"),
        pytest.param(lambda server: server.fail("GET .*/commits/", 404), "404", id="404", marks=pytest.mark.full),
        pytest.param(lambda server: server.fail("PUT ", 413, times=9), "413", id="413", marks=pytest.mark.full),
        pytest.param(
            lambda server: server.fail("POST .*/commit/", 400, times=8),
            "400",
            id="400 again and again",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_push_stops_after_refusal_and_continues_later(server, open_publisher, tmp_path, fault, reason):
    folder = make_run(tmp_path, is_finished=True)
    fault(server)
    publisher = open_publisher(folder)
    unpushed = push_all(publisher)
    assert [line.partition(": ")[0] for line in unpushed] == ["epoch 1", "epoch 2", "epoch 3", "final"]
    assert reason in unpushed[0] and unpushed[1].endswith("not tried yet")
    loud = [line for line in publisher.said if "NOT PUSHED to the Hub, and pushing stops" in line]
    assert len(loud) == 1 and f"python -m mtloop push {folder.path}" in loud[0]
    assert WRITE_TOKEN not in "".join(publisher.said) and titles(server) == []
    server.heal()
    assert push_all(open_publisher(folder)) == []
    assert_whole(server, folder)


@pytest.mark.slow
def test_push_finds_commit_missing_in_journal(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, is_finished=True)
    assert push_all(open_publisher(folder)) == []
    lines = folder.push_path.read_text().splitlines()
    folder.push_path.write_text(f"{lines[0]}\n{lines[1][:40]}")  # a kill has cut it
    assert [part.name for part in missing_parts(folder, TARGET, with_epochs=True)] == ["epoch 2", "epoch 3", "final"]
    assert push_all(open_publisher(folder)) == []
    assert titles(server) == WHOLE
    assert [line["commit"] for line in read_json_lines(folder.push_path)] == [
        json.loads(line)["commit"] for line in lines
    ]


@pytest.mark.slow
def test_push_refuses_changed_file(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=3)
    with (folder.checkpoints_dir / "step_10" / "model.safetensors").open("r+b") as file:
        file.write(b"W")
    (folder.checkpoints_dir / "step_20" / "source.spm").unlink()
    publisher = open_publisher(folder)
    unpushed = push_all(publisher)
    assert len(unpushed) == 2 and "model.safetensors has changed since it was saved" in unpushed[0]
    assert "source.spm (Provided path" in unpushed[1]
    assert titles(server) == EPOCHS[2:]


@pytest.mark.slow
def test_push_skips_missing_checkpoint(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=3)
    server.hang("GET .*/commits/", times=1, silence_s=1.0)
    publisher = open_publisher(folder)
    publisher.push_missing(with_epochs=True)
    wait_for(server, "/commits/")
    (folder.checkpoints_dir / "step_20").rename(tmp_path / "away")
    (line,) = push_all(publisher)
    assert line == f"epoch 2: {folder.checkpoints_dir / 'step_20'}: training/manifest.json is missing"
    assert titles(server) == [EPOCHS[0], EPOCHS[2]]


@pytest.mark.slow
def test_push_moves_tag_of_retrained_epoch(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=2)
    assert push_all(open_publisher(folder)) == []
    publisher = open_publisher(folder)
    publisher.push(epoch_part(folder, write_checkpoint(folder, 2, text="anew")))
    while publisher.wait(1):
        pass
    assert titles(server) == [*EPOCHS[:2], EPOCHS[1]]
    repo = server.repos[REPO]
    assert repo.tags == {"epoch-1": repo.commits[1].oid, "epoch-2": repo.commits[3].oid}


@pytest.mark.slow
def test_push_omits_epochs_before_newest(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=2)
    publisher = open_publisher(folder)
    publisher.push(epoch_part(folder, folder.checkpoints_dir / "step_20"))
    while publisher.wait(1):
        pass
    assert titles(server) == [EPOCHS[1]] and missing_parts(folder, TARGET, with_epochs=True) == []
    # Another place has none of them yet.
    elsewhere = Target(repo_id="tester/other")
    assert [part.name for part in missing_parts(folder, elsewhere, with_epochs=True)] == ["epoch 1", "epoch 2"]


@pytest.mark.slow
def test_push_keeps_tags_of_another_run_without_overwrite(server, open_publisher, tmp_path):
    theirs = make_run(tmp_path / "theirs", epochs=3, run_id="another")
    assert push_all(open_publisher(theirs)) == []
    mine = make_run(tmp_path / "mine", epochs=1)
    publisher = open_publisher(mine)
    (line,) = push_all(publisher)
    assert "the tag epoch-1 belongs to another run. Give --hub_revision BRANCH, or --hub_overwrite" in line
    assert titles(server) == EPOCHS
    assert push_all(open_publisher(mine, overwrite=True)) == []
    assert titles(server) == [*EPOCHS, EPOCHS[0]]
    # Epochs 2 and 3 of the other run would be taken for this one's.
    assert server.repos[REPO].tags == {"epoch-1": server.repos[REPO].commits[-1].oid}


@pytest.mark.slow
def test_push_to_branch_prefixes_tags(server, open_publisher, tmp_path):
    server.repos[REPO].branches["small"] = list(server.repos[REPO].commits)
    target = Target(repo_id=REPO, revision="small")
    assert push_all(open_publisher(make_run(tmp_path, epochs=1), target)) == []
    assert titles(server) == [] and titles(server, "small") == EPOCHS[:1]
    assert set(server.repos[REPO].tags) == {"small-epoch-1"}


@pytest.mark.slow
def test_push_deletes_files_of_earlier_model_only(server, open_publisher, tmp_path):
    old = {"model-00001-of-00002.safetensors", "pytorch_model.bin", "vocab.json", "curves.png"}
    for name in (*old, "LICENSE", "images/curve.png"):
        server.blobs["0" * 64] = b"old"
        server.repos[REPO].commits[0].files[name] = "0" * 64
    assert push_all(open_publisher(make_run(tmp_path, epochs=1))) == []
    files = server.repos[REPO].commits[-1].files
    assert {"LICENSE", "images/curve.png"} <= set(files)
    assert not old & set(files)


@pytest.mark.slow
def test_push_with_training_state_until_end(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=1, is_finished=True)
    assert push_all(open_publisher(folder, with_training=True)) == []
    epoch, final = server.repos[REPO].commits[1:]
    saved = hashes(folder.checkpoints_dir / "step_10")
    assert saved.items() <= epoch.files.items() and "training/optimizer.pt" in saved
    assert not any(name.startswith("training/") or name == "config.yaml" for name in final.files)


@pytest.mark.slow
def test_push_end_only(server, open_publisher, tmp_path):
    publisher = open_publisher(make_run(tmp_path, is_finished=True))
    publisher.push_missing(with_epochs=False)
    while publisher.wait(1):
        pass
    assert titles(server) == ["Training complete"] and server.repos[REPO].tags == {}


@pytest.mark.slow
def test_push_final_without_checkpoint(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=1, is_finished=True)
    (folder.checkpoints_dir / "step_10").rename(tmp_path / "away")
    assert push_all(open_publisher(folder)) == []
    assert titles(server) == ["Training complete"]


@pytest.mark.slow
def test_drain_with_silent_server_keeps_checkpoints(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=2)
    server.hang("PUT ")
    publisher = open_publisher(folder)
    start = time.monotonic()
    publisher.push_missing(with_epochs=True)
    assert time.monotonic() - start < 1
    wait_for(server, "PUT ")
    (child,) = psutil.Process().children()
    unpushed = push_all(publisher, timeout_s=1.0)
    assert time.monotonic() - start < 8
    assert [line.partition(": ")[0] for line in unpushed] == ["epoch 1", "epoch 2"]
    assert not child.is_running() and not psutil.Process().children()
    assert publisher.is_awaited(folder.checkpoints_dir / "step_10")
    assert not publisher.is_awaited(folder.checkpoints_dir / "step_30")


@pytest.mark.slow
def test_drain_ends_if_retry_after_exceeds_timeout(server, open_publisher, tmp_path):
    server.fail("POST .*/commit/", 429, times=9, retry_after=1000)
    start = time.monotonic()
    (line,) = push_all(open_publisher(make_run(tmp_path, epochs=1)), timeout_s=60.0)
    assert line.startswith("epoch 1: ") and time.monotonic() - start < 20


@pytest.mark.slow
def test_push_waits_for_unreachable_server(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=1, is_finished=True)
    server.leave()
    publisher = open_publisher(folder)
    publisher.push_missing(with_epochs=True)
    time.sleep(1.5)
    server.come_back()
    assert push_all(publisher) == []
    assert_whole(server, folder, epochs=1)


PARENT = """
import subprocess, sys, time
from pathlib import Path
from mtloop.hub.parts import Target
from mtloop.hub.publisher import Publisher
from mtloop.run_folder import RunFolder
folder, target = RunFolder(Path(sys.argv[1])), Target(repo_id=sys.argv[2])
publisher = Publisher(folder=folder, target=target, say=print, push_timeout_s=60.0)
publisher.push_missing(with_epochs=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_upload_exits_with_killed_parent(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=1)
    server.hang("POST .*/commit/", times=1)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), REPO], cwd=PROJECT)
    wait_for(server, "/commit/")
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert gone and not alive
    assert push_all(open_publisher(folder)) == []
    assert titles(server) == EPOCHS[:1]


@pytest.mark.slow
def test_upload_ignores_signals_to_run(server, open_publisher, tmp_path):
    server.hang("POST .*/commit/", times=1, silence_s=1.0)
    publisher = open_publisher(make_run(tmp_path, epochs=1))
    publisher.push_missing(with_epochs=True)
    wait_for(server, "/commit/")
    (child,) = psutil.Process().children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        child.send_signal(number)
    assert push_all(publisher) == [] and len([r for r in server.requests if "/commit/" in r]) == 1


@pytest.mark.slow
def test_upload_takes_token_from_environment(server, open_publisher, tmp_path):
    server.hang("POST .*/commit/", times=1, silence_s=1.0)
    publisher = open_publisher(make_run(tmp_path, epochs=1))
    with python_started():  # a fork has the command line and the environment of this process
        publisher.push_missing(with_epochs=True)
        wait_for(server, "/commit/")
    (child,) = psutil.Process().children()
    assert child.environ()["HF_TOKEN"] == WRITE_TOKEN and WRITE_TOKEN not in " ".join(child.cmdline())
    assert push_all(publisher) == []


def test_without_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    assert without_token(f"a secret-of-mine, {READ_TOKEN}") == "a (token), (token)"


@pytest.mark.parametrize(
    ("endpoint", "text", "shown"),
    [
        ("http://hub", "no http://hub/x@main, u@hub", "no http://hub/x@main, u@hub"),
        ("http://me:pa55w0rd@hub", "no http://me:pa55w0rd@hub/x", "no http://hub/x"),
        ("http://me:p@55w0rd@hub", "no 'http://me:p@55w0rd@hub/x' (p@55w0rd)", "no 'http://hub/x' ((password))"),
        ("http://me:pa/55w0rd@hub", "invalid port '55w0rd'", "invalid port '(password)'"),
        ("http://hub", "proxy https://me:other@proxy:1", "proxy https://proxy:1"),
    ],
)
def test_without_token_removes_passwords_of_urls(monkeypatch, endpoint, text, shown):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert without_token(text) == shown
    assert TARGET.url == f"http://hub/{REPO}"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A finished run of three epochs whose journal has a commit of each part, c0 to c3."""
    folder = make_run(tmp_path_factory.mktemp("whole"), is_finished=True)
    for number, part in enumerate([*epoch_parts(folder), final_part(folder)]):
        record_push(folder, part, TARGET, commit=f"c{number}")
    return folder


@pytest.mark.parametrize(
    ("branch", "missing"),
    [
        ("c0 c1 c2 c3", ""),
        ("", "epoch 1, epoch 2, epoch 3, final"),  # deleted and created again
        ("other", "epoch 1, epoch 2, epoch 3, final"),
        ("c0 other", "epoch 2, epoch 3, final"),  # set back
        ("c1 c2 c3", "epoch 1, final"),  # the branch ends with the model
        ("c1 c2 c3 other", "epoch 1, final"),
        ("c1 c2 c3 c0", "final"),  # a push that was cut short there
        ("c0 c1 c2 c3 other", ""),
    ],
)
def test_missing_parts_are_those_whose_commits_the_branch_lacks(whole_run, branch, missing):
    keys = {line["commit"]: key for key, line in pushed(whole_run, TARGET).items()}
    commits = {commit: keys.get(commit, ()) for commit in reversed(branch.split())}
    gone = gone_commits(whole_run, TARGET, commits)
    names = [part.name for part in missing_parts(whole_run, TARGET, with_epochs=True, gone=gone)]
    assert ", ".join(names) == missing
    end = [part.name for part in missing_parts(whole_run, TARGET, with_epochs=False, gone=gone)]
    assert end == (["final"] if "c3" not in commits or branch.endswith("c0") else [])
    assert absent_epochs(whole_run, TARGET, commits) == []
    assert missing_parts(whole_run, TARGET, with_epochs=True) == []  # the journal alone


def test_absent_epochs_have_neither_commit_nor_checkpoint(tmp_path):
    folder = make_run(tmp_path, epochs=3)
    for number, part in enumerate(epoch_parts(folder)[:2]):
        record_push(folder, part, TARGET, commit=f"c{number}")
    keys = {line["commit"]: key for key, line in pushed(folder, TARGET).items()}
    for step in (10, 20):
        (folder.checkpoints_dir / f"step_{step}").rename(tmp_path / f"away_{step}")
    assert absent_epochs(folder, TARGET, keys) == []
    assert absent_epochs(folder, TARGET, {"c1": keys["c1"], "c0": ("another", *keys["c0"][1:])}) == [1]
    folder.metrics.path.unlink()
    assert absent_epochs(folder, TARGET, {}) == [1, 2]
    folder.push_path.unlink()
    assert absent_epochs(folder, TARGET, {}) == []


def test_order_of_parts_and_what_overtakes_them():
    names = ["epoch x", "", "epoch 2", "epoch 10", "final"]
    assert [order_of(name) for name in names] == [-1, -1, 2, 10, float("inf")]
    commits = {"d": (), "c": ("run", "epoch 1", "m"), "b": ("run", "final", "m"), "a": ("another", "epoch 0", "m")}
    assert is_overtaken(("run", "final", "m"), commits) and is_overtaken(("run", "epoch 2", "m"), commits)
    assert not is_overtaken(("run", "epoch 1", "m"), commits) and not is_overtaken(("run", "final", "m"), {})


@pytest.mark.slow
def test_push_restores_what_the_branch_lost(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=2, is_finished=True)
    assert push_all(open_publisher(folder)) == []
    repo = server.repos[REPO]
    lost, repo.branches["main"] = repo.commits[1], [repo.commits[0], *repo.commits[2:]]
    assert repo.tags["epoch-1"] == lost.oid  # of a commit that no branch has
    publisher = open_publisher(folder, commits=keys_of_branch(server))
    assert push_all(publisher) == []
    assert titles(server) == [EPOCHS[1], WHOLE[-1], EPOCHS[0], WHOLE[-1]]
    assert repo.tags == {"epoch-1": repo.commits[3].oid, "epoch-2": repo.commits[1].oid}
    final = hashes(folder.final_dir)["model.safetensors"]
    assert repo.commits[-1].files["model.safetensors"] == final != repo.commits[3].files["model.safetensors"]
    again = open_publisher(folder, commits=keys_of_branch(server))
    assert push_all(again) == [] and not again.outcomes


@pytest.mark.slow
def test_push_stops_without_token(server, open_publisher, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    (line,) = push_all(open_publisher(make_run(tmp_path, epochs=1)))
    assert line.startswith("epoch 1: ") and "401" in line


@pytest.mark.slow
def test_push_with_unwritable_journal(server, open_publisher, tmp_path):
    folder = make_run(tmp_path, epochs=1)
    folder.push_path.mkdir()  # even root cannot write there
    publisher = Publisher(folder=folder, target=TARGET, say=(said := []).append, push_timeout_s=30.0)
    publisher.push(epoch_part(folder, folder.checkpoints_dir / "step_10"))
    while publisher.wait(1):
        pass
    assert publisher.close() == [] and titles(server) == EPOCHS[:1]
    assert any("push.jsonl: cannot write to it" in line for line in said)


def test_part_key_of_run_and_content(tmp_path):
    folder = make_run(tmp_path, epochs=2)
    write_checkpoint(folder, 2, cursor=3)  # within an epoch: none of the Hub's business
    assert epoch_part(folder, folder.checkpoints_dir / "step_23") is None
    assert final_part(folder) is None
    part = epoch_part(folder, folder.checkpoints_dir / "step_20")
    assert read_key(f"Training in progress\n{part.describe()}") == part.key == (RUN_ID, "epoch 2", part.manifest)
    assert read_key("Upload README.md with huggingface_hub") == ()
    again = epoch_part(folder, write_checkpoint(folder, 2, text="anew"))
    assert again.key[:2] == part.key[:2] and again.manifest != part.manifest
    assert pushed(RunFolder(tmp_path), TARGET) == {}
    assert os.path.exists(part.folder)
