"""Test hub.preflight, hub.download and `mtloop push` with the real client against a loopback server."""

import json
import sys
from dataclasses import asdict

import pytest
import yaml

from mtloop.atomic import read_json
from mtloop.cli.main import main
from mtloop.config.settings import Config, changed
from mtloop.errors import UserError
from mtloop.hub.parts import Target, epoch_parts, final_part, record_push
from mtloop.hub.preflight import check_hub
from mtloop.run_folder import RunFolder
from tests.support.forked import python_forked
from tests.support.hub_runs import QUICK_CLIENT, RUN_ID, finish, hashes, make_run, write_checkpoint
from tests.support.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, Repo, create_repo
from tests.support.launch import free_port, run

HEAD = """
import json, os, sys
from pathlib import Path
given, told = json.loads(sys.argv[1]), {}
"""


@pytest.fixture
def server():
    with HubServer() as started:
        yield started


@pytest.fixture
def start(server, tmp_path_factory):
    """Run a command with the real client against the server, and check that the token is not printed."""

    def start(*words, url=server.url, token=WRITE_TOKEN, **settings):
        settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": url, "HF_TOKEN": token, **settings}
        home = str(tmp_path_factory.mktemp("home"))
        with python_forked():
            done = run([sys.executable, *map(str, words)], timeout_s=40, HF_HOME=home, **QUICK_CLIENT, **settings)
        assert token not in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
        return done

    return start


@pytest.fixture
def drive(start):
    """Run a program that reads its arguments from `given` and writes its results to `told`."""

    def drive(program, given, **settings):
        done = start("-c", f"{HEAD}{program}print(json.dumps(told))", json.dumps(given), **settings)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return drive


CHECK = """
import mtloop.hub.client, mtloop.hub.preflight
from dataclasses import asdict
from mtloop.config.settings import Config, changed
from mtloop.errors import UserError
mtloop.hub.client.REQUEST_TIMEOUT_S = given["request_timeout_s"]
told["answers"] = []
for token, flags, folder in given["cases"]:
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    run_id = flags.pop("run_id", "")
    config = changed(Config(), push_to_hub=True, **flags)
    try:
        answer = asdict(mtloop.hub.preflight.check_hub(config, output_dir=folder, run_id=run_id))
    except UserError as error:
        answer = f"{type(error).__name__}: {error}"
    told["answers"].append(answer)
"""


def check(drive, cases, request_timeout_s=30, **settings):
    told = drive(CHECK, {"cases": cases, "request_timeout_s": request_timeout_s}, **settings)
    for answer, (token, _, _) in zip(told["answers"], cases, strict=True):
        assert "\n" not in str(answer) and (not token or token not in str(answer))
    return told["answers"]


def named(name):
    return {"hub_model_id": name} if name else {}


@pytest.mark.slow
def test_check_hub_names_repository_and_refuses_tokens(server, drive):
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
    answers = check(drive, [(token, named(name), folder) for token, name, folder in cases])
    names = ["tester/en-fr", "tester/model", "team/model", "team/model"]
    assert answers[:4] == [{"repo_id": name, "revision": "main", "license": None} for name in names]
    assert set(server.repos) == {"tester/en-fr", "tester/model", "team/model"}
    for answer, name in zip(answers[4:7], ["team/model", "tester/new", "somebody/model"], strict=True):
        assert answer.startswith(f"UserError: --push_to_hub: the token cannot write to '{name}' (status 403)")
        assert "HF_TOKEN" in answer and "hf auth login" in answer
    assert answers[7].startswith(
        "UserError: --push_to_hub: the Hub refuses the token for 'team/model' (status 401). Log"
    )
    assert answers[8] == "UserError: --push_to_hub: no token for the Hub. Set HF_TOKEN or run `hf auth login`."
    for answer, name in zip(answers[9:], ["team/mo del", "my run"], strict=True):
        assert answer.startswith(f"UserError: --push_to_hub: invalid repository name (got '{name}'): ")
        assert answer.endswith("Give --hub_model_id OWNER/NAME.")


