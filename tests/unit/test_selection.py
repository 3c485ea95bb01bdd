"""evaluation.selection: built-in metrics by name, and functions of the user that appear wherever scores do."""

import functools
import importlib.util
import json
import socket
from urllib.error import URLError

import numpy as np
import pytest
import torch
from datasets import Dataset
from sacrebleu.metrics import BLEU

import mtloop
from mtloop.cli.commands.train import main as train_py
from mtloop.config.evaluation import BLEU_TOKENIZERS
from mtloop.errors import UserError
from mtloop.evaluation.bleu import load_bleu
from mtloop.evaluation.metrics import METRICS, Texts, metrics_of, tally
from mtloop.evaluation.selection import check_selection, choose_metrics, measure_references, try_functions

TEXTS = Texts(sources=["a", "b"], hypotheses=["x y", "z"], references=["x y", "w"])


def length_ratio(sources, hypotheses, references):
    return sum(map(len, hypotheses)) / sum(map(len, references))


def errors(sources, hypotheses, references):
    wrong = sum(one != other for one, other in zip(hypotheses, references, strict=True))
    return {"wrong": wrong, "wrong_share": np.float32(wrong / len(hypotheses))}


errors.greater_is_better = False


def test_choose_metrics_takes_the_default_ones_and_functions():
    assert [one.name for one in choose_metrics(None)] == ["bleu", "chrf", "survival"]
    assert [one.name for one in choose_metrics(["ter", "bleu"], [length_ratio])] == ["ter", "bleu", "length_ratio"]


def test_tally_calls_functions_with_all_texts():
    found = tally(TEXTS, choose_metrics(["exact_match"], [length_ratio, errors]))
    assert {name: one.score for name, one in found.items()} == {
        "exact_match": 50.0,
        "length_ratio": 1.0,
        "wrong": 1.0,
        "wrong_share": 0.5,
    }
    directions = {name: one.metric.greater_is_better for name, one in found.items()}
    assert directions == {"exact_match": True, "length_ratio": True, "wrong": False, "wrong_share": False}
    assert [name for name, one in found.items() if one.statistics is None] == ["length_ratio", "wrong", "wrong_share"]


@pytest.mark.parametrize("value", [1, 0.5, np.float64(2), np.array(3.0), torch.tensor(4.0), float("nan")])
def test_tally_takes_whatever_is_a_number(value):
    def metric(sources, hypotheses, references):
        return value

    assert tally(TEXTS, choose_metrics(["bleu"], [metric]))["metric"].score == pytest.approx(float(value), nan_ok=True)


@pytest.mark.parametrize("value", [None, "1", True, [1.0, 2.0], torch.ones(2), {"a": None}, {1: 2.0}])
def test_tally_refuses_what_is_no_number(value):
    def metric(sources, hypotheses, references):
        return value

    with pytest.raises(UserError, match=r"^metrics: .*\(got .*\)\. (Return a number, or a dict|Rename this key)"):
        tally(TEXTS, choose_metrics(["bleu"], [metric]))


def test_tally_names_the_line_of_an_error_in_a_function():
    def broken(sources, hypotheses, references):
        return 1 / (len(sources) - 2)

    with pytest.raises(UserError, match=r"^metrics: broken raised ZeroDivisionError: .* \(test_selection\.py:\d+\)\. "):
        tally(TEXTS, choose_metrics(["bleu"], [broken]))


def test_tally_refuses_two_scores_of_one_name():
    with pytest.raises(UserError, match=r"^metrics: .*'wrong'"):
        tally(TEXTS, choose_metrics(["bleu"], [errors, lambda_named("wrong")]))


def test_tally_refuses_other_keys_than_before():
    def metric(sources, hypotheses, references):
        return dict.fromkeys(hypotheses[0].split(), 1.0)

    metrics = choose_metrics(["bleu"], [metric])
    assert set(tally(TEXTS, metrics)) == {"bleu", "x", "y"}
    other = Texts(sources=["a"], hypotheses=["z"], references=["z"])
    with pytest.raises(
        UserError, match=r"^metrics: metric returned the keys z \(before: x, y\)\. Return the same keys"
    ):
        tally(other, metrics)


