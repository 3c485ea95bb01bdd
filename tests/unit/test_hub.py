"""hub: what is pushed arrives whole and in order, what is not is told, and nothing of it holds the process up."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from mtloop.config import HubConfig, UserError
from mtloop.hub import check_hub
from tests.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, create_repo
from tests.launch import free_port, run

EXPORT = {
    "model.safetensors": b"weights" * 10_000,
    "source.spm": b"pieces",
    "config.json": b"{}",
    "README.md": b"---\nlanguage: fr\n---\n",
    "more/notes.txt": b"",
}

HEAD = """
import json, os, shutil, sys, time
from pathlib import Path
given, told = json.loads(sys.argv[1]), {}
"""


@pytest.fixture
def server():
    with HubServer() as started:
        yield started


@pytest.fixture
def drive(server, tmp_path_factory):
    """Run a program with the real client against the server; it gets arguments as `given` and fills `told`."""

    def start(program, given, *, url=server.url, token=WRITE_TOKEN):
        settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": url, "HF_TOKEN": token}
        done = run(
            [sys.executable, "-c", f"{HEAD}{program}print(json.dumps(told))", json.dumps(given)],
            timeout_s=40,  # below REQUEST_TIMEOUT_S: a process that waits for a silent server fails here
            HF_HOME=str(tmp_path_factory.mktemp("home")),
            **settings,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert token not in done.stdout
        return json.loads(done.stdout)

    return start


@pytest.fixture
def repo(server):
    """An empty repository."""
    create_repo(server, b'{"name": "model"}')
    return "tester/model"


def export(checkpoints: Path, name: str) -> dict[str, str]:
    """Write a checkpoint whose weights hold its name; return path -> sha256 of what belongs on the Hub."""
    files = {**EXPORT, "model.safetensors": name.encode() + EXPORT["model.safetensors"]}
    for path, content in {**files, "training/optimizer.pt": b"not for the Hub"}.items():
        (checkpoints / name / path).parent.mkdir(parents=True, exist_ok=True)
        (checkpoints / name / path).write_bytes(content)
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


PUSH = """
from mtloop.hub import Publisher
checkpoints, said = Path(given["checkpoints"]), []
publisher = Publisher(given["repo"], said.append)
start = time.monotonic()
for name in given["names"]:
    publisher.push(checkpoints / name, f"Checkpoint {name}")
    shutil.rmtree(checkpoints / name, ignore_errors=True)
told["push_s"] = time.monotonic() - start
start = time.monotonic()
told["failed"] = publisher.close(given["timeout_s"])
told["close_s"] = time.monotonic() - start
told["again"], told["said"], told["left"] = publisher.close(0), said, sorted(os.listdir(checkpoints))
"""

DOWNLOAD = """
import hashlib
from huggingface_hub import snapshot_download
folder = Path(snapshot_download(given["repo"]))
files = [path for path in folder.rglob("*") if path.is_file()]
told["back"] = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
"""


def test_pushes_arrive_whole_and_in_order_although_the_checkpoints_are_gone(server, drive, repo, tmp_path):
    names = ["step_10", "step_20", "step_30"]
    files = [export(tmp_path, name) for name in names]
    server.hang("POST .*/preupload", times=1, silence_s=1)  # all checkpoints are removed before the first upload
    told = drive(PUSH + DOWNLOAD, {"repo": repo, "checkpoints": str(tmp_path), "names": names, "timeout_s": 30})
    assert server.commits(repo) == [(f"Checkpoint {name}", of) for name, of in zip(names, files, strict=True)]
    assert told["back"] == files[-1]
    assert told["failed"] == told["said"] == [] and told["left"] == []
    assert told["push_s"] < 1 <= told["close_s"] + told["push_s"]  # the silence passed in close, not in push


def test_a_failed_push_is_told_and_the_next_one_arrives(server, drive, repo, tmp_path):
    second = export(tmp_path, "step_20")
    export(tmp_path, "step_10")
    server.fail("POST .*/commit", 500)
    names = ["step_10", "step_20", "step_30"]  # there is no step_30
    told = drive(PUSH, {"repo": repo, "checkpoints": str(tmp_path), "names": names, "timeout_s": 30})
    assert server.commits(repo) == [("Checkpoint step_20", second)]
    lines = sorted(told["failed"])
    assert len(lines) == 2 and lines == sorted(told["again"])
    assert lines[0].startswith("Checkpoint step_10: Server error '500 Internal Server Error'")
    assert "injected for Bearer (token)" in lines[0] and "\n" not in lines[0]
    assert lines[1].startswith("Checkpoint step_30: ") and "No such file" in lines[1]
    assert sorted(told["said"]) == [f"not pushed to the Hub: {line}" for line in lines]
    assert told["left"] == []


def test_a_silent_server_holds_up_neither_push_nor_close_nor_the_exit(server, drive, repo, tmp_path):
    for name in ("step_10", "step_20"):
        export(tmp_path, name)
    server.hang("PUT /lfs")  # two files of step_10: the client uploads them in threads of its own
    given = {"repo": repo, "checkpoints": str(tmp_path), "names": ["step_10", "step_20"], "timeout_s": 1.5}
    told = drive(PUSH, given)
    assert len([request for request in server.requests if request.startswith("PUT")]) == 2
    assert told["failed"] == [
        f"Checkpoint {name}: not uploaded within 1.5 s of the end" for name in ("step_10", "step_20")
    ]
    assert told["push_s"] < 1 and 1.5 <= told["close_s"] < 3 and told["left"] == []


CHECK = """
import mtloop.hub
from mtloop.config import HubConfig, UserError
mtloop.hub.REQUEST_TIMEOUT_S = given["request_timeout_s"]
told["answers"] = []
for token, model_id, folder in given["cases"]:
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    try:
        answer = mtloop.hub.check_hub(HubConfig(push_to_hub=True, hub_model_id=model_id), folder)
    except UserError as error:
        answer = f"UserError: {error}"
    told["answers"].append(answer)