@pytest.mark.slow
def test_check_hub_creates_private_repositories_and_branches(server, drive):
    create_repo(server, b'{"name": "public"}')
    flags = {"hub_model_id": "tester/new", "hub_private_repo": True, "hub_revision": "small"}
    answers = check(
        drive,
        [
            (WRITE_TOKEN, flags, "/r"),
            (WRITE_TOKEN, flags, "/r"),
            (WRITE_TOKEN, {**flags, **named("tester/public")}, "/r"),
        ],
    )
    assert answers[0] == answers[1] == {"repo_id": "tester/new", "revision": "small", "license": None}
    assert server.repos["tester/new"].is_private and set(server.repos["tester/new"].branches) == {"main", "small"}
    assert answers[2].startswith("UserError: --push_to_hub: tester/public is public, and a private")


@pytest.mark.slow
def test_check_hub_resolves_license(server, drive, tmp_path):
    create_repo(server, b'{"name": "base"}')
    server.blobs["a" * 64] = b"---\nlicense: cc-by-4.0\n---\n"
    server.repos["tester/base"].commits[0].files["README.md"] = "a" * 64
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (tmp_path / "bare").mkdir()
    asked = [
        {"model_name_or_path": "tester/base"},
        {"model_name_or_path": "tester/base@main"},
        {"model_name_or_path": str(tmp_path)},
        {"model_name_or_path": str(tmp_path / "bare")},
        {"model_name_or_path": "tester/nowhere"},
        {"model_name_or_path": "tester/base", "hub_license": "apache-2.0"},
        {"hub_license": "as you like"},
    ]
    answers = check(drive, [(WRITE_TOKEN, {**flags, **named("tester/model")}, "/r") for flags in asked])
    licenses = [answer["license"] for answer in answers[:-1]]
    assert licenses == ["cc-by-4.0", "cc-by-4.0", "mit", None, None, "apache-2.0"]
    assert answers[-1].startswith("UserError: --push_to_hub: invalid license, ")


@pytest.mark.slow
def test_check_hub_validates_the_whole_card(server, drive):
    asked = [
        {"source_lang": "en", "target_lang": "xx"},  # no code of ISO 639: not in the card
        {"train_file": ["数据"], "source_lang": "en", "target_lang": "fr"},  # no letter for the name of the data
        {"source_lang": "en", "target_lang": "tlh"},  # Klingon, which this server does not know
    ]
    answers = check(drive, [(WRITE_TOKEN, {**flags, **named("tester/model")}, "/r") for flags in asked])
    assert [answer["repo_id"] for answer in answers[:2]] == ["tester/model"] * 2
    assert answers[2].startswith("UserError: --push_to_hub: the Hub refuses the model card of this run (")
    assert "ISO 639" in answers[2]
    cards = [yaml.safe_load(card.split("---")[1]) for card in server.cards]
    assert [card["language"] for card in cards] == [["en"], ["en", "fr"], ["en", "tlh"]]
    assert cards[1]["model-index"][0]["results"][0]["dataset"]["type"] == "local"
    assert cards[0]["tags"] == ["translation", "mtloop"] and cards[0]["pipeline_tag"] == "translation"


@pytest.mark.slow
def test_check_hub_makes_the_first_commit_of_an_empty_repository(server, drive):
    for name in ("empty", "closed"):
        server.repos[f"tester/{name}"] = Repo(f"tester/{name}")
    server.fail("POST .*tester/closed/commit", 500, times=100)
    flags = [named("tester/empty"), {**named("tester/empty"), "hub_revision": "small"}, named("tester/closed")]
    answers = check(drive, [(WRITE_TOKEN, given, "/r") for given in flags])
    assert [answer["revision"] for answer in answers[:2]] == ["main", "small"]
    branches = server.repos["tester/empty"].branches
    assert [list(commits[0].files) for commits in branches.values()] == [[".gitattributes"]] * 2
    assert [len(commits) for commits in branches.values()] == [1, 1]
    assert answers[2].startswith("HubUnreachable: --push_to_hub: tester/closed has no commits, and none can be made (")