def test_try_functions_gives_an_empty_translation():
    def words_per_sentence(sources, hypotheses, references):
        return sum(1 / len(text.split()) for text in hypotheses)

    rows = Dataset.from_dict({"source": ["a", "b"], "target": ["x y", "z"]})
    with pytest.raises(UserError, match="words_per_sentence raised ZeroDivisionError"):
        try_functions(choose_metrics(None, [words_per_sentence]), rows)
    assert try_functions(choose_metrics(None, [errors]), rows) == {"wrong": False, "wrong_share": False}


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "zh", "char"])
def test_choose_metrics_takes_a_tokenizer_of_bleu(tokenizer):
    texts = Texts(sources=["a"], hypotheses=["打开文件"], references=["打开文件"], target_lang="ja")
    bleu, chrf = tally(texts, choose_metrics(None, bleu_tokenizer=tokenizer)).values()
    assert f"|tok:{tokenizer}|" in bleu.signature and "tok" not in chrf.signature
    # 13a and intl see one token, without a 4-gram; the others four.
    assert bleu.score == pytest.approx(100 if tokenizer in ("zh", "char") else 0)
    assert [one.name for one in choose_metrics(["ter"], bleu_tokenizer=tokenizer)] == ["ter"]


def test_bleu_tokenizers_are_those_of_sacrebleu():
    assert set(BLEU_TOKENIZERS) <= set(BLEU.TOKENIZERS)


def test_load_bleu_names_the_package_of_a_tokenizer():
    for language, module in (("ja", "MeCab"), ("ko", "mecab_ko")):
        if importlib.util.find_spec(module) is not None:
            continue
        with pytest.raises(UserError) as caught:
            load_bleu(f"{language}-mecab")
        assert str(caught.value).startswith("--bleu_tokenizer: ")
        assert f"(got '{language}-mecab'). Run pip install 'sacrebleu[{language}]'" in str(caught.value)


@pytest.mark.parametrize(
    "error", [URLError("no route"), SystemExit(1), RuntimeError("could not parse"), KeyError("spm")]
)
def test_load_bleu_says_that_a_tokenizer_is_downloaded(monkeypatch, error):
    def fail(**settings):
        raise error

    monkeypatch.setattr("mtloop.evaluation.bleu.BLEU", fail)
    with pytest.raises(
        UserError, match=r"^--bleu_tokenizer: .*\(got 'flores200'\)\. It is downloaded at its first use"
    ):
        load_bleu("flores200")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("references", "language", "tokenizer", "is_warned"),
    [
        (["ฉันรักภาษาไทย", "ภาษาไทย"], None, None, False),  # the script of the references decides
        (["ฉันรักภาษาไทย", "ภาษาไทย"], "th", None, False),
        (["ฉันรักภาษาไทย", "ภาษาไทย"], "th", "13a", True),
        (["ฉันรักภาษาไทย", "ภาษาไทย"], None, "char", False),
        (["open", "a file"], "en", None, True),
        (["open it", "a file"], "en", None, False),
    ],
)
def test_measure_references_warns_of_single_tokens(references, language, tokenizer, is_warned):
    metrics = choose_metrics(None, bleu_tokenizer=tokenizer)
    lines = measure_references(metrics, references, language, "valid")
    assert len(lines) == is_warned and all("valid" in line and "--bleu_tokenizer char" in line for line in lines)
    assert measure_references(choose_metrics(["chrf"]), references, language, "valid") == []


def lambda_named(name):
    function = lambda sources, hypotheses, references: 1.0  # noqa: E731
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        (["bleu"], "--metrics bleu,"),
        ("bleu", "expected a list of functions"),
        ([lambda sources, hypotheses, references: 1.0], "'<lambda>'"),
        ([lambda_named("bleu")], "'bleu'"),
        ([lambda_named("eval_loss")], "'eval_loss'"),
        ([lambda_named("bleu_ci")], "'bleu_ci'"),
        ([length_ratio, length_ratio], "'length_ratio'"),
    ],
)
def test_choose_metrics_refuses_what_has_no_usable_name(functions, words):
    with pytest.raises(UserError, match=r"^metrics: ") as caught:
        choose_metrics(None, functions)
    assert words in str(caught.value)


