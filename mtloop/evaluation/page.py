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
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from mtloop.evaluation.metrics import Counted, sentence_chrf
from mtloop.evaluation.significance import p_value_texts, score_text
from mtloop.evaluation.test_sets import Verdict
from mtloop.placeholders import KINDS

_MARKS = r"!-/:-@\[-`{-~«»“”‘’…。、，！？：；（）「」"
_WITHOUT_SPACES = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters
# Spaces, single marks, single characters of scripts without spaces, and the runs between: words.
_WORDS = re.compile(rf"\s+|[{_MARKS}{_WITHOUT_SPACES}]|[^\s{_MARKS}{_WITHOUT_SPACES}]+")


def page(verdicts: Sequence[Verdict], *, model: str, baseline: str | None) -> str:
    """Write the page for a model, and the baseline that it is compared with; None without one."""
    texts = files("mtloop.evaluation")
    script = texts.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {"baseline": baseline, "sets": [{"name": one.test_set.name, **_columns(one)} for one in verdicts]}
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


def _columns(verdict: Verdict) -> dict[str, Any]:
    """Return what page.js shows of each row, by column: of 20,000 rows, shared keys would be a tenth of the file.

    `lost` is by row, and has those that lost a placeholder.
    """
    test_set, others = verdict.test_set, verdict.baseline_hypotheses
    compared = test_set.references if others is None else others
    columns: dict[str, Any] = {
        "source": test_set.sources,
        "chrf": _chrf(verdict.counted, verdict.hypotheses, test_set.references),
        "segments": [differing(one, other) for one, other in zip(verdict.hypotheses, compared, strict=True)],
    }
    if others is not None:  # without a baseline, the segments hold the references
        columns["reference"] = test_set.references
        columns["baselineChrf"] = _chrf(verdict.baseline_counted, others, test_set.references)
    lost = {row: _by_title(of_row) for row, of_row in enumerate(verdict.lost) if of_row}
    return {**columns, "lost": lost} if lost else columns


def _by_title(lost: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {KINDS[kind].title: lines for kind, lines in lost.items()}


def _chrf(counted: Mapping[str, Counted], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the chrF of each sentence, from the statistics of the evaluation if it has them: 60 times faster."""
    statistics = counted["chrf"].statistics if "chrf" in counted else None
    scores = sentence_chrf(hypotheses, references) if statistics is None else statistics.sentence_scores()
    return [round(score, 2) for score in scores]


def differing(text: str, other: str) -> list[str]:
    """Cut two texts into segments: common, only in `text`, only in `other`, and so on.

    Those at places 0, 3, 6 and so on are in both; joined with those one place on they are `text`, with those two places
    on `other`.
    """
    if text == other:
        return [text]
    words, others = _WORDS.findall(text), _WORDS.findall(other)
    segments: list[str] = []
    for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, words, others).get_opcodes():
        if kind == "equal":
            segments.append("".join(words[start:end]))
            continue
        if not segments:  # nothing in common before the first difference
            segments.append("")
        segments += ["".join(words[start:end]), "".join(others[other_start:other_end])]
    return segments


def _head(verdicts: Sequence[Verdict], model: str, baseline: str | None) -> str:
    """Write what is compared, the table of scores, and how they were made."""
    names = [("model", model), *([("baseline", baseline)] if baseline is not None else [])]
    titles = ['<th class="name">metric', "<th>model"]
    marked = "Marked: words that are not in the reference. Compare two models with --baseline."
    if baseline is not None:
        titles += ["<th>baseline", "<th>difference", "<th>p"]
        marked = "p is that of the paired bootstrap test. Marked: words in which the two translations differ."
    rows = []
    for verdict in verdicts:
        set_text = f"{html.escape(verdict.test_set.name)}, {len(verdict.hypotheses):,} sentences"
        rows.append(f'<tr><td class="set" colspan="{len(titles)}">{set_text}</td></tr>')
        rows += [_score_row(verdict, metric) for metric in verdict.scores]
    return "\n".join(
        [
            '<dl class="names">',
            *(f"<dt>{what}</dt><dd>{html.escape(name)}</dd>" for what, name in names),
            '</dl>\n<div class="wide"><table>',
            f"<tr>{''.join(titles)}</tr>",
            *rows,
            f'</table></div>\n<p class="note">± is half of the 95 % confidence interval, by bootstrap. {marked}</p>',
            '<details class="note"><summary>Signatures of the metrics</summary>',
            *(
                f"<p>{one.metric.label or one.metric.title} <code>{html.escape(one.signature)}</code></p>"
                for one in verdicts[0].scores.values()
                if one.signature and not one.metric.part_of
            ),
            "</details>",
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
    title = html.escape(metric.title + ("" if metric.greater_is_better else ", lower is better"))
    return f'<tr><td class="name">{title}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
