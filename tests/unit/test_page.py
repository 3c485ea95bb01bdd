"""evaluation.page: whatever stands in a text, the page shows it and nothing of it runs; looked at in a real browser."""

import html
import json
import random
import re
import shutil
import subprocess

import pytest
from datasets import Dataset

from mtloop.evaluation.metrics import sentence_chrf
from mtloop.evaluation.page import differing, page
from mtloop.evaluation.test_sets import TestSet as Rows
from mtloop.evaluation.test_sets import Verdict as FoundScores
from tests.support.scores import score_with_intervals

SPOIL = "document.documentElement.dataset.spoiled = 1"
SCRIPT = f"<script>{SPOIL}</script>"
SOURCES = [
    SCRIPT,
    f"</script><img src=x onerror='{SPOIL}'>",
    "\"a\" & 'b' &amp; c",
    "two\nlines\u2028or\u2029four",
    "x",
]
REFERENCES = [SCRIPT, "</script> of a page", "a and b", "افتح الملف رقم 5", "ファイルを開く"]
MODEL = [SCRIPT, "</script> of the page", "", "افتح الملف رقم 5", "ファイルを開く"]
BASELINE = [f"{SCRIPT} {SCRIPT}", "</script> of a page", "a and b", "افتح ملفا 5", "ファイルを閉じる"]
SWITCHES = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking " \
    "--disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"  # fmt: skip


def verdict(sources=SOURCES, references=REFERENCES, hypotheses=MODEL, others=BASELINE, name=SCRIPT):
    scores, baseline_scores = score_with_intervals(hypotheses, references, baseline=others, num_resamples=40)
    return FoundScores(
        test_set=Rows(name=name, rows=Dataset.from_dict({"source": sources, "target": references})),
        hypotheses=hypotheses,
        scores=scores,
        baseline_hypotheses=others,
        baseline_scores=baseline_scores,
    )


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture
def dom_of(tmp_path):
    """Load a page in a headless Chromium; return the document as its scripts left it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here (apt-get install chromium)")

    def load(text):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        command = [browser, *SWITCHES.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return load


def driven(text, script):
    """The page without its policy, so that what escaping alone does is seen, with a script of the test's at its end."""
    without, number = re.subn(r"<meta http-equiv[^>]*>", "", text)
    assert number == 1
    return without.replace("</body>", f"<script>{script}</script></body>")