"""


def check(drive, cases, request_timeout_s=30, **settings):
    told = drive(CHECK, {"cases": cases, "request_timeout_s": request_timeout_s}, **settings)
    for answer, (token, _, _) in zip(told["answers"], cases, strict=True):
        assert "\n" not in answer and (not token or token not in answer)
    return told["answers"]


def test_the_check_names_the_repository_and_refuses_who_may_not_write(server, drive):
    cases = [
        (WRITE_TOKEN, None, "/runs/en-fr/"),
        (WRITE_TOKEN, "model", "/runs/en-fr"),
        (WRITE_TOKEN, "team/model", "/runs/en-fr"),
        (WRITE_TOKEN, "team/model", "/runs/en-fr"),  # it exists by now
        (READ_TOKEN, "team/model", "/runs/en-fr"),
        (READ_TOKEN, None, "/runs/new"),
        (WRITE_TOKEN, "somebody/model", "/runs/en-fr"),
        ("hf_nobody", "team/model", "/runs/en-fr"),
        (None, "team/model", "/runs/en-fr"),
        (WRITE_TOKEN, "team/mo del", "/runs/en-fr"),
        (WRITE_TOKEN, None, "/runs/my run"),
    ]
    answers = check(drive, cases)
    assert answers[:4] == ["tester/en-fr", "tester/model", "team/model", "team/model"]
    assert set(server.repos) == {"tester/en-fr", "tester/model", "team/model"}
    for answer, name, status in zip(
        answers[4:8], ["team/model", "tester/new", "somebody/model", "team/model"], [403, 403, 403, 401], strict=True
    ):
        assert answer.startswith(f"UserError: --push_to_hub: the token may not write to '{name}' (status {status})")
        assert "HF_TOKEN" in answer and "hf auth login" in answer
    assert answers[8] == "UserError: --push_to_hub: there is no token for the Hub; set HF_TOKEN or run `hf auth login`"
    for answer, name in zip(answers[9:], ["team/mo del", "my run"], strict=True):
        assert answer.startswith(f"UserError: --push_to_hub: '{name}' cannot be a repository's name (")
        assert answer.endswith("give --hub_model_id OWNER/NAME")


def test_the_check_gives_up_on_a_silent_server(server, drive):
    server.hang("GET /api/whoami")
    (answer,) = check(drive, [(WRITE_TOKEN, None, "/runs/en-fr")], request_timeout_s=0.5)
    assert answer.startswith("UserError: --push_to_hub: 'en-fr' is out of reach") and "Timeout" in answer
    assert answer.endswith("without network leave --push_to_hub out")


def test_the_check_says_that_nobody_answers(drive):
    url = f"http://127.0.0.1:{free_port()}"
    (answer,) = check(drive, [(WRITE_TOKEN, "team/model", "/runs/en-fr")], url=url)
    assert answer.startswith(f"UserError: --push_to_hub: 'team/model' is out of reach at {url} (ConnectError: ")


def test_the_check_says_that_offline_mode_is_on():
    with pytest.raises(UserError, match=r"^--push_to_hub: HF_HUB_OFFLINE .* unset it, or leave --push_to_hub out$"):
        check_hub(HubConfig(push_to_hub=True, hub_model_id="team/model"), "/runs/en-fr")
