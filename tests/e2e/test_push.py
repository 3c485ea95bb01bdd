"""Test training runs that push: each epoch is pushed once under faults of the Hub and of the run, which never waits."""

import ast
import hashlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from mtloop.atomic import read_json, read_json_lines
from mtloop.checkpoint.manifest import read_manifest
from mtloop.hub.card import escape
from mtloop.hub.upload import read_key
from mtloop.run_folder import RunFolder
from tests.support.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from tests.support.launch import PROJECT, PYTHON, environment, free_port, run, start_command
from tests.support.lives import last_step

pytestmark = pytest.mark.e2e

REPO = "tester/demo"
TRAIN = [
    "demo", "--max_train_samples", "300", "--max_eval_samples", "20", "--vocab_size", "320", "--num_train_epochs", "3",
    "--num_beams", "1", "--val_max_target_length", "16", "--logging_steps", "1", "--dropout", "0.1",
    "--cpu_threads", "1",
]  # fmt: skip
PUSH = ["--push_to_hub", "--hub_model_id", REPO]
WHOLE = [*(f"Training in progress, epoch {epoch}" for epoch in (1, 2, 3)), "Training complete"]


@pytest.fixture(scope="module")
def port():
    """Start one server for all tests: the programs are forked from one process that has its address."""
    return free_port()


@pytest.fixture
def server(port):
    with HubServer(port) as started:
        yield started