@pytest.mark.slow
def test_check_hub_refuses_epochs_of_another_run(server, drive):
    create_repo(server, b'{"name": "model"}')
    repo = server.repos["tester/model"]
    repo.tags["epoch-1"] = repo.commits[0].oid
    asked = [{}, {"hub_overwrite": True}, {"hub_revision": "small"}, {"run_id": "of this run"}]
    answers = check(drive, [(WRITE_TOKEN, {**flags, **named("tester/model")}, "/r") for flags in asked])
    for answer in (answers[0], answers[3]):
        assert answer.startswith(
            "UserError: --push_to_hub: tester/model holds the epochs of another run (got tags epoch-1)."
        )
        assert "--hub_revision BRANCH" in answer and "--hub_overwrite" in answer
    assert answers[1]["revision"] == "main" and answers[2]["revision"] == "small"


@pytest.mark.slow
def test_check_hub_times_out_on_silent_server(server, drive):
    server.hang("GET /api/whoami")
    (answer,) = check(drive, [(WRITE_TOKEN, {}, "/runs/en-fr")], request_timeout_s=0.5)
    assert answer.startswith("HubUnreachable: --push_to_hub: cannot reach 'en-fr'") and "Timeout" in answer
    assert answer.endswith("Without a network, remove --push_to_hub.")


def test_check_hub_reports_unreachable_server(drive):
    url = f"http://127.0.0.1:{free_port()}"
    (answer,) = check(drive, [(WRITE_TOKEN, named("team/model"), "/runs/en-fr")], url=url)
    assert answer.startswith(f"HubUnreachable: --push_to_hub: cannot reach 'team/model' at {url} (ConnectError: ")


def test_check_hub_refuses_offline_mode():
    with pytest.raises(UserError, match=r"^--push_to_hub: HF_HUB_OFFLINE .* Unset it, or remove --push_to_hub\.$"):
        check_hub(changed(Config(), push_to_hub=True, hub_model_id="team/model"), output_dir="/runs/en-fr")


FETCH = """
from mtloop.errors import UserError
from mtloop.hub.download import fetch
from mtloop.run_folder import RunFolder
folder = RunFolder(Path(given["folder"]))
folder.create()
told["said"] = []
try:
    fetch(folder, given["asked"], told["said"].append)
except UserError as error:
    told["error"] = str(error)
"""


@pytest.fixture
def pushed_run(server, start, tmp_path):
    """Push a run of two epochs and its end, with the state of training."""
    folder = make_run(tmp_path / "run", epochs=2, is_finished=True)
    flags = ["--hub_model_id", "tester/model", "--hub_strategy", "checkpoint"]
    done = start("-m", "mtloop", "push", folder.path, *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "epoch"), [("hub:tester/model", 2), pytest.param("hub:tester/model@epoch-1", 1, marks=pytest.mark.slow)]
)
def test_fetch_restores_checkpoint(server, drive, pushed_run, tmp_path, asked, epoch):
    new = RunFolder(tmp_path / "new")
    told = drive(FETCH, {"folder": str(new.path), "asked": asked})
    # main holds the finished model alone: the newest epoch is taken.
    assert told == {"said": [f"looking for {asked} ...", f"fetching tester/model@epoch-{epoch} ..."]}
    name = f"step_{10 * epoch}"
    assert hashes(new.checkpoints_dir / name) == hashes(pushed_run.checkpoints_dir / name)
    assert new.run_record["run_id"] == RUN_ID
    steps = [json.loads(line)["step"] for line in new.metrics.path.read_text().splitlines()]
    assert max(steps) == 10 * epoch
    again = drive(FETCH, {"folder": str(new.path), "asked": asked})
    assert again == {"said": [f"{new.path} already has checkpoints: {asked} is not fetched again"]}


