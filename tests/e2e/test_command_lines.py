"""Run command lines of run_translation.py and run_translation_no_trainer.py with only the program changed.

Models and data sets have their names on the Hub, which is a server on loopback.
"""

import io
import json
import math

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Translation
from transformers import AutoModelForSeq2SeqLM

from mtloop.atomic import read_json, read_json_lines
from mtloop.config.parse import parse_config
from mtloop.run_folder import RunFolder
from tests.support.command_lines import COMMAND_LINES, flags_of
from tests.support.families import make_family
from tests.support.hub_server import HubServer
from tests.support.launch import PYTHON, launch_command, run

pytestmark = pytest.mark.e2e

VERBS = {"Open": "Deschide", "Close": "Închide", "Save": "Salvează", "Delete": "Șterge", "Show": "Arată"}
NOUNS = {
    "file": "fișierul", "window": "fereastra", "folder": "dosarul", "picture": "imaginea", "message": "mesajul",
    "page": "pagina", "document": "documentul", "text": "textul", "list": "lista", "table": "tabelul",
}  # fmt: skip
ROWS = [
    {"translation": {"en": f"{verb} the {noun}", "ro": f"{verbul} {substantiv}"}}
    for verb, verbul in VERBS.items()
    for noun, substantiv in NOUNS.items()
]
SPLITS = {"train": ROWS[:40], "validation": ROWS[40:46], "test": ROWS[46:]}
MODELS = {"Helsinki-NLP/opus-mt-en-ro": "marian", "google-t5/t5-small": "t5", "facebook/mbart-large-en-ro": "mbart"}
SHORT_NAMES = {"t5-small": "google-t5/t5-small", "wmt16": "wmt/wmt16"}
# The others differ in the model, the data or the launcher, which other tests have too.
BY_DEFAULT = ("course",)
# Pairs of an update, as the flags say; mtloop's default without any.
OVERWRITING = ("marian", "t5", "t5_and_data_set", "mbart")
SIZES = {"marian": 4, "t5": 16, "t5_and_data_set": 4, "mbart": 4, "no_trainer": 32, "course": 32}


def parquet_of(rows):
    table = Dataset.from_list(rows, features=Features({"translation": Translation(languages=["en", "ro"])})).data.table
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def hub():
    """The Hub with wmt16."""
    splits = [{"split": split, "path": f"ro-en/{split}-*"} for split in SPLITS]
    card = json.dumps({"configs": [{"config_name": "ro-en", "data_files": splits}]})
    with HubServer() as server:
        files = {f"ro-en/{split}-00000-of-00001.parquet": parquet_of(rows) for split, rows in SPLITS.items()}
        server.publish("datasets/wmt/wmt16", {**files, "README.md": f"---\n{card}\n---\n".encode()})
        server.short_names = SHORT_NAMES
        yield server


@pytest.fixture
def publish(hub, demo_sample, tmp_path):
    """A function that puts a model of these names on the Hub."""
    texts = [*(text for pair in demo_sample for text in pair)]
    texts += [text for row in ROWS for text in row["translation"].values()]

    def publish(name):
        name = SHORT_NAMES.get(name, name)
        folder = make_family(MODELS[name], tmp_path, texts)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        if hasattr(model, "final_logits_bias"):  # random weights would never end a sentence
            model.final_logits_bias[0, model.config.eos_token_id] = 5.0
            model.save_pretrained(folder)
        hub.publish(name, {path.name: path.read_bytes() for path in folder.iterdir()})

    return publish


@pytest.fixture(scope="module")
def own_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for split, rows in SPLITS.items():
        (folder / f"{split}.json").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def start(hub, home, command):
    access = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    caches = {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    return run(command, **access, **caches)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.full]) for name in COMMAND_LINES]
)
def test_command_line_of_another_trainer_runs(hub, publish, own_files, tmp_path, name):
    output = tmp_path / "out"
    flags = flags_of(name, files=own_files, output=output)
    publish(flags[flags.index("--model_name_or_path") + 1])
    command = launch_command("train.py", *flags) if name == "no_trainer" else [PYTHON, "train.py", *flags]
    done = start(hub, tmp_path / "home", command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    warned = [line.split()[2] for line in done.stderr.splitlines() if line.startswith("mtloop: warning: --")]
    assert [word for word in warned if "_file" not in word] == ["--overwrite_output_dir"] * (name in OVERWRITING)
    assert sum("_file" in word for word in warned) == (name == "t5_and_data_set")
    folder = RunFolder(output)
    assert folder.status["status"] == "finished"
    assert parse_config([str(folder.config_path)]).batch.sentences_per_update == SIZES[name]
    # 40 training pairs; evaluations before the first update and after every epoch, or at the end alone.
    per_epoch, num_epochs = math.ceil(40 / SIZES[name]), 2 if name == "t5" else 3
    records = [record for record in read_json_lines(folder.metrics.path) if "bleu" in record]
    steps = [per_epoch * epoch for epoch in range(num_epochs + 1)]
    scored, saved = (steps[-1:], steps[1:]) if name == "course" else (steps, steps)
    assert [record["step"] for record in records if "split" not in record] == scored
    assert {path.name for path in folder.checkpoints_dir.glob("step_*")} == {f"step_{step}" for step in saved}
    assert [record["num_sentences"] for record in records[-2:]] == [6, 4]  # validation and test rows
    if name in ("course", "t5"):
        check_scoring(hub, folder, flags, records[-2:], tmp_path)


def check_scoring(hub, folder, flags, records, tmp_path):
    """Score the run's model with the same flags but --do_train: the scores are those at the end of the run."""
    scores = tmp_path / "scores"
    words = ["--model_name_or_path", folder.path, "--output_dir", scores, "--do_predict"]
    done = start(
        hub, tmp_path / "home", [PYTHON, "train.py", *(w for w in flags if w != "--do_train"), *map(str, words)]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {path.name for path in scores.iterdir()} == {
        "report.json", "valid.jsonl", "test.jsonl", "all_results.json", "generated_predictions.txt",
    }  # fmt: skip
    results = read_json(scores / "all_results.json")
    assert [results["eval_samples"], results["predict_samples"]] == [6, 4]
    assert [results["eval_chrf"], results["predict_chrf"]] == pytest.approx([one["chrf"] for one in records], abs=1e-4)
    hypotheses = [row["hypothesis"] for row in read_json_lines(scores / "test.jsonl")]
    assert (scores / "generated_predictions.txt").read_text(encoding="utf-8").split("\n") == [*hypotheses, ""]