def test_choose_metrics_takes_an_object_by_its_class_and_lists_the_built_in_ones():
    metric = choose_metrics(["bleu"], [functools.partial(errors)])[1]
    assert (metric.name, metric.greater_is_better) == ("errors", False)
    with pytest.raises(UserError, match=r"^--metrics: .*'rouge'\)\. Give one or more of " + ", ".join(METRICS)):
        choose_metrics(["rouge"])


def test_check_selection_refuses_a_best_metric_that_is_not_computed():
    check_selection("eval_loss", None, [])
    check_selection("ter", ["ter"], [])
    check_selection("wrong", None, [errors])  # known only when the function is called
    with pytest.raises(UserError, match=r"^--metric_for_best_model: .*'ter'\)\. Add it to --metrics"):
        check_selection("ter", None, [])
    with pytest.raises(UserError, match=r"^--metric_for_best_model: .*'wrong'\)\. Pass its function"):
        check_selection("wrong", None, [])


@pytest.fixture
def train_tiny(pairs_path, marian_tokenizer, narrow_path, tmp_path, fresh_accelerate):
    """Train two updates with flags and functions; return the exit status."""
    own = {
        "train_file": pairs_path, "source_lang": "en", "target_lang": "fr", "config_name": narrow_path,
        "tokenizer_name": marian_tokenizer.name_or_path, "sentences_per_update": 16, "num_beams": 1,
        "val_max_target_length": 12, "max_train_steps": 2, "eval_steps": 1, "output_dir": tmp_path / "run",
        "use_cpu": True, "cpu_threads": 1,
    }  # fmt: skip

    def train(functions=(), **flags):
        return train_py({**own, **flags}, functions)

    return train


