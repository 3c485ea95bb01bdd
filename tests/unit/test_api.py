"""mtloop.train, mtloop.main and Result: what they return and raise."""

import dataclasses
import datetime
import json
import multiprocessing
import subprocess
import sys

import datasets
import pytest

import mtloop
from mtloop.api import raised
from mtloop.cli.status import report
from mtloop.config.inputs import DataConfig
from mtloop.config.model import ModelConfig
from mtloop.config.parse import parse_config
from mtloop.config.settings import Config
from mtloop.config.yaml_file import to_yaml
from mtloop.data.load import load_corpus
from mtloop.errors import RunFailed, UserError
from mtloop.runtime.signals import Interrupted

UPDATE = {"step": 2, "epoch": 0.5, "loss": 2.5, "target_tokens": 30}
EVALUATION = {"step": 2, "epoch": 0.5, "eval_loss": 2.0, "perplexity": 7.4, "num_sentences": 9, "bleu": 12.5}


@pytest.fixture
def run_path(tmp_path):
    """The folder of a run that two evaluations and a test set were recorded of."""
    lines = [UPDATE, EVALUATION, {**EVALUATION, "step": 4, "bleu": 14.0}, {**EVALUATION, "step": 4, "split": "test"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = {"status": "finished", "exit_status": 3, "message": "trained 4 updates", "step": 4, "pid": 1}
    (tmp_path / "status.json").write_text(json.dumps(status))
    return tmp_path


# Result


def test_result_reads_the_run_folder(run_path):
    result = mtloop.Result(str(run_path))
    assert (result.path, result.model) == (run_path, run_path / "final")
    assert (result.status, result.exit_status, result.message) == ("finished", 3, "trained 4 updates")
    assert [line["bleu"] for line in result.evaluations] == [12.5, 14.0]
    assert result.metrics["bleu"] == 14.0
    assert repr(result) == f"Result({str(run_path)!r}): finished; trained 4 updates"
    with pytest.raises(AttributeError):
        result.path = run_path


def test_result_draws_curves(run_path):
    figure = mtloop.Result(run_path).curves()
    assert hasattr(figure, "_repr_html_") or hasattr(figure, "savefig")
    assert len(figure.axes) >= 2


def test_result_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"nothing-here: holds no run\. Give"):
        mtloop.Result(tmp_path / "nothing-here")


# what train and main raise


def test_a_mistake_is_raised_before_anything_heavy_is_imported(project):
    code = (
        "import sys, mtloop\n"
        "try:\n    mtloop.train(num_beems=2)\n"
        "except ValueError as error:\n    print(error, {'torch', 'tqdm', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout == "--num_beems: no such flag, did you mean --num_beams? set()\n"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_train_raises_a_mistake_in_one_line(num_processes, capsys):
    with pytest.raises(UserError, match=r"^--num_beems: no such flag, did you mean --num_beams\?$"):
        mtloop.train(num_beems=2, num_processes=num_processes)
    assert capsys.readouterr() == ("", "")


def test_train_refuses_to_score():
    flags = {"model_name_or_path": "m", "source_lang": "en", "target_lang": "fr", "test_file": "t.tsv"}
    with pytest.raises(UserError, match=r"^--do_train: mtloop.train only trains \(got false\)"):
        mtloop.train(do_predict=True, **flags)


@pytest.mark.parametrize(
    "config", [{"num_beems": 2}, ["--num_beems", "2"], ["train", "--num_beems", "2"]], ids=["dict", "list", "command"]
)
def test_main_raises_outside_of_train_py(config):
    with pytest.raises(UserError, match="^--num_beems: no such flag"):
        mtloop.main(config)


def test_main_of_another_command_raises():
    with pytest.raises(UserError, match="^--test_set: missing, and --model is not a run folder"):
        mtloop.main(["evaluate", "--model", "nothing-here"])


def test_main_is_the_program_in_train_py_only(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--no_such_flag_at_all"])
    assert mtloop.main() == 2
    assert capsys.readouterr().err.startswith("mtloop: error: --no_such_flag_at_all: no such flag")
    with pytest.raises(UserError, match="^--another_one"):
        mtloop.main(["--another_one"])
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    # The demo is stopped at once by this leftover of another launch.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="^WORLD_SIZE: set to 2"):
        mtloop.main()


def test_train_takes_every_form_of_settings(monkeypatch):
    asked = []
    monkeypatch.setattr("mtloop.api.start", lambda config, functions, show: asked.append((config, functions)) or 0)
    monkeypatch.setattr("mtloop.api.Result", lambda path: path)

    def score(sources, hypotheses, references):
        return 0.0

    config = Config(
        model=ModelConfig(model_name_or_path="m"),
        data=DataConfig(train_file=["a.jsonl"], source_lang="en", target_lang="fr"),
    )
    given = {"model_name_or_path": "m", "train_file": ["a.jsonl"], "source_lang": "en", "target_lang": "fr"}
    assert mtloop.train("kde4-en-fr", num_train_epochs=1, output_dir="runs/x").as_posix() == "runs/x"
    mtloop.train(given, num_train_epochs=2)
    mtloop.train(config, num_train_epochs=3)
    mtloop.train(["kde4-en-fr", "--num_train_epochs", "4"])
    mtloop.train(**given, metrics=["bleu", score])
    assert [one.optimizer.num_train_epochs for one, _ in asked[:4]] == [1, 2, 3, 4]
    assert asked[0][0].recipe == "kde4-en-fr" and asked[1][0].data == config.data
    assert (list(asked[4][0].evaluation.metrics), asked[4][1]) == (["bleu"], [score])
    with pytest.raises(UserError, match="^--seed: given besides a list of flags"):
        mtloop.train(["kde4-en-fr"], seed=1)


PAIRS = [{"translation": {"en": f"file {i}", "fr": f"fichier {i}"}} for i in range(6)]


@pytest.fixture
def configs(monkeypatch):
    """The configurations that train() would start with."""
    asked = []
    monkeypatch.setattr("mtloop.api.start", lambda config, functions, show: asked.append(config) or 0)
    monkeypatch.setattr("mtloop.api.Result", lambda path: path)
    return asked


def test_train_stores_a_dataset_as_files_that_the_configuration_names(configs, tmp_path):
    rows = datasets.Dataset.from_list(PAIRS)
    splits = datasets.DatasetDict(train=rows.select(range(4)), validation=rows.select([4]), test=rows.select([5]))
    mtloop.train("kde4-en-fr", dataset=splits, output_dir=tmp_path)
    mtloop.main({"config": "kde4-en-fr", "dataset": splits, "validation_file": "own.jsonl"})
    data = configs[0].data
    assert (data.dataset_name, data.source_lang) == (None, "en")
    loaded = load_corpus(data)
    assert [loaded.train["source"][:], loaded.valid["source"][:], loaded.test["target"][:]] == [
        ["file 0", "file 1", "file 2", "file 3"], ["file 4"], ["fichier 5"],
    ]  # fmt: skip
    assert configs[1].data == dataclasses.replace(data, validation_file=["own.jsonl"])
    (tmp_path / "config.yaml").write_text(to_yaml(configs[0]))
    assert parse_config([str(tmp_path / "config.yaml")]).data == data


def test_train_names_other_rows_by_another_file(configs, tmp_path):
    """So a run that is resumed with others is refused, and with the same ones is not."""
    columns = {"source_column": "a", "target_column": "b", "model_name_or_path": "m"}
    dated = {"a": ["un", "deux"], "b": ["one", "two"], "at": [datetime.date(2026, 1, 1)] * 2}
    for rows in (dated, dated, {**dated, "b": ["one", "2"]}):
        dataset = datasets.Dataset.from_dict(rows)
        mtloop.train(dataset=dataset.map(lambda row: row, load_from_cache_file=False), **columns)
    first, again, other = (config.data.train_file for config in configs)
    assert first == again != other
    assert (
        load_corpus(dataclasses.replace(configs[0].data, validation_split=0.5)).report["counts"]["train"]["kept"] == 1
    )


@pytest.mark.parametrize(
    ("dataset", "settings", "line"),
    [
        (PAIRS, {}, r"^dataset: expected a Dataset or DatasetDict \(got list\)"),
        ({"dev": None}, {}, r"^dataset: expected a Dataset or DatasetDict \(got NoneType\)"),
        (datasets.DatasetDict(test=datasets.Dataset.from_list(PAIRS)), {}, r"^dataset: no split 'train' \(got test\)"),
        (PAIRS, {"train_file": "a.jsonl"}, r"^--train_file: dataset is given as well \(got a.jsonl\)"),
    ],
)
def test_train_refuses_other_objects(dataset, settings, line):
    with pytest.raises(UserError, match=line):
        mtloop.train(dataset=dataset, source_lang="en", target_lang="fr", **settings)


@pytest.mark.parametrize(("status", "kind"), [(1, RunFailed), (2, UserError), (130, Interrupted)])
def test_raised_raises_the_line_of_each_status(status, kind, capsys):
    with pytest.raises(kind, match="^the line$") as caught:
        raised(lambda show: report("the line", status, show=show))
    assert capsys.readouterr() == ("", "")
    # What a notebook shows instead of the frames of mtloop.
    assert caught.value._render_traceback_() == [f"{kind.__name__}: the line"]


def test_raised_prints_and_exits_in_a_launched_fork(capsys, monkeypatch):
    """The launcher drops what its processes raise: it shows only their exit status."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "a notebook")
    with pytest.raises(SystemExit) as ended:
        raised(lambda show: report("the line", 2, show=show))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "mtloop: error: the line\n"
    assert raised(lambda show: 0) == 0


def test_train_raises_the_message_of_a_run_that_was_stopped(run_path, monkeypatch):
    monkeypatch.setattr("mtloop.api.start", lambda config, functions, show: 130)
    with pytest.raises(KeyboardInterrupt, match="^trained 4 updates$"):
        mtloop.train("demo", output_dir=run_path)
    monkeypatch.setattr("mtloop.api.start", lambda config, functions, show: 3)
    assert mtloop.train("demo", output_dir=run_path).exit_status == 3
