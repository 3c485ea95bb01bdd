"""Survival: which placeholders count, what has no value, how it is resampled, shown and selected by."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from mtloop.checkpoint.state import TrainState
from mtloop.cli.commands.average import scores_table
from mtloop.cli.commands.evaluate import verdict_table
from mtloop.config.evaluation import EvaluationConfig
from mtloop.errors import FieldError, UserError
from mtloop.evaluation.evaluate import Report
from mtloop.evaluation.metrics import METRICS, Texts, mean_scores, metrics_of, scores_of, tally, with_column
from mtloop.evaluation.selection import check_selection, check_survival, choose_metrics
from mtloop.evaluation.significance import recorded_text, resample
from mtloop.evaluation.survival import lost_placeholders, survivals
from mtloop.evaluation.test_sets import TestSet as Rows
from mtloop.evaluation.test_sets import Verdict
from mtloop.placeholders import KINDS
from mtloop.trainer.table import choose_columns, header_of

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "kde_en_fr.jsonl.gz"
SOURCES = ["Open %1", "&Quit...", "No %s, <b>%n</b>", "Plain", "1 of 2", "%1 dropped"]
REFERENCES = ["Ouvrir %1", "&Quitter…", "Ni %s, <b>%n</b>", "Simple", "1 de 2", "omis"]
HYPOTHESES = ["Ouvrir %1", "Quitter...", "Ni %s, <b>n</b>", "Simple %1", "1 de deux", "sans"]
ALL = choose_metrics(["survival"])


def texts(hypotheses=HYPOTHESES, number=6):
    return Texts(sources=SOURCES[:number], hypotheses=hypotheses[:number], references=REFERENCES[:number])


def values(*names, **kw):
    return {name: round(one.score, 6) for name, one in tally(texts(**kw), choose_metrics(names)).items()}


def test_survival_counts_the_rows_whose_reference_keeps_them():
    # %1: row 0 survives, row 3 has one too many, row 5 has a reference without it. Code: rows 0, 2 and 3.
    assert values("survival") == {
        "survival": pytest.approx(100 / 3, abs=1e-6), "survival_tag": 100, "survival_numbered": 50,
        "survival_count": 0, "survival_printf": 100, "survival_accelerator": 0, "survival_ellipsis": 100,
        "survival_number": 0,
    }  # fmt: skip
    assert values("survival_numbered", "survival_url") == {"survival_numbered": 50}
    assert survivals(SOURCES, HYPOTHESES, REFERENCES)[5] == {}


def test_survival_has_no_value_without_placeholders():
    plain = Texts(sources=["a 1"], hypotheses=["<b> %1"], references=["b 1"])  # neither 0 nor 100, nor a new column
    assert tally(plain, ALL) == {} and list(tally(plain, choose_metrics(None))) == ["bleu", "chrf"]
    assert list(tally(plain, choose_metrics(["survival_number"]))) == ["survival_number"]
    assert lost_placeholders(plain.sources, ["<b>"], plain.references) == [{}]


def test_survival_of_references_is_100_and_the_registry_has_every_kind():
    found = tally(texts(REFERENCES), ALL)
    assert {one.score for one in found.values()} == {100.0}
    assert [name for name in METRICS if METRICS[name].part_of == "survival"] == [f"survival_{kind}" for kind in KINDS]
    assert [one.name for one in with_column(one.metric for one in found.values())] == ["survival"]


def test_lost_placeholders_names_them_by_kind():
    assert lost_placeholders(SOURCES, HYPOTHESES, REFERENCES) == [
        {}, {"accelerator": ["&accelerator missing"]}, {"count": ["%n missing"]}, {"numbered": ["%1 added"]},
        {"number": ["2 missing"]}, {},
    ]  # fmt: skip


def test_resample_leaves_out_draws_without_a_row_that_counts():
    # One row of 40 counts: a third of the resamples draw it never, and have no score.
    one = Texts(sources=["%1", *["a"] * 39], hypotheses=["b"] * 40, references=["%1", *["a"] * 39])
    other = Texts(sources=one.sources, hypotheses=one.references, references=one.references)
    found, before = resample(tally(one, ALL), tally(other, ALL), num_resamples=200)
    interval = found["survival"]
    assert (interval.score, interval.mean, interval.half_width) == (0, 0, 0) and before["survival"].mean == 100
    assert interval.p_value is None  # one row is too few, although there are 40
    assert json.dumps([one.record() for one in found.values()], allow_nan=False)
    many = [f"%{number % 9 + 1}" for number in range(40)]
    half = Texts(sources=many, hypotheses=many[:20] + ["x"] * 20, references=many)
    best = Texts(sources=many, hypotheses=many, references=many)
    gain = resample(tally(half, ALL), tally(best, ALL), num_resamples=200)[0]["survival"]
    assert gain.score == 50 and 10 < gain.half_width < 20 and gain.p_value == pytest.approx(1 / 201)


def test_mean_scores_is_over_the_pairs_that_have_a_metric():
    of_pairs = [scores_of(tally(texts(number=number), choose_metrics(None))) for number in (1, 3)]
    means = mean_scores([*of_pairs, scores_of(tally(Texts(sources=["a"], hypotheses=["b"], references=["b"]),
                                                    choose_metrics(None)))])  # fmt: skip
    assert means["survival"].value == 75 and means["survival"].signature == "mean of 2: rows:1 and rows:2"
    assert means["survival_tag"].value == 100 and means["bleu"].signature.startswith("mean of 3: ")
    report = Report(loss_per_token=None, perplexity=None, scores=means, num_sentences=3, time_s=1, sentences_per_s=1,
                    hypotheses=[], pair_scores=dict(zip(("en-fr", "en-de"), of_pairs, strict=True)))  # fmt: skip
    line = report.metrics()
    assert line["survival_en-fr"] == 100 and "survival_tag_en-fr" not in line and line["survival_tag_en-de"] == 100
    assert recorded_text(line, METRICS["survival_tag"], pair="en-fr") == "-"
    assert report.has_survival(75) and not report.has_survival(75.1) and report.has_survival(None)


def test_tables_show_survival_alone_and_the_command_its_kinds():
    counted = tally(texts(), choose_metrics(None))
    scores, _ = resample(counted, num_resamples=40)
    rows = Dataset.from_dict({"source": SOURCES, "target": REFERENCES})
    plain = {name: scores[name] for name in ("bleu", "chrf")}
    lines = verdict_table(
        [
            Verdict(test_set=Rows(name="plain", rows=rows), hypotheses=HYPOTHESES, scores=plain),
            Verdict(test_set=Rows(name="ui", rows=rows), hypotheses=HYPOTHESES, scores=scores),
        ],
        has_baseline=False,
    )
    assert lines[1].split() == ["test", "set", "rows", "BLEU", "chrF", "survival"] and lines[2].endswith("  -")
    assert any(line.startswith("survival %1 ") and "50.00 ± " in line and line.endswith("rows:2") for line in lines)
    assert [line for line in lines if line.startswith("survival:")] == ["survival: rows:3|bs:40|seed:12345"]
    record = {name: one.score for name, one in counted.items()}
    first = {"name": "valid", "step": 1, "epoch": 1.0, "eval_loss": 1.0, **record}
    assert header_of(choose_columns(first, total_steps=9, width=200)).count("survival") == 1
    assert [one.name for one in metrics_of(record)] == list(counted)
    ui, nothing = scores_of(counted), scores_of(tally(texts(["x"], 1), choose_metrics(["bleu"])))
    table = scores_table("model", {"a": [nothing, ui], "b": [nothing, ui]}, ["plain", "ui"])
    assert "ui survival" in table[1] and "survival %1" not in table[1] and table[2].split()[3] == "-"


def test_record_score_is_never_best_below_min_survival():
    state = TrainState()
    for score, is_eligible in ((50.0, False), (60.0, False), (40.0, True), (70.0, False), (41.0, True)):
        state.step += 1
        state.record_score(score, is_greater_better=True, is_eligible=is_eligible)
        if state.step == 2:  # patience begins with the first that may be the best
            assert (state.best_score, state.best_step, state.num_evaluations_without_gain) == (None, -1, 0)
        if state.step == 4:
            assert (state.best_step, state.num_evaluations_without_gain) == (3, 1)
    assert (state.best_score, state.best_step) == (41.0, 5)


def test_min_survival_and_best_metric_need_something_to_count():
    check_selection("survival_numbered", None, [])
    check_survival(choose_metrics(None), SOURCES, REFERENCES, best="survival_numbered", min_survival=99)
    with pytest.raises(UserError, match=r"^--metric_for_best_model: .*\(got 'survival'\)"):
        check_selection("survival", ["bleu"], [])
    with pytest.raises(
        UserError, match=r"^--metric_for_best_model: no \{0\} .*\(got survival_braces\)\..* survival_tag"
    ):
        check_survival(choose_metrics(None), SOURCES, REFERENCES, best="survival_braces")
    with pytest.raises(UserError, match=r"^--min_survival: no placeholder .*\(got 99\)\. Leave it out\.$"):
        check_survival(choose_metrics(None), ["a"], ["b"], min_survival=99)
    with pytest.raises(UserError, match=r"^--metrics: no placeholder .*\(got survival\)\. Leave it out\.$"):
        check_survival(ALL, ["a"], ["b"])
    with pytest.raises(FieldError, match=r"^--min_survival: --metrics .*\(got 99\)\. Add survival"):
        EvaluationConfig(metrics=["bleu"], min_survival=99)
    with pytest.raises(FieldError, match=r"^--min_survival: .*\(got 101"):
        EvaluationConfig(min_survival=101)


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.exists(), reason=f"{CORPUS} is absent")
def test_references_of_kde_score_100():
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        lines = [line for _, line in zip(range(6_000), file, strict=False) if "%" in line]
    pairs = [json.loads(line)["translation"] for line in lines]
    sources, references = [pair["en"] for pair in pairs], [pair["fr"] for pair in pairs]
    found = tally(Texts(sources=sources, hypotheses=references, references=references), ALL)
    assert {name: one.score for name, one in found.items()} == dict.fromkeys(found, 100.0)
    rows = found["survival_numbered"].statistics.rows
    assert rows[:, 1].sum() > 100 and np.array_equal(rows[:, 0], 100 * rows[:, 1])