@pytest.mark.slow
def test_main_shows_a_user_s_metrics_in_every_place(train_tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    chosen = {"metrics": ["ter", "exact_match"], "metric_for_best_model": "wrong"}
    assert train_tiny([length_ratio, errors], **chosen) == 0
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if "train loss" in line)
    assert header.split("perplexity")[1].split("tokens/s")[0].split() == [
        "TER", "±", "exact", "match", "±", "length_ratio", "wrong", "wrong_share",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval_loss" in line]
    assert len(evaluated) == 2 and all(line["user_metrics"] == {
        "length_ratio": True, "wrong": False, "wrong_share": False} for line in evaluated)  # fmt: skip
    assert {"ter_ci", "ter_signature", "exact_match_ci"} <= set(evaluated[0])
    assert not {"bleu", "length_ratio_ci", "length_ratio_signature"} & set(evaluated[0])
    assert [one.name for one in metrics_of(evaluated[0])] == [
        "ter",
        "exact_match",
        "length_ratio",
        "wrong",
        "wrong_share",
    ]
    assert train_tiny([length_ratio, errors], **chosen) == 0 and "nothing to do" in capsys.readouterr().out

    page, out = tmp_path / "page.html", tmp_path / "out"
    words = ["evaluate", "--model", tmp_path / "run", "--cpu_threads", "1", "--metrics", "bleu,ter"]
    words += ["--compare", page, "-o", out]
    assert mtloop.main([*map(str, words)], metrics=[length_ratio]) == 0
    printed = capsys.readouterr().out
    assert "length_ratio" in printed and "length_ratio</td>" in page.read_text()
    scores = json.loads((out / "report.json").read_text())["test_sets"]["valid"]["scores"]
    assert scores["length_ratio"]["half_width"] is None and scores["TER"]["half_width"] >= 0

    words = ["average", tmp_path / "run", "--best", "2", "--evaluate", "--cpu_threads", "1", "--metrics", "exact_match"]
    assert mtloop.main([*map(str, words)], metrics=[length_ratio]) == 0
    printed = capsys.readouterr().out
    assert "(wrong " in printed and "valid exact match  valid length_ratio" in printed
    with pytest.raises(UserError, match="^--metric: "):
        mtloop.main([*map(str, words), "--metric", "chrf"])


@pytest.mark.slow
def test_main_scores_with_the_tokenizer_of_bleu(train_tiny, tmp_path, capsys):
    assert train_tiny(bleu_tokenizer="char", max_train_steps=1) == 0
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert "|tok:char|" in json.loads(line)["bleu_signature"]
    for words, tokenizer in (([], "char"), (["--bleu_tokenizer", "intl"], "intl")):
        capsys.readouterr()
        own = ["evaluate", "--model", tmp_path / "run", "--cpu_threads", "1", "--metrics", "bleu"]
        assert mtloop.main([*map(str, own), *words]) == 0
        assert f"|tok:{tokenizer}|" in capsys.readouterr().out
    folders = [tmp_path / "run" / "checkpoints" / "step_1", tmp_path / "run" / "final"]
    own = ["average", "--checkpoints", *folders, "--evaluate"]
    own += ["--bleu_tokenizer", "zh", "--cpu_threads", "1"]
    assert mtloop.main([*map(str, own)]) == 0 and "|tok:zh|" in capsys.readouterr().out


@pytest.mark.slow
def test_main_refuses_a_tokenizer_of_bleu_before_training(train_tiny, tmp_path, capsys, monkeypatch):
    def fail(**settings):
        raise URLError("no route")

    monkeypatch.setattr("mtloop.evaluation.bleu.BLEU", fail)
    assert train_tiny(bleu_tokenizer="flores200") == 2
    assert "mtloop: error: --bleu_tokenizer: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert train_tiny(bleu_tokenizer="moses") == 2
    assert "--bleu_tokenizer: expected one of 13a, " in capsys.readouterr().err


@pytest.mark.slow
def test_main_warns_of_references_of_one_token(train_tiny, tmp_path, capsys):
    rows = tmp_path / "words.jsonl"
    rows.write_text("".join(json.dumps({"en": f"the file {i}", "fr": f"fichier{i}"}) + "\n" for i in range(40)))
    assert train_tiny(train_file=str(rows), max_train_steps=1) == 0
    assert "warning: valid: BLEU will be about 0: its tokenizer finds 1.0 tokens" in capsys.readouterr().out


@pytest.mark.slow
def test_main_names_a_function_that_fails_before_training(train_tiny, tmp_path, capsys):
    def broken(sources, hypotheses, references):
        raise KeyError("comet")

    assert train_tiny([broken]) == 2
    assert "mtloop: error: metrics: broken raised KeyError: 'comet' (test_selection.py:" in capsys.readouterr().err
    assert train_tiny([errors], metric_for_best_model="errors") == 2
    assert "wrong, wrong_share, eval_loss." in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()  # the corrected command is not another run
    assert train_tiny([errors], metric_for_best_model="wrong") == 0


@pytest.mark.slow
def test_main_saves_the_run_when_a_function_fails_in_an_evaluation(train_tiny, tmp_path, capsys):
    calls = []

    def failing(sources, hypotheses, references):
        calls.append(len(sources))
        return 1 / (3 - len(calls))  # the trial, the evaluation of step 1, and that of step 2

    assert train_tiny([failing]) == 2
    assert "metrics: failing raised ZeroDivisionError" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step_2").is_dir()
    assert train_tiny([length_ratio]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [1, 2]
    output = capsys.readouterr().out
    assert "step 2 of 2" in output and "metrics: failing of this run will not be computed" in output


@pytest.mark.slow
def test_main_resumes_a_run_whose_best_metric_is_a_user_s(train_tiny, capsys):
    assert train_tiny([errors], metric_for_best_model="wrong") == 0
    again = {"metric_for_best_model": "wrong", "max_train_steps": 3, "allow_changed": True}
    assert train_tiny(**again) == 2
    assert "--metric_for_best_model: " in capsys.readouterr().err
    assert train_tiny([errors], **again) == 0