@pytest.mark.slow
def test_fetch_reports_missing_or_incomplete_repository(server, start, drive, tmp_path):
    folder = make_run(tmp_path / "run", epochs=2, is_finished=True)
    assert start("-m", "mtloop", "push", folder.path, "--hub_model_id", "tester/model").returncode == 0
    new = str(tmp_path / "new")
    error = drive(FETCH, {"folder": new, "asked": "hub:tester/model"})["error"]
    assert "tester/model@main was pushed without the state of training, see --hub_strategy checkpoint" in error
    for asked in ("hub:tester/nowhere", "hub:tester/model@epoch-9", "hub:no name"):
        error = drive(FETCH, {"folder": new, "asked": asked})["error"]
        assert error.startswith(f"--resume_from_checkpoint: cannot fetch {asked} (") and "\n" not in error
    assert hashes(tmp_path / "new") == {}


@pytest.mark.slow
def test_fetch_refuses_corrupt_checkpoint(server, drive, pushed_run, tmp_path):
    commit = server.repos["tester/model"].commits[1]
    server.blobs["b" * 64] = b"other weights"
    commit.files["model.safetensors"] = "b" * 64
    told = drive(FETCH, {"folder": str(tmp_path / "new"), "asked": "hub:tester/model@epoch-1"})
    assert "tester/model@epoch-1 is corrupt, model.safetensors has 13 bytes" in told["error"]


@pytest.mark.slow
def test_push_command_pushes_missing_parts(server, start, tmp_path):
    folder = make_run(tmp_path / "run", epochs=2)
    server_titles = lambda: [title for title, _ in server.commits("tester/run")]  # noqa: E731
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 0 and f"on the Hub at {server.url}/tester/run: epoch 1, epoch 2" in done.stdout
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 0 and "nothing to push: tester/run has all that is here" in done.stdout
    write_checkpoint(folder, 3)
    finish(folder, step=30)
    folder.write_status("finished", exit_status=3, message="not all was pushed", step=30)
    server.fail("POST .*/commit/", 403, times=1)
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 3 and f"push the rest with: python -m mtloop push {folder.path}" in done.stdout
    assert read_json(folder.status_path)["exit_status"] == 3
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 0
    assert server_titles() == [*(f"Training in progress, epoch {n}" for n in (1, 2, 3)), "Training complete"]
    assert read_json(folder.status_path)["exit_status"] == 0


@pytest.mark.slow
def test_push_command_fills_branch_that_was_set_back(server, start, tmp_path):
    create_repo(server, b'{"name": "run"}')
    server.repos["tester/run"].tags = {f"epoch-{number}": f"of epoch {number}" for number in (1, 2, 3)}
    folder = make_run(tmp_path / "run", epochs=3, is_finished=True)
    for part in [*epoch_parts(folder), final_part(folder)]:
        record_push(folder, part, Target(repo_id="tester/run"), commit=f"of {part.name}")
    (folder.checkpoints_dir / "step_10").rename(tmp_path / "away")
    folder.write_status("finished", exit_status=3, message="not all was pushed", step=30)
    server.fail("POST .*/commit/", 403, times=1)
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 3 and read_json(folder.status_path)["exit_status"] == 3  # although the journal has all
    server.requests.clear()
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 0 and "NOT on the Hub, and no checkpoint is left: epoch 1\n" in done.stdout, done.stderr
    titles = [title for title, _ in server.commits("tester/run")]
    assert titles == ["Training in progress, epoch 2", "Training in progress, epoch 3", "Training complete"]
    _, second, third, _ = (commit.oid for commit in server.repos["tester/run"].commits)
    assert server.repos["tester/run"].tags == {"epoch-1": "of epoch 1", "epoch-2": second, "epoch-3": third}
    assert len([request for request in server.requests if "/commits/" in request]) == 1 + 3  # and one of each push
    assert read_json(folder.status_path)["exit_status"] == 0
    done = start("-m", "mtloop", "push", folder.path)
    assert done.returncode == 0 and "nothing to push" in done.stdout and "left: epoch 1\n" in done.stdout


PUSH_REST = """
from dataclasses import replace
from types import SimpleNamespace
from mtloop.cli.commands.train import _push_rest
from mtloop.run_folder import RunFolder
folder, told["said"] = RunFolder(Path(given)), []
config = folder.stored_config()
config = replace(config, hub=replace(config.hub, push_to_hub=True))
one = SimpleNamespace(is_main=True, on_main=lambda work: work(), say=told["said"].append, agree_on_signal=lambda: None)
told["status"] = _push_rest(config, folder, one)
"""


