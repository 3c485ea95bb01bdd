"""Test `train.py --dataset_name kde4` from empty caches: the source of the rows, the messages, and a resume."""

import json

import pytest

from tests.support.hub_server import HubServer
from tests.support.kde4 import KDE4, PARQUET_BRANCH, add_archive, add_kde4
from tests.support.launch import PYTHON, run

pytestmark = pytest.mark.e2e

ENGLISH = [f"Sentence {number} house" for number in range(60)]
FRENCH = [f"Phrase {number} maison" for number in range(60)]
HUB = "Helsinki-NLP/kde4@refs/convert/parquet"
SETTINGS = ["--train_tokenizer", "--vocab_size", "32", "--model_size", "tiny", "--max_eval_samples", "2"]


@pytest.fixture
def hub():
    with HubServer() as started:
        add_kde4(started, list(zip(ENGLISH, FRENCH, strict=True)), pairs=["en-fr"])
        add_archive(started, "KDE4/v2", {"en": as_file(ENGLISH), "fr": as_file(FRENCH)})
        yield started


def as_file(lines):
    return "".join(f"{line} \n" for line in lines).encode()


def train(hub, home, *flags):
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url, "MTLOOP_OPUS_URL": hub.url}
    caches = {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    words = ["--dataset_name", "kde4", "--source_lang", "French", "--target_lang", "eng_Latn", *SETTINGS]
    command = [PYTHON, "train.py", *words, "--output_dir", str(home / "run"), *flags]
    return run(command, **settings, **caches)


def loading(done):
    return [line for line in done.stdout.splitlines() if line.startswith("loading ")]


def test_kde4_is_resumed_from_opus_after_the_hub_failed(hub, tmp_path):
    branch = hub.repos[KDE4].branches.pop(PARQUET_BRANCH)
    url = f"{hub.url}/OPUS-KDE4/v2/moses/en-fr.txt.zip"
    done = train(hub, tmp_path, "--max_train_steps", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert loading(done) == [f"loading kde4 en-fr from {HUB}", f"loading kde4 en-fr from {url} ({HUB}: no such branch)"]
    assert "%|" not in done.stderr, "progress bars are for terminals"
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["sources"]["train"][0]["name"] == "opus:KDE4/v2"
    # The Hub has the branch again; the rows still come from OPUS, or the run would be refused as one on other data.
    hub.repos[KDE4].branches[PARQUET_BRANCH] = branch
    done = train(hub, tmp_path, "--max_train_steps", "2", "--allow_changed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert loading(done) == [f"loading kde4 en-fr from {url}"]
    again = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (again["fingerprint"], again["sources"]) == (report["fingerprint"], report["sources"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not any("source of train" in line for change in record["changes"] for line in change["changed"])


@pytest.mark.full
def test_unavailable_kde4_is_reported_in_one_line(hub, tmp_path):
    del hub.repos[KDE4].branches[PARQUET_BRANCH]
    hub.archives.clear()
    done = train(hub, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("mtloop: error: --dataset_name: cannot load en-fr of kde4 (")
    assert f"{HUB}: no such branch" in line and f"{hub.url}/OPUS-KDE4/v2/moses/en-fr.txt.zip" in line