def settings(server, token=WRITE_TOKEN):
    return {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": server.url, "HF_TOKEN": token}


class Training:
    """A running training; its output goes to a file next to its folder."""

    def __init__(self, server, folder, *flags, num_processes=1, token=WRITE_TOKEN, push=PUSH, train=TRAIN):
        self.folder, self.log = RunFolder(folder), Path(f"{folder}.log")
        words = ["train.py", *train, *push, "--output_dir", folder, *flags]
        self.process = subprocess.Popen(
            start_command(*words, num_processes=num_processes),
            cwd=PROJECT,
            env=environment(**settings(server, token)),
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self):
        return self.log.read_text()

    @property
    def last_step(self):
        return last_step(self.folder.path)

    def wait_for(self, is_there, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while not is_there():
            assert time.monotonic() < deadline and self.process.poll() is None, self.output[-3000:]
            time.sleep(0.005)

    def end(self, timeout_s=120):
        """Wait for the end, check that no file or output holds the token, and return the status."""
        status = self.process.wait(timeout_s)
        for path in [self.log, *self.folder.path.rglob("*")]:
            assert not path.is_file() or WRITE_TOKEN.encode() not in path.read_bytes(), path
        return status


def titles(server):
    return [title for title, _ in server.commits(REPO)]


def assert_whole(server, folder):
    """Check that three epochs and the end are pushed once each, in order, tagged, and in the journal."""
    assert titles(server) == WHOLE
    repo = server.repos[REPO]
    assert repo.tags == {f"epoch-{number}": commit.oid for number, commit in enumerate(repo.commits[1:4], start=1)}
    lines = read_json_lines(folder.push_path)
    assert [(line["part"], line["commit"]) for line in lines] == [
        (read_key(commit.description)[1], commit.oid) for commit in repo.commits[1:]
    ]


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Train the same run without a Hub and return the weights that must be pushed, by epoch."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    done = run([PYTHON, "train.py", *TRAIN, "--output_dir", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    steps = sorted((folder / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
    return [hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in steps]


def weights(server):
    """Return the sha256 of the weights after each commit."""
    return [files["model.safetensors"] for _, files in server.commits(REPO)]


@pytest.mark.full
def test_push_with_two_processes(server, tmp_path):
    server.hang("PUT ", times=1, silence_s=6.0)
    training = Training(server, tmp_path / "run", num_processes=2)
    training.wait_for(lambda: any(request.startswith("PUT") for request in server.requests))
    before = training.last_step
    training.wait_for(lambda: training.last_step > before + 5)  # both ranks train, or neither
    assert titles(server) == []
    assert training.end() == 0, training.output[-3000:]
    assert_whole(server, training.folder)
    assert len([request for request in server.requests if "/commit/" in request]) == 4
    _, files = server.commits(REPO)[-1]
    assert {"model.safetensors", "config.json", "generation_config.json", "source.spm", "vocab.json"} <= set(files)
    assert not any(name.startswith("training/") or name == "config.yaml" for name in files)


@pytest.mark.full
def test_rotation_keeps_checkpoints_to_push(server, tmp_path, plain):
    server.hang("PUT ", times=3, silence_s=4.0)
    training = Training(server, tmp_path / "run", "--save_total_limit", "1")
    training.wait_for(lambda: len(list(training.folder.checkpoints_dir.glob("step_*"))) == 3)
    assert training.end() == 0, training.output[-3000:]
    assert_whole(server, training.folder)
    assert weights(server) == [*plain, plain[-1]]
    checkpoints = training.folder.checkpoints_dir  # everything is pushed
    assert set(checkpoints.glob("step_*")) == {(checkpoints / name).resolve() for name in ("latest", "best")}


@pytest.mark.full
def test_push_after_server_outage(server, tmp_path, plain):
    training = Training(server, tmp_path / "run")
    training.wait_for(lambda: training.last_step > 5)
    server.leave()
    training.wait_for(lambda: training.last_step > 45)
    server.come_back()
    assert training.end() == 0, training.output[-3000:]
    assert_whole(server, training.folder)
    assert weights(server) == [*plain, plain[-1]]


def test_push_once_after_kill(server, tmp_path, plain):
    server.hang("POST .*/commit/", times=1, silence_s=3.0)  # stored, three seconds after the run is dead
    folder = tmp_path / "run"
    first = Training(server, folder)
    first.wait_for(lambda: any("/commit/" in request for request in server.requests))
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = Training(server, folder)
    assert second.end() == 0, second.output[-3000:]
    assert_whole(server, second.folder)
    assert weights(server) == [*plain, plain[-1]]


@pytest.mark.full
def test_silent_server_delays_end_by_push_timeout(server, tmp_path):
    server.hang("POST .*/preupload")
    training = Training(server, tmp_path / "run", "--push_timeout", "3")
    training.wait_for(lambda: "waiting for the Hub" in training.output)
    start = time.monotonic()
    status = training.end()
    assert status == 3 and time.monotonic() - start < 8, training.output[-3000:]
    report = read_json(training.folder.status_path)
    assert (report["status"], report["exit_status"]) == ("finished", 3) and "epoch 1: " in report["message"]
    assert f"push the rest with: python -m mtloop push {training.folder.path}" in training.output
    assert (training.folder.final_dir / "model.safetensors").exists()
    server.heal()
    done = run([PYTHON, "-m", "mtloop", "push", str(training.folder.path)], **settings(server))
    assert done.returncode == 0, done.stderr
    assert_whole(server, training.folder)
    assert read_json(training.folder.status_path)["exit_status"] == 0


@pytest.mark.full
def test_push_stops_after_refusal_and_restart_completes_it(server, tmp_path):
    server.fail("/commit/main", 403)
    training = Training(server, tmp_path / "run")
    assert training.end() == 3, training.output[-3000:]
    assert training.output.count("NOT PUSHED to the Hub, and pushing stops") == 1 and titles(server) == []
    assert len([request for request in server.requests if "/commit/" in request]) == 1
    again = Training(server, tmp_path / "run")
    assert again.end() == 0
    assert_whole(server, again.folder)
    assert read_json(again.folder.status_path)["exit_status"] == 0


@pytest.mark.full
def test_push_after_signal_within_grace_period(server, tmp_path, plain):
    server.hang("PUT ")
    training = Training(server, tmp_path / "run")
    training.wait_for(lambda: training.last_step > 25)
    training.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    assert training.end() == 143, training.output[-3000:]
    assert time.monotonic() - start < 20  # the grace is 10 s
    assert "NOT PUSHED to the Hub: epoch 1: " in training.output
    assert not [p for p in psutil.process_iter(["cmdline"]) if "mtloop.hub.upload" in (p.info["cmdline"] or [])]
    server.heal()
    # The Hub is unreachable when the run restarts: training continues, and the queue waits.
    server.leave()
    again = Training(server, tmp_path / "run")
    again.wait_for(lambda: again.last_step > 45)
    server.come_back()
    assert again.end() == 0, again.output[-3000:]
    assert_whole(server, again.folder)
    assert weights(server) == [*plain, plain[-1]]


@pytest.mark.full
def test_push_epoch_after_interrupted_evaluation(server, tmp_path):
    flags = ["--max_eval_samples", "100", "--num_train_epochs", "1", "--eval_max_tokens", "64"]
    training = Training(server, tmp_path / "run", *flags)
    training.wait_for(lambda: training.last_step == 19)
    training.process.send_signal(signal.SIGTERM)
    assert training.end() == 143, training.output[-3000:]
    assert titles(server) == []
    again = Training(server, tmp_path / "run", *flags)
    assert again.end() == 0, again.output[-3000:]
    assert titles(server) == [WHOLE[0], WHOLE[-1]]
    assert re.search(r"\| 1 \| 19 \|.*\*\*", server.blobs[server.repos[REPO].commits[1].files["README.md"]].decode())


@pytest.mark.full
def test_resume_from_hub_on_another_machine(server, tmp_path, plain):
    flags = ["--hub_strategy", "checkpoint"]
    first = Training(server, tmp_path / "run", *flags)
    first.wait_for(lambda: len(server.repos.get(REPO).commits if REPO in server.repos else []) > 1)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    time.sleep(0.5)  # for a running push to exit
    second = Training(server, tmp_path / "elsewhere", *flags, "--resume_from_checkpoint", f"hub:{REPO}")
    assert second.end() == 0, second.output[-3000:]
    assert f"fetching {REPO}@main" in second.output and "resumed from" in second.output
    assert_whole(server, second.folder)
    assert weights(server) == [*plain, plain[-1]]
    assert {line["epoch"] for line in read_json_lines(second.folder.metrics.path) if "bleu" in line} == {1.0, 2.0, 3.0}


@pytest.mark.full
def test_push_and_resume_adapter(server, model_path, tmp_path):
    train = ["--model_name_or_path", model_path, "--lora_rank", "4", "--lora_dropout", "0.1", "--dataset_name", "demo"]
    train += ["--source_lang", "en", "--target_lang", "fr", *TRAIN[1:5], "--num_train_epochs", "2", "--num_beams", "1"]
    train += ["--val_max_target_length", "16"]
    flags = ["--hub_strategy", "checkpoint"]
    whole = Training(server, tmp_path / "whole", train=train, push=[])
    assert whole.end() == 0, whole.output[-3000:]
    first = Training(server, tmp_path / "run", *flags, train=train)
    first.wait_for(lambda: len(server.repos.get(REPO).commits if REPO in server.repos else []) > 1)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    time.sleep(0.5)  # as above
    second = Training(server, tmp_path / "elsewhere", *flags, "--resume_from_checkpoint", f"hub:{REPO}", train=train)
    assert second.end() == 0, second.output[-3000:]
    assert f"fetching {REPO}@main" in second.output and "resumed from" in second.output
    (_, files), final = server.commits(REPO)[-1], whole.folder.final_dir
    assert "adapter/adapter_config.json" in files
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert files[name] == hashlib.sha256((final / name).read_bytes()).hexdigest(), name


@pytest.mark.full
def test_resume_from_hub_refuses_other_data(server, tmp_path):
    first = Training(server, tmp_path / "run", "--hub_strategy", "checkpoint", "--num_train_epochs", "1")
    assert first.end() == 0, first.output[-3000:]
    flags = ["--resume_from_checkpoint", f"hub:{REPO}", "--max_train_samples", "200"]
    second = Training(server, tmp_path / "elsewhere", *flags, push=[])
    assert second.end() == 2
    assert "it was trained with other data" in second.output and "--allow_changed" in second.output


def test_read_only_token_is_refused_before_loading(server, tmp_path):
    training = Training(server, tmp_path / "run", token=READ_TOKEN)
    assert training.end() == 2
    assert "--push_to_hub: the token cannot write to 'tester/demo' (status 403)" in training.output
    assert READ_TOKEN not in training.output and "rows loaded" not in training.output


EVALUATE = """
import json, sys
from huggingface_hub import snapshot_download
from mtloop.config.environment import HardwareConfig
from mtloop.data.demo.grammar import demo_pairs
from mtloop.evaluation.metrics import DEFAULT_METRICS, Texts, tally
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder = snapshot_download(sys.argv[1])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
pairs = demo_pairs("validation")
hypotheses = []
for start in range(0, len(pairs), 50):
    batch = tokenizer([source for source, _ in pairs[start : start + 50]], return_tensors="pt", padding=True)
    hypotheses += tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
sources, references = zip(*pairs)
texts = Texts(sources=sources, hypotheses=hypotheses, references=references, target_lang="fr")
print(json.dumps(tally(texts, DEFAULT_METRICS)["bleu"].score))
"""


@pytest.mark.full
def test_card_snippet_and_scores_of_downloaded_model(server, demo_run, tmp_path):
    """The downloaded default run, loaded by transformers alone, has the BLEU of the card."""
    command = [PYTHON, "-m", "mtloop", "push", str(demo_run.folder), "--hub_model_id", REPO]
    done = run(command, **settings(server))
    assert done.returncode == 0, done.stderr
    assert titles(server) == [*WHOLE[:2], WHOLE[-1]]  # of two epochs
    home = {"HF_HOME": str(tmp_path)}
    card = server.blobs[server.repos[REPO].commits[-1].files["README.md"]].decode()
    done = run([PYTHON, "-c", EVALUATE, REPO], **settings(server), **home)
    bleu = json.loads(done.stdout.splitlines()[-1])
    assert bleu > 20 and f"**BLEU {bleu:.2f}, " in card, (bleu, card[:2000])
    assert card in server.cards  # the Hub has validated its metadata
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = run([PYTHON, "-c", snippet], **settings(server), **home)
    assert done.returncode == 0, done.stderr
    (translation,) = ast.literal_eval(done.stdout.splitlines()[-1])
    assert f"| {escape(translation)} |" in card  # the first of its examples
    manifest = read_manifest(next((demo_run.folder / "checkpoints").glob("latest")))
    assert weights(server)[-1] == manifest["files"]["model.safetensors"]["sha256"]
