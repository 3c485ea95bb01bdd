"""Placeholders are found by kind, and equal ones have equal keys."""

import gzip
import json
from pathlib import Path

import pytest

from mtloop.placeholders import CODE, KINDS, keys, lost, placeholders, spans

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "kde_en_fr.jsonl.gz"


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("%1x%2 of %L3", "numbered", ["%1", "%2", "%L3"]),
        ("%n file", "count", ["%n"]),
        ("%name %s", "printf", ["%n", "%s"]),
        ("%(size)d %-5s %2$s %.1f%% %ld", "printf", ["%(size)d", "%-5s", "%2$s", "%.1f", "%ld"]),
        ("100%% %1", "percent", ["%%"]),
        ("{0} {} {name!r} {n:.2f} ${x} {{y}} $HOME %{z}", "braces",
         ["{0}", "{}", "{name!r}", "{n:.2f}", "${x}", "{{y}}", "$HOME", "%{z}"]),
        ("{ a block; } US$5", "braces", []),
        ("A &amp; B&nbsp;&#160;: &eacute; &kde;", "entity", ["&amp;", "&kde;"]),
        ("&File A && B &amp; R&D &nbsp; &#160;", "accelerator", ["&", "&"]),
        ("<a href='x'>y</a><br/> 1 < 2 > 0", "tag", ["<a href='x'>", "</a>", "<br/>"]),
        ("<empty>", "tag", []),
        ("</b>", "tag", ["</b>"]),
        ("a <not available> <br /> <b>", "tag", ["<br />", "<b>"]),
        ("see https://a.org/%C3%A9?b=1&c=2.", "url", ["https://a.org/%C3%A9?b=1&c=2"]),
        ("see https://a.org/%C3%A9?b=1&c=2.", "printf", []),
        ("see https://a.org/?b=1&c=2.", "accelerator", []),
        ("mail a.b@c.org.", "email", ["a.b@c.org"]),
        ("a\nb\n", "newline", ["\n", "\n"]),
        ("  a b\n", "edge_space", ["  ", "\n"]),
        ("wait... or…", "ellipsis", ["...", "…"]),
        ("1,024 of 3 and %1 {2} &#160; h264", "number", ["1,024", "3", "264"]),
        ("tray 3 500 or 1\u00a0024 1 2", "number", ["3 500", "1\u00a0024", "1", "2"]),
    ],
)  # fmt: skip
def test_placeholders_finds_kind(text, kind, found):
    assert [one.text for one in placeholders(text, [kind]).get(kind, [])] == found
    for one in placeholders(text, [kind]).get(kind, []):
        assert text[one.start : one.end] == one.text


@pytest.mark.parametrize(("text", "kind"), [("a ", "edge_space"), ("\u3000a", "edge_space"), ("٣", "number"),
                                            ("a\n", "newline"), ("ftp://a", "url"), ("$a", "braces")])  # fmt: skip
def test_placeholders_finds_each_sign(text, kind):
    assert kind in placeholders(text)


def test_keys_of_what_a_translation_may_change():
    assert keys("%1$s %2$d") == keys("%d %s")
    assert keys("&Open...") == keys("Ö&ffnen…")
    assert keys("1,024 kB") == keys("1\u00a0024 ko")
    assert keys("<a href='en'>x</a>") == keys("<a href='fr'>x</a>")
    assert keys("%1 %2") != keys("%1 %1")
    assert keys("<a href='en'>x</a>") != keys("<a title='en'>x</a>")
    assert keys("<a title='a b=c' href=x>") == keys('<a href=x  title="d">')


def test_spans_do_not_overlap_and_keep_the_longer():
    text = '<a href="https://a.org/%1">%2 {x}</a>'
    assert [one.text for one in spans(text)] == ['<a href="https://a.org/%1">', "%2", "{x}", "</a>"]


def test_lost_names_what_is_missing_and_added():
    assert lost("%1 of %2", "%1 von %1") == ["%2 missing", "%1 added"]
    assert lost("<b>%s</b> &x", "<b>%s</b> x") == []
    assert lost("&x\n", "x", list(KINDS)) == ["&accelerator missing", "newline missing", "edge space missing"]


@pytest.mark.timeout(60)  # quadratic: minutes
def test_placeholders_of_a_long_line_takes_linear_time():
    for piece in ("a", "a.", "<a ", "&a", "{", "%(", "1.", "http://", "a@a.", " "):
        text = piece * (20_000 // len(piece))
        placeholders(text[:20_000])


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.exists(), reason=f"{CORPUS} is absent")
def test_references_of_kde_keep_every_numbered_variable():
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        pairs = [json.loads(line)["translation"] for line in file]
    with_variable = [pair for pair in pairs if "%" in pair["en"] and placeholders(pair["en"], ["numbered"])]
    assert len(with_variable) > 3_900  # ../shared/data/README.md counts 3,971 sources with %1
    assert [pair for pair in with_variable if lost(pair["en"], pair["fr"], ["numbered"])] == []
    assert set(CODE) < set(KINDS)
