"""evaluation: the numbers of sacreBLEU's own command line, of any model on any test sets."""

import argparse
import json
import re
import shutil
import subprocess
import sys

import pytest

from mtloop.cli.commands.train import main as train
from mtloop.cli.flags import SETTINGS, TABLE_SETTINGS, _named, fill_settings, load_own_rows, load_test_sets
from mtloop.config.parse import parse_config
from mtloop.errors import UserError
from mtloop.evaluation.metrics import METRICS, sentence_chrf
from mtloop.evaluation.significance import MIN_ROWS, Interval
from mtloop.evaluation.test_sets import Verdict as FoundScores
from mtloop.run_folder import stored_config
from tests.support.commands import command
from tests.support.scores import score_with_intervals

main = command("evaluate")

REFERENCES = [f"the {word} opens file number {i} of the folder" for i, word in enumerate(["dog", "cat", "user"] * 10)]
GOOD = [text.replace("opens", "opens the") if i % 3 else text for i, text in enumerate(REFERENCES)]
BAD = [text.replace("folder", "house").replace("file", "door") if i % 2 else "no" for i, text in enumerate(REFERENCES)]
NEAR = [REFERENCES[0].replace("opens", "closes"), *BAD[1:]]


@pytest.fixture
def run_command(model_path, fresh_accelerate, capsys):
    """Run the command; return its status, standard output and error."""

    def run(*words):
        flags = ["--source_lang", "en", "--target_lang", "fr", "--num_beams", "1", "--cpu_threads", "1"]
        status = main([*flags, "--num_resamples", "50", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def sacrebleu(folder, *flags):
    """What the command `sacrebleu` prints for the files in `folder`."""
    texts = {"references": REFERENCES, "good": GOOD, "near": NEAR, "bad": BAD}
    for name, lines in texts.items():
        (folder / name).write_text("".join(line + "\n" for line in lines))
    command = [sys.executable, "-m", "sacrebleu", "references", *flags, "-m", "bleu", "chrf", "ter", "-w", "4"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_resample_equals_command_of_sacrebleu(tmp_path):
    told = json.loads(sacrebleu(tmp_path, "-i", "good", "--confidence", "-f", "json"))
    found, baseline = score_with_intervals(GOOD, REFERENCES, "en")
    assert baseline is None and set(found) == {"bleu", "chrf", "ter"}
    by_label = {one.metric.label or one.metric.title: one for one in found.values()}
    for line in told:
        interval = by_label[line["name"]]
        assert interval.score == pytest.approx(line["score"], abs=1e-4)
        assert interval.mean == pytest.approx(line["confidence_mean"], abs=1e-4)
        assert interval.half_width == pytest.approx(line["confidence_var"], abs=1e-4)
        assert interval.p_value is None and interval.signature == line["signature"]


@pytest.mark.slow
def test_paired_test_equals_command_of_sacrebleu(tmp_path):
    # Its JSON fails on its own numbers (sacreBLEU 2.6): its table is read.
    lines = sacrebleu(tmp_path, "-i", "bad", "good", "near", "--paired-bs", "-f", "text").splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    names = ["bleu", "chrf", "ter"]
    theirs = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows if row[0]}
    for system, p_values, hypotheses in (("good", rows[3], GOOD), ("near", rows[5], NEAR)):
        found, baseline = score_with_intervals(hypotheses, REFERENCES, "en", baseline=BAD)
        for name, p_value in zip(names, p_values[1:], strict=True):
            for interval, cell in (
                (baseline[name], theirs["Baseline: bad"][name]),
                (found[name], theirs[system][name]),
            ):
                assert f"{interval.score:.4f} ({interval.mean:.4f} ± {interval.half_width:.4f})" == cell
            assert f"(p = {found[name].p_value:.4f})" == p_value.rstrip("*") and baseline[name].p_value is None
    assert found["bleu"].p_value > 0.05  # of near; both sides of the line were compared


def test_resample_of_equal_systems_has_p_value_1():
    found, baseline = score_with_intervals(GOOD, REFERENCES, baseline=GOOD, num_resamples=50)
    assert found["bleu"].score == baseline["bleu"].score and found["bleu"].p_value == 1.0


def test_verdict_text_shows_difference():
    def interval(score, p_value=None):
        return Interval(metric=METRICS["bleu"], score=score, mean=score, half_width=1.2, signature="s", p_value=p_value)

    def line(score, p_value, baseline):
        scores = {"bleu": interval(score, p_value)}
        others = {"bleu": interval(baseline)}
        verdict = FoundScores(test_set=None, hypotheses=[], scores=scores, baseline_scores=others)
        return verdict.text("bleu")

    assert line(52.9, 0.001, 39.2) == "52.90 ± 1.20 (+13.70, p = 0.001)"
    assert line(39.0, 0.3, 39.2) == "39.00 ± 1.20 (-0.20, p = 0.300)"
    assert line(39.0, None, 39.2) == "39.00 ± 1.20 (-0.20, too few rows)"


def test_resample_of_few_rows_has_no_p_value():
    for num_rows, has_p_value in ((MIN_ROWS - 1, False), (MIN_ROWS, True)):
        references = [f"this is sentence number {number} of them" for number in range(num_rows)]
        baseline = ["this is a sentence", *references[1:]]
        found, _ = score_with_intervals(references, references, baseline=baseline, num_resamples=20)
        assert (found["bleu"].p_value is not None) == has_p_value


def test_named_splits_name_and_files():
    assert _named("news=a/b.jsonl") == ("news", ["a/b.jsonl"])
    assert _named("a/b.en,a/b.fr") == ("b", ["a/b.en", "a/b.fr"])
    assert _named("x=y=z/b.tsv") == ("x", ["y=z/b.tsv"])
    assert _named("dir=1/b.tsv") == ("dir", ["1/b.tsv"]) and _named("./d=1/b.tsv") == ("b", ["./d=1/b.tsv"])


@pytest.mark.slow
def test_do_eval_and_do_predict_score_as_evaluate_does(run_command, model_path, rows_path, tmp_path, capsys):
    """Without --do_train a command line of run_translation.py scores the given files, and trains nothing."""
    shared = ["--source_lang", "en", "--target_lang", "fr", "--num_beams", "1", "--cpu_threads", "1"]
    flags = ["--model_name_or_path", model_path, "--validation_file", rows_path, "--test_file", rows_path, *shared]
    samples = ["--max_eval_samples", "10", "--max_predict_samples", "1000", "--output_dir", tmp_path / "out"]
    assert train([str(word) for word in ("--do_eval", "--do_predict", *flags, *samples)]) == 0
    out = capsys.readouterr().out
    assert "plan:" not in out and not (tmp_path / "out" / "status.json").exists()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    num_rows = len(rows_path.read_text(encoding="utf-8").splitlines())
    assert (results["eval_samples"], results["predict_samples"]) == (10, num_rows)
    predictions = (tmp_path / "out" / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
    status, _, err = run_command("--model", model_path, "--test_set", f"test={rows_path}", "-o", tmp_path / "same")
    assert status == 0, err
    same = json.loads((tmp_path / "same" / "report.json").read_text())["test_sets"]["test"]["scores"]
    assert results["predict_bleu"] == round(same["BLEU"]["score"], 4) and "predict_ter" in results
    rows = [json.loads(line) for line in (tmp_path / "same" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert predictions == [row["hypothesis"] for row in rows]
    assert train(["--do_predict", *map(str, flags), "--test_file", "nowhere.json"]) == 2
    assert "--test_file: no such file (got nowhere.json)" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_several_sets_against_baseline(run_command, model_path, rows_path, tmp_path):
    words = ["--model", model_path, "--test_set", f"one={rows_path}", "--test_set", rows_path]
    compared = ["--baseline", model_path, "--compare", tmp_path / "out" / "page.html"]
    status, out, err = run_command(*words, *compared, "--max_samples", "20", "-o", tmp_path / "out")
    assert status == 0, err
    lines = [line.split() for line in out.splitlines()]
    (one,), (news,) = ([line for line in lines if line[:2] == [name, "20"]] for name in ("one", "news"))
    assert one[2:] == news[2:] and "(+0.00," in one  # a model against itself
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["test_sets"]) == {"one", "news"}
    found = report["test_sets"]["one"]
    assert (
        found["num_sentences"] == 20 and found["scores"]["BLEU"]["score"] == found["baseline_scores"]["BLEU"]["score"]
    )
    assert f"{found['scores']['BLEU']['score']:.2f}" == one[2]
    rows = [json.loads(line) for line in (tmp_path / "out" / "one.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(20)) and all(
        row["baseline"] == row["hypothesis"] for row in rows
    )
    again, _ = score_with_intervals(
        [row["hypothesis"] for row in rows], [row["reference"] for row in rows], "fr", num_resamples=50
    )
    assert again["bleu"].score == found["scores"]["BLEU"]["score"]
    assert found["scores"]["BLEU"]["signature"] in out
    path = tmp_path / "out" / "page.html"
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [one["name"] for one in data["sets"]] == ["one", "news"] and f"{path}: every" in out
    shown = data["sets"][0]
    assert (shown["source"], shown["reference"]) == tuple(
        [row[name] for row in rows] for name in ("source", "reference")
    )
    assert shown["segments"] == [[row["hypothesis"]] for row in rows]  # the same in both translations
    assert (
        shown["chrf"]
        == shown["baselineChrf"]
        == [round(chrf, 2) for chrf in sentence_chrf([row["hypothesis"] for row in rows], shown["reference"])]
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--test_set: missing, and --model is not a run folder (got {model}). Give rows to score on."),
        (["--test_set", "{rows}", "--test_set", "{rows}"], "--test_set: two have the same name (got news, news). Give"),
        (["--test_set", "{folder}/app.srt"], "--test_set: a subtitle file (.srt) is not supported (got {folder}/app"),
        (["--test_set", "{rows}x"], "--test_set: no such file (got {rows}x)"),
        (
            ["--test_set", "{rows}", "--num_beams", "0"],
            "--num_beams: expected a whole number from 1 to 1000 (got 0).",
        ),
        (
            ["--test_set", "{rows}", "--baseline", "{rows}/nowhere"],
            "--baseline '{rows}/nowhere': there is no such folder",
        ),
        (
            ["--test_set", "{rows}", "--compare", "{model}"],
            "--compare: expected the page to write, FILE.html (got {model}). Give the other model with --baseline.",
        ),
        (
            ["--test_set", "{rows}", "--compare", "{rows}/x.html"],
            "--compare {rows}/x.html: cannot be written ({rows} is a file). Give another place.",
        ),
        (
            ["--test_set", "{rows}", "--compare", "{folder}/there.html"],
            "--compare {folder}/there.html: cannot be written ({folder}/there.html is a folder). Give another place.",
        ),
    ],
)
def test_mistakes_are_reported_in_one_line(run_command, model_path, rows_path, tmp_path, words, reason):
    places = {"rows": rows_path, "model": model_path, "folder": tmp_path}
    (tmp_path / "there.html").mkdir()
    (tmp_path / "app.srt").touch()
    status, _, err = run_command("--model", model_path, *[word.format(**places) for word in words])
    (line,) = [line for line in err.splitlines() if line.startswith("mtloop: ")]
    assert status == 2 and line.startswith(f"mtloop: error: {reason.format(**places)}"), line


def test_stored_config_is_found_from_every_folder_of_run(tmp_path):
    assert stored_config(str(tmp_path)) is None and stored_config("team/model") is None
    (tmp_path / "final").mkdir()
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("model_size: tiny\ntrain_tokenizer: true\ndataset_name: demo\n"
                                          "source_lang: en\ntarget_lang: fr\n")  # fmt: skip
    for name in (".", "final", "checkpoints/step_3"):
        assert stored_config(str(tmp_path / name)).data.dataset_name == "demo"
    (tmp_path / "exports" / "mine").mkdir(parents=True)  # beside a file of that name which is no run's
    assert (
        stored_config(str(tmp_path / "exports")) is None and stored_config(str(tmp_path / "exports" / "mine")) is None
    )


@pytest.mark.slow
def test_evaluate_cuts_baseline_at_its_positions(run_command, model_path, rows_path, tmp_path):
    shutil.copytree(model_path, tmp_path / "run" / "final")
    config = "train_file: [a.tsv]\nsource_lang: en\ntarget_lang: fr\ntrain_tokenizer: true\nmodel_size: tiny\n"
    (tmp_path / "run" / "config.yaml").write_text(f"{config}max_source_length: 4000\nmax_target_length: 64\n")
    positions = json.loads((model_path / "config.json").read_text())["max_position_embeddings"]
    assert positions < 4000
    words = ("--model", tmp_path / "run", "--baseline", model_path, "--test_set", rows_path, "--max_samples", "3")
    status, out, err = run_command(*words)
    assert status == 0 and "(+0.00, too few rows)" in out, err


def test_load_test_sets_reads_tables_as_run_or_flags_say(tmp_path, capsys):
    pairs = {**dict.fromkeys(SETTINGS), "source_lang": "en", "target_lang": "fr"}
    form = dict.fromkeys(TABLE_SETTINGS)
    (tmp_path / "t.tsv").write_text('en\tfr\n"a ""b"""\tc\n')
    given = argparse.Namespace(**pairs, **form, test_set=[str(tmp_path / "t.tsv")], max_samples=None)
    assert load_test_sets(given, None)[0].sources == ['"a ""b"""']
    assert capsys.readouterr().err == (
        f"mtloop: warning: {tmp_path}/t.tsv: 1 rows with a field in quotes that has doubled quotes; "
        "if it is quoted as CSV, give --quoting csv\n"
    )
    given.quoting = "csv"
    assert load_test_sets(given, None)[0].sources == ['a "b"'] and not capsys.readouterr().err
    given.quoting, trained = None, parse_config(["demo", "--quoting", "csv"])
    assert load_test_sets(given, trained)[0].sources == ['a "b"']
    given.no_header, given.source_column, given.target_column = True, "1", "2"
    assert load_test_sets(given, trained)[0].sources == ["en", 'a "b"']


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        ({}, True, ("en", "cat_Latn", None, "ca@valencia")),
        ({"target_key": "ca"}, True, ("en", "cat_Latn", None, "ca")),
        ({"target_lang": "spa_Latn"}, True, ("en", "spa_Latn", None, None)),  # the run's key is of the run's language
        ({"target_lang": "ca"}, True, ("en", "ca", None, "ca@valencia")),
        ({"source_column": "a", "target_column": "b"}, True, ("en", "cat_Latn", None, None)),
        ({"source_key": "en", "target_key": "ca@valencia"}, False, ("en", "ca@valencia", "en", "ca@valencia")),
        ({"target_lang": "cat_Latn", "target_key": "ca"}, False, (None, "cat_Latn", None, "ca")),
    ],
)
def test_fill_settings_takes_languages_and_keys(flags, own, expected):
    run = ["--train_file", "a.jsonl", "--model_name_or_path", "m", "--source_lang", "en"]
    trained = parse_config([*run, "--target_lang", "cat_Latn", "--target_key", "ca@valencia"]) if own else None
    given = argparse.Namespace(**{**dict.fromkeys(SETTINGS), **flags}, test_set=[])
    fill_settings(given, trained)
    assert (given.source_lang, given.target_lang, given.source_key, given.target_key) == expected


def test_fill_settings_takes_keys_or_columns():
    columns = ["--source_column", "a", "--target_column", "b"]
    trained = parse_config(["--train_file", "a.jsonl", "--model_name_or_path", "m", *columns])
    given = argparse.Namespace(**{**dict.fromkeys(SETTINGS), "source_key": "en", "target_key": "fr"}, test_set=[])
    fill_settings(given, trained)
    assert (given.source_column, given.source_key, given.target_key) == (None, "en", "fr")
    given.source_column = "a"
    with pytest.raises(UserError, match=r"^--source_key: --source_column is given as well \(got en\)\."):
        fill_settings(given, trained)


@pytest.mark.slow
def test_load_own_rows_of_several_pairs():
    trained = parse_config(["demo", "--pairs", "en-fr,fr-en"])
    given = argparse.Namespace(**dict.fromkeys(SETTINGS), test_set=["news=news.jsonl"], max_samples=3)
    fill_settings(given, trained)
    assert given.source_lang is None  # of the other test set nobody has said what it is
    own = load_own_rows(given, trained, "valid")
    assert [one.name for one in own] == ["valid en-fr", "valid fr-en"] and own[0].sources == own[1].references
    given.source_lang, given.target_lang = "English", "French"
    fill_settings(given, trained)
    assert [one.name for one in load_own_rows(given, trained, "valid")] == ["valid en-fr"]
