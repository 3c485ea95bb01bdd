"""evaluation.page: whatever stands in a text, the page shows it and nothing of it runs; looked at in a real browser."""

import html
import json
import queue
import random
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset

from mtloop.evaluation.metrics import sentence_chrf
from mtloop.evaluation.page import differing, page
from mtloop.evaluation.test_sets import TestSet as Rows
from mtloop.evaluation.test_sets import Verdict as FoundScores
from tests.support.scores import counted, score_with_intervals

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
    "--disable-component-update --disable-sync"  # fmt: skip


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


def joined(segments):
    """The two texts that segments are cut from."""
    return tuple("".join(one for place, one in enumerate(segments) if place % 3 in (0, which)) for which in (1, 2))


@pytest.fixture
def browser(tmp_path):
    """The command that starts a headless Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    return [found, *SWITCHES.split(), f"--user-data-dir={tmp_path / 'profile'}"]


@pytest.fixture
def dom_of(browser, tmp_path):
    """Load a page; return the document as its scripts left it."""

    def load(text):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        command = [*browser, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return load


@pytest.fixture
def seen_after(browser):
    """Load a page and run scripts in it, one after the other; return what its readers see after each, by name:
    the sources of the articles, those that wait as hidden text, and the line of the count.

    In real time: under a virtual one Chromium draws a frame or two, and rows are laid out when a frame is drawn.
    """
    script = """(async () => {
      const [filter, set, count] = ["filter", "set", "count"].map((id) => document.getElementById(id));
      const click = (start) => [...document.querySelectorAll("button")].find(
        (one) => one.textContent.startsWith(start)).click();
      const seen = {};
      const look = async (name) => {
        await new Promise((done) => setTimeout(done, 200)); // longer than the filter waits for another key
        for (let frame = 0; frame < 5; frame++) await new Promise(requestAnimationFrame);
        const articles = [...document.querySelectorAll("article")];
        const hidden = [...document.querySelectorAll("[hidden=until-found]")];
        const waiting = hidden.map((one) => one.textContent).join("\\n");
        seen[name] = [articles.map((one) => one.querySelector(".text").textContent),
          waiting.match(/^Source .*$/gm) ?? [], count.textContent];
      };
      STEPS
      await fetch("/", { method: "POST", body: JSON.stringify(seen) });
    })();"""

    def load(text, **steps):
        written = "".join(f"{step}; await look({name!r});" for name, step in steps.items())
        page_text, posted = driven(text, script.replace("STEPS", written)).encode(), queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page_text)

            def do_POST(self):
                posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            command = [*browser, "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                return posted.get(timeout=120)
            finally:
                process.terminate()
                process.wait(20)
                server.shutdown()

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
    assert found["source"] == SOURCES and found["reference"] == REFERENCES
    assert [joined(segments) for segments in found["segments"]] == list(zip(MODEL, BASELINE, strict=True))
    for name, hypotheses in (("chrf", MODEL), ("baselineChrf", BASELINE)):
        assert found[name] == [round(chrf, 2) for chrf in sentence_chrf(hypotheses, REFERENCES)]


def test_page_without_baseline_holds_references_once():
    (found,) = data_of(page([verdict(others=None)], model="m", baseline=None))["sets"]
    assert [joined(segments) for segments in found["segments"]] == list(zip(MODEL, REFERENCES, strict=True))
    assert sorted(found) == ["chrf", "name", "segments", "source"]


def test_page_holds_what_rows_lost_by_kind():
    one = verdict(["a", "&Save %1 %n"], ["b", "&c %1 %n"], ["b", "c %n"], None)
    (found,) = data_of(page([one], model="m", baseline=None))["sets"]
    assert found["lost"] == {"1": {"%1": ["%1 missing"], "&accelerator": ["&accelerator missing"]}}


def test_page_uses_counted_statistics():
    one = replace(
        verdict(),
        counted=counted(MODEL, REFERENCES, names="chrf"),
        baseline_counted=counted(MODEL, REFERENCES, names="chrf"),  # another score than that of its hypotheses
    )
    (found,) = data_of(page([one], model="m", baseline="n"))["sets"]
    expected = [round(chrf, 2) for chrf in sentence_chrf(MODEL, REFERENCES)]
    assert found["chrf"] == found["baselineChrf"] == expected


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


def test_differing_puts_common_text_at_every_third_place():
    assert differing("open the file.", "open a file.") == ["open ", "the", "a", " file."]
    assert differing("the file", "file") == ["", "the ", "", "file"]
    assert differing("same", "same") == ["same"] and differing("", "x") == ["", "", "x"]
    # Languages without spaces are compared character by character, accents and vowel signs stay on their letters.
    assert differing("ファイルを開く", "ファイルを閉く") == ["ファイルを", "開", "閉", "く"]
    assert differing("किताब खोलो", "किताबें खोलो") == ["", "किताब", "किताबें", " खोलो"]


def test_differing_segments_join_to_texts():
    rng = random.Random(0)
    for _ in range(300):
        one, other = ("".join(rng.choices("ab c.,\n«漢字 é\u2028", k=rng.randrange(12))) for _ in range(2))
        segments = differing(one, other)
        assert joined(segments) == (one, other)
        assert (len(segments) > 1) == (one != other)


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
    assert "5 sentences<" in dom and "worse (2)" in dom and "better (3)" in dom and "different (5)" in dom


def test_page_in_browser_sorts_and_filters(seen_after):
    number = 450
    references = [f"reference {i}" for i in range(number)]
    hypotheses = [f"reference {i}" if i % 3 else f"hypothesis {i}" for i in range(number)]
    others = [f"reference {i}" if i % 3 != 1 else f"baseline {i}" for i in range(number)]
    sources = [f"Source {i}" for i in range(number)]
    one = verdict(sources, references, hypotheses, others, "one")
    two = verdict(["only", "Save %1"], ["b", "d %1"], ["b", "d"], ["b", "d"], "two")
    text = page([one, two], model="m", baseline="n")
    seen = seen_after(
        text,
        order="click('file order')",
        end="scrollTo(0, 1e6)",
        found="click('better'); filter.value = ' sOURCE 44'; filter.dispatchEvent(new Event('input'))",
        other="filter.value = ''; filter.dispatchEvent(new Event('input')); set.value = 1;"
        "set.dispatchEvent(new Event('change')); click('all')",
        lost="const lost = document.getElementById('lost'); lost.value = '%1'; lost.dispatchEvent(new Event('change'))",
    )
    # Rows near the window are articles; the others are plain text, which the browser's search finds.
    first, rest, count = seen["order"]
    assert 50 <= len(first) < 450 and first + rest == [f"Source {i}" for i in range(450)] and count == "450 sentences"
    last, rest, count = seen["end"]
    assert last[-1] == "Source 449" and len(last) < 450 and rest + last == [f"Source {i}" for i in range(450)]
    # Better are those of i % 3 == 1; of 44, 440 to 449 that is 442, 445, 448. Another list begins at its top.
    found, rest, count = seen["found"]
    assert (sorted(found), rest, count) == (["Source 442", "Source 445", "Source 448"], [], "3 of 450 sentences")
    assert seen["other"] == [["only", "Save %1"], [], "2 sentences"]
    assert seen["lost"] == [["Save %1"], [], "1 of 2 sentences"]


def test_page_without_baseline_shows_worst_first(dom_of):
    one = verdict(others=None)
    rows = shown(dom_of(page([one], model="m", baseline=None)))
    chrf = sentence_chrf(MODEL, REFERENCES)
    assert [row[0] for row in rows] == [SOURCES[i] for i in sorted(range(5), key=lambda i: (round(chrf[i], 2), i))]
    assert all(len(row) == 3 for row in rows)