def shown(dom):
    """The texts of each row, from top to bottom."""
    rows = re.findall(r"<article>(.*?)</article>", dom, re.DOTALL)
    texts = [re.findall(r'<div class="text" dir="auto">(.*?)</div>', row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<[^>]*>", "", text)) for text in row] for row in texts]


def test_page_escapes_every_text():
    text = page([verdict()], model=SCRIPT, baseline='"b" & <i>')
    assert text.count("<script") == text.count("</script>") == 2  # the data and the page's own
    assert "<img" not in text and "<i>" not in text and "\u2028" not in text and "\u2029" not in text
    assert html.escape(SCRIPT) in text and "&quot;b&quot; &amp; &lt;i&gt;" in text
    (found,) = data_of(text)["sets"]
    assert found["name"] == SCRIPT and data_of(text)["baseline"] == '"b" & <i>'
    for name, texts in (("source", SOURCES), ("reference", REFERENCES), ("model", MODEL), ("baseline", BASELINE)):
        assert ["".join(row[name]) for row in found["rows"]] == texts
    assert [row["chrf"] for row in found["rows"]] == [round(chrf, 2) for chrf in sentence_chrf(MODEL, REFERENCES)]
    assert [row["baselineChrf"] for row in found["rows"]] == [
        round(chrf, 2) for chrf in sentence_chrf(BASELINE, REFERENCES)
    ]


def test_page_loads_nothing():
    text = page([verdict(["a"], ["b"], ["c"], ["d"], "news")], model="m", baseline="n")
    assert not re.search(r"https?:|src=|href=|url\(|@import|fetch\(|XMLHttp", text)
    assert "default-src 'none'; script-src 'sha256-" in text


def test_page_table_shows_scores_intervals_and_differences():
    one = verdict(name="news")
    text = page([one], model="runs/mine", baseline="team/old")
    bleu, other = one.scores["bleu"], one.baseline_scores["bleu"]
    cells = [f"{bleu.score:.2f} ± {bleu.half_width:.2f}", f"{other.score:.2f} ± {other.half_width:.2f}"]
    cells += [f"{bleu.score - other.score:+.2f}", "too few rows"]
    assert '<td class="name">BLEU</td>' + "".join(f"<td>{cell}</td>" for cell in cells) in text
    assert "<title>mine against old</title>" in text and bleu.signature in text
    alone = page([verdict(others=None)], model="m", baseline=None)
    assert "<th>model</tr>" in alone and "<th>p" not in alone and "with --baseline" in alone


def test_differing_puts_differences_at_odd_places():
    assert differing("open the file.", "open a file.") == (["open ", "the", " file."], ["open ", "a", " file."])
    assert differing("the file", "file") == (["", "the ", "file"], ["", "", "file"])
    assert differing("same", "same") == (["same"], ["same"]) and differing("", "x") == (["", ""], ["", "x"])
    # Languages without spaces are compared character by character, accents and vowel signs stay on their letters.
    assert differing("ファイルを開く", "ファイルを閉く") == (["ファイルを", "開", "く"], ["ファイルを", "閉", "く"])
    assert differing("किताब खोलो", "किताबें खोलो")[0] == ["", "किताब", " खोलो"]


def test_differing_segments_join_to_text():
    rng = random.Random(0)
    for _ in range(300):
        one, other = ("".join(rng.choices("ab c.,\n«漢字 é\u2028", k=rng.randrange(12))) for _ in range(2))
        mine, theirs = differing(one, other)
        assert "".join(mine) == one and "".join(theirs) == other
        assert mine[::2] == theirs[::2] and (len(mine) > 1) == (one != other)


def test_page_in_browser_shows_texts_by_loss(dom_of):
    text = page([verdict()], model=SCRIPT, baseline=SCRIPT)
    for dom in (dom_of(text), dom_of(driven(text, "document.documentElement.dataset.driven = 1"))):
        rows = shown(dom)
        gains = [a - b for a, b in zip(*(sentence_chrf(h, REFERENCES) for h in (MODEL, BASELINE)), strict=True)]
        order = sorted(range(5), key=lambda i: (round(gains[i], 2), i))
        expected = [[SOURCES[i], REFERENCES[i], MODEL[i] or "(empty)", BASELINE[i]] for i in order]
        assert rows == expected and gains[order[0]] < -50 < 0 < gains[order[-1]]
        assert "data-spoiled" not in dom and "<img" not in dom
        assert '<mark class="model">the</mark>' in dom and '<mark class="baseline">a</mark>' in dom
    assert 'data-driven="1"' in dom  # that a script can mark the document, where one runs
    assert (
        "5 shown of 5 found, 5 in all" in dom and "worse (2)" in dom and "better (3)" in dom and "different (5)" in dom
    )


def test_page_in_browser_sorts_and_filters(dom_of):
    number = 450
    references = [f"reference {i}" for i in range(number)]
    hypotheses = [f"reference {i}" if i % 3 else f"hypothesis {i}" for i in range(number)]
    others = [f"reference {i}" if i % 3 != 1 else f"baseline {i}" for i in range(number)]
    sources = [f"Source {i}" for i in range(number)]
    one = verdict(sources, references, hypotheses, others, "one")
    two = verdict(["only"], ["b"], ["b"], ["b"], "two")
    text = page([one, two], model="m", baseline="n")
    click = "const click = (start) => [...document.querySelectorAll('button')].find(" \
        "(one) => one.textContent.startsWith(start)).click();"  # fmt: skip

    def rows_after(script):
        dom = dom_of(driven(text, click + script))
        return [int(row[0].split()[1]) for row in shown(dom)], dom

    found, dom = rows_after("click('file order'); click('show 200'); click('show 50')")
    assert found == list(range(450)) and '<button id="more" type="button" hidden="">' in dom
    found, dom = rows_after(
        "const filter = document.getElementById('filter'); click('better');"
        "filter.value = ' sOURCE 44'; filter.dispatchEvent(new Event('input'))"
    )
    # Better are those of i % 3 == 1; of 44, 440 to 449 that is 442, 445, 448.
    assert sorted(found) == [442, 445, 448] and "3 shown of 3 found, 450 in all" in dom
    dom = dom_of(
        driven(
            text, "const set = document.getElementById('set'); set.value = 1; set.dispatchEvent(new Event('change'))"
        )
    )
    assert shown(dom) == [["only", "b", "b", "b"]]


def test_page_without_baseline_shows_worst_first(dom_of):
    one = verdict(others=None)
    rows = shown(dom_of(page([one], model="m", baseline=None)))
    chrf = sentence_chrf(MODEL, REFERENCES)
    assert [row[0] for row in rows] == [SOURCES[i] for i in sorted(range(5), key=lambda i: (round(chrf[i], 2), i))]
    assert all(len(row) == 3 for row in rows)