@pytest.mark.slow
def test_finished_run_fills_repository_that_was_deleted(server, drive, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1, is_finished=True)
    target = Target(repo_id="tester/run", license="mit")
    folder.update_record(hub=asdict(target))
    for part in [*epoch_parts(folder), final_part(folder)]:
        record_push(folder, part, target, commit=f"of {part.name}")
    server.leave()
    told = drive(PUSH_REST, str(folder.path))
    assert told["status"] == 0 and told["said"][0].endswith(f" {folder.push_path} alone says what was pushed.")
    server.come_back()
    told = drive(PUSH_REST, str(folder.path))
    assert told["status"] == 0, told
    assert [title for title, _ in server.commits("tester/run")] == [
        "Training in progress, epoch 1",
        "Training complete",
    ]
    assert folder.run_record["hub"] == asdict(target)


@pytest.mark.slow
def test_password_of_endpoint_is_not_shown(server, start, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1, is_finished=True)
    for place in (f"@127.0.0.1:{server.port}", f"@127.0.0.1:{free_port()}", "/x@127.0.0.1"):
        done = start("-m", "mtloop", "push", folder.path, url=f"http://me:pa55w0rd{place}")
        assert done.returncode != 0 and "pa55w0rd" not in done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    for path in folder.path.rglob("*"):
        assert not path.is_file() or b"pa55w0rd" not in path.read_bytes(), path


def test_push_command_names_the_variable_of_offline_mode(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = make_run(tmp_path / "run", epochs=1)
    assert main(["push", str(folder.path)]) == 2
    assert capsys.readouterr().err == "mtloop: error: HF_HUB_OFFLINE: push needs the Hub (got 1). Unset it.\n"


@pytest.mark.slow
def test_push_command_pushes_one_epoch_and_shows_card(server, start, tmp_path):
    folder = make_run(tmp_path / "run", epochs=3)
    done = start("-m", "mtloop", "push", folder.path, "--epoch", 2, "--hub_model_id", "team/model")
    assert done.returncode == 0
    assert [title for title, _ in server.commits("team/model")] == ["Training in progress, epoch 2"]
    assert folder.run_record["hub"] == {"repo_id": "team/model", "revision": "main", "license": None}
    done = start("-m", "mtloop", "push", folder.path, "--epoch", 3, "--show_card")
    assert done.returncode == 0 and done.stdout.startswith("---\n") and "after epoch 3 of 3" in done.stdout
    assert 'AutoModelForSeq2SeqLM.from_pretrained("team/model")' in done.stdout  # where it was pushed, not its folder
    assert len(server.commits("team/model")) == 1


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--epoch", "7"], "--epoch: no checkpoint of {run} ends it (got 7). Give one of: 1, 2."),
        (["--hub_model_id", "a b/c"], "push: invalid repository name (got 'a b/c'): "),
        (["--push_timeout", "0"], "--push_timeout: expected a number above 0 and at most 1000000 (got 0.0)."),
    ],
)
def test_push_command_reports_mistakes_in_one_line(server, start, tmp_path, flags, error):
    folder = make_run(tmp_path / "run", epochs=2)
    done = start("-m", "mtloop", "push", folder.path, *flags)
    assert done.returncode == 2 and done.stderr.startswith(f"mtloop: error: {error.format(run=folder.path)}")


@pytest.mark.slow
def test_push_command_requires_unlocked_run_folder(start, tmp_path):
    done = start("-m", "mtloop", "push", tmp_path)
    assert done.returncode == 2 and f"RUN: not a run folder, it has no config.yaml (got {tmp_path})" in done.stderr
    folder = make_run(tmp_path / "run", epochs=1)
    folder.lock(print)
    try:
        done = start("-m", "mtloop", "push", folder.path)
    finally:
        folder.unlock()
    assert done.returncode == 2 and "is training in it" in done.stderr
