"""Write the page of `--compare`: every sentence with its translations and chrF, in one file that loads nothing.

Texts get into it in two ways: escaped, in the head; and as JSON in which no markup is left, from which page.js takes
them as text. Must not know models: it takes the results of an evaluation.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from mtloop.evaluation.metrics import sentence_chrf
from mtloop.evaluation.significance import p_value_texts, score_text
from mtloop.evaluation.test_sets import Verdict

_MARKS = r"!-/:-@\[-`{-~«»“”‘’…。、，！？：；（）「」"
_WITHOUT_SPACES = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters
# Spaces, single marks, single characters of scripts without spaces, and the runs between: words.
_WORDS = re.compile(rf"\s+|[{_MARKS}{_WITHOUT_SPACES}]|[^\s{_MARKS}{_WITHOUT_SPACES}]+")


def page(verdicts: Sequence[Verdict], *, model: str, baseline: str | None) -> str:
    """Write the page for a model, and the baseline that it is compared with; None without one."""
    texts = files("mtloop.evaluation")
    script = texts.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {"baseline": baseline, "sets": [{"name": one.test_set.name, "rows": _rows(one)} for one in verdicts]}
    title = f"{_short(model)} against {_short(baseline)}" if baseline is not None else _short(model)
    return Template(texts.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        head=_head(verdicts, model, baseline),
        data=_json(data),
        script=script,
        script_hash=f"sha256-{digest}",  # the browser runs this script and no other, and fetches nothing
    )


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1] or model


def _json(data: Any) -> str:
    """Write JSON that can stand in a script element: no character of it means anything to HTML."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _rows(verdict: Verdict) -> list[dict[str, Any]]:
    """List what page.js shows of each row; hypotheses are cut where they differ from the other, or the reference."""
    test_set, others = verdict.test_set, verdict.baseline_hypotheses
    chrf = sentence_chrf(verdict.hypotheses, test_set.references)
    other_chrf = None if others is None else sentence_chrf(others, test_set.references)
    rows = []
    texts = zip(test_set.sources, test_set.references, verdict.hypotheses, strict=True)
    for number, (source, reference, hypothesis) in enumerate(texts):
        segments, other_segments = differing(hypothesis, reference if others is None else others[number])
        row = {"source": source, "reference": reference, "model": segments, "chrf": round(chrf[number], 2)}
        if other_chrf is not None:
            row |= {"baseline": other_segments, "baselineChrf": round(other_chrf[number], 2)}
        rows.append(row)
    return rows


def differing(text: str, other: str) -> tuple[list[str], list[str]]:
    """Cut two texts into segments: those at even places stand in both, those at odd places in one alone.

    Joined, the segments are the text again.
    """
    if text == other:
        return [text], [other]
    words, others = _WORDS.findall(text), _WORDS.findall(other)
    mine: list[str] = []
    theirs: list[str] = []
    for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, words, others).get_opcodes():
        if not mine and kind != "equal":  # nothing in common before the first difference
            mine, theirs = [""], [""]
        mine.append("".join(words[start:end]))
        theirs.append("".join(others[other_start:other_end]))
    return mine, theirs


def _head(verdicts: Sequence[Verdict], model: str, baseline: str | None) -> str:
    """Write what is compared, the table of scores, and how they were made."""
    names = [("model", model), *([("baseline", baseline)] if baseline is not None else [])]
    titles = ['<th class="name">test set', "<th>sentences", '<th class="name">metric', "<th>model"]
    marked = "Marked: words that are not in the reference. Compare two models with --baseline."
    if baseline is not None:
        titles += ["<th>baseline", "<th>difference", "<th>p"]
        marked = "p is that of the paired bootstrap test. Marked: words in which the two translations differ."
    return "\n".join(
        [
            '<dl class="names">',
            *(f"<dt>{what}</dt><dd>{html.escape(name)}</dd>" for what, name in names),
            '</dl>\n<div class="wide"><table>',
            f"<tr>{''.join(titles)}</tr>",
            *(_score_row(verdict, metric) for verdict in verdicts for metric in verdict.scores),
            f'</table></div>\n<p class="note">± is half of the 95 % confidence interval, by bootstrap. {marked}</p>',
            *(
                f'<p class="note">{interval.metric.label or interval.metric.title} '
                f"<code>{html.escape(interval.signature)}</code></p>"
                for interval in verdicts[0].scores.values()
                if interval.signature
            ),
        ]
    )


def _score_row(verdict: Verdict, name: str) -> str:
    found = verdict.scores[name]
    metric = found.metric
    cells = [score_text(found.score, found.half_width, decimals=metric.decimals)]
    if verdict.baseline_scores is not None:
        other = verdict.baseline_scores[name]
        cells += [
            score_text(other.score, other.half_width, decimals=metric.decimals),
            f"{verdict.gain(name):+.{metric.decimals}f}",
            *(p_value_texts(found.half_width, found.p_value) or [""]),
        ]
    first = ""
    if name == next(iter(verdict.scores)):
        span = f'rowspan="{len(verdict.scores)}"'
        set_name = html.escape(verdict.test_set.name)
        first = f'<td class="name" {span}>{set_name}</td><td {span}>{len(verdict.hypotheses):,}</td>'
    title = html.escape(metric.title + ("" if metric.greater_is_better else ", lower is better"))
    return f'<tr>{first}<td class="name">{title}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
