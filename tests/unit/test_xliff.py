"""Filling XLIFF files: targets, states and inline elements, and that nothing else changes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from lxml import etree

from mtloop.data.catalogues import entries
from mtloop.data.files import InputFile
from mtloop.errors import UserError
from mtloop.placeholders import lost
from mtloop.translate.filling import FillOptions
from mtloop.translate.translator import Translation
from mtloop.translate.xliff import read_xliff

OLD = """<?xml version="1.0" encoding="UTF-8"?>
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
  <file original="a.html" source-language='en' target-language="fr"
        datatype="html"><body>
    <!-- a comment -->
{units}
  </body></file>
</xliff>
"""
NEW = """<?xml version="1.0"?>
<xliff xmlns="urn:oasis:names:tc:xliff:document:2.0" version="2.0" srcLang="en" trgLang="fr">
 <file id="f1">
{units}
 </file>
</xliff>
"""
MT = 'state-qualifier="mt-suggestion"'


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fill(content, text=None, target_lang="fr", **options):
    """Return the filled file, the number of failed segments, and the document."""
    data = content if isinstance(content, bytes) else content.encode()
    Path("a.xlf").write_bytes(data)
    document = read_xliff(InputFile("a.xlf", "a.xlf"), data, FillOptions(target_lang=target_lang, **options))
    answers = {source: source if text is None else text for source in document.sources}
    found = {source: Translation(text=one, lost=tuple(lost(source, one))) for source, one in answers.items()}
    filled, num_failed = document.fill(found)
    check_well_formed(filled)
    return filled if isinstance(content, bytes) else filled.decode(), num_failed, document


def states():
    return [state for _, _, state in entries(InputFile("a.xlf", "a.xlf"), None, None, keep_fuzzy=False)]


def check_well_formed(content):
    """Parse a file and check the order of elements and the values that the schemas of XLIFF 1.2 and 2.0 demand."""
    root = etree.fromstring(content)
    name = {child: etree.QName(child).localname for child in root.iter(etree.Element)}
    for element, kind in name.items():
        children = [name[child] for child in element.iterchildren(etree.Element)]
        if kind == "trans-unit":
            head = [child for child in children if child in ("source", "seg-source", "target")]
            assert head == children[: len(head)] and head == sorted(head, key=["source", "seg-source", "target"].index)
            assert len(set(head)) == len(head)
        elif kind == "unit":
            order = ["notes", "originalData", "segment", "ignorable"]
            places = [min(order.index(child), 2) for child in children if child in order]
            assert places == sorted(places) and children.count("notes") <= 1
        elif kind == "segment":
            assert children in (["source"], ["source", "target"])
            assert element.get("state") in (None, "initial", "translated", "reviewed", "final")
            assert element.get("subState") is None or (element.get("state") and ":" in element.get("subState"))
        elif kind == "notes":
            assert children and set(children) == {"note"}
        elif kind == "target" and name[element.getparent()] == "trans-unit":
            ids = [[inner.get("id") for inner in side.iterdescendants()
                    if inner.get("id") and name[inner] != "ept"]
                   for side in (element, element.getparent()[0])]  # fmt: skip
            assert set(ids[0]) <= set(ids[1]) and len(ids[0]) == len(set(ids[0]))


def unit(content, form=OLD, **options):
    """Return the only unit of a file after it was filled."""
    before, after = form.split("{units}")
    filled, num_failed, _ = fill(before + content + after, **options)
    assert filled.startswith(before) and filled.endswith(after)
    return filled[len(before) : len(filled) - len(after)], num_failed


# XLIFF 1.2


def test_a_target_is_added_behind_the_source_on_a_line_as_its():
    content = '<trans-unit id="1">\n      <source>Open</source>\n      <note>n</note>\n</trans-unit>'
    target = f'\n      <target state="needs-review-translation" {MT}>Ouvrir</target>'
    assert unit(content, text="Ouvrir")[0] == content.replace("</source>", f"</source>{target}")
    content = '<trans-unit id="1"><source>A</source><seg-source>A</seg-source></trans-unit>'
    expected = content.replace("</seg-source>", f'</seg-source><target state="translated" {MT}>A</target>')
    assert unit(content, no_fuzzy=True)[0] == expected


@pytest.mark.parametrize(
    "target",
    [
        "<target/>",
        "<target />",
        "<target></target>",
        "<target\n></target>",
        "<target state='needs-translation'>x</target>",
        '<target state="new">x</target>',
    ],
)
def test_an_empty_or_initial_target_is_replaced(target):
    got, _ = unit(f'<trans-unit id="1"><source>A</source>{target}</trans-unit>', no_fuzzy=True)
    (found,) = re.findall(r"</source>(.*)</trans-unit>", got, re.DOTALL)
    assert re.fullmatch(rf'<target state="translated" {MT}\s*>A</target>', found), found


def test_attributes_of_a_target_are_kept_and_an_approval_is_taken_back():
    content = (
        '<trans-unit id="1"  approved="yes"><source>A</source>'
        '<target xml:lang="fr" state="final" state-qualifier="exact-match">x</target></trans-unit>'
    )
    assert unit(content)[0] == content
    assert unit(content, retranslate=True, no_fuzzy=True)[0] == (
        '<trans-unit id="1"  approved="no"><source>A</source>'
        f'<target xml:lang="fr" state="translated" {MT}>A</target></trans-unit>'
    )


def test_what_is_not_to_be_filled_is_kept():
    for content in (
        '<trans-unit id="1"><source>A</source><target>x</target></trans-unit>',
        '<trans-unit id="1" translate="no"><source>A</source></trans-unit>',
        '<trans-unit id="1"><source></source></trans-unit>',
        '<trans-unit id="1"><source>A</source><target state="needs-review-l10n">x</target></trans-unit>',
    ):
        assert unit(content)[0] == content
    assert unit(content, retranslate_fuzzy=True, no_fuzzy=True)[0] == content.replace(
        '"needs-review-l10n">x', f'"translated" {MT}>A'
    )


def test_targets_of_other_translations_are_not_touched():
    other = "<alt-trans><source>x</source><target>y</target></alt-trans>"
    content = f'<trans-unit id="1"><source>A</source>{other}</trans-unit>'
    assert unit(content, no_fuzzy=True)[0].endswith(f">A</target>{other}</trans-unit>")


# Inline elements

INLINE = 'Open <g id="1">the <x id="2"/>file</g> &amp; &lt;b&gt; <ph id="3">%s</ph><mrk mtype="x">!</mrk>'


def target_of(text, source=INLINE):
    got, num_failed = unit(f'<trans-unit id="1"><source>{source}</source></trans-unit>', text=text, no_fuzzy=True)
    (inner,) = re.findall(r"<target [^>]*>(.*)</target>", got, re.DOTALL)
    notes = re.findall("<note .*</note>", got)
    assert bool(notes) == bool(num_failed) == ("needs-review" in got)
    return inner, notes


def test_the_model_sees_tags_and_the_target_has_the_elements():
    _, _, document = fill(OLD.replace("{units}", f'<trans-unit id="1"><source>{INLINE}</source></trans-unit>'))
    shown = 'Open <g id="1">the <x id="2"/>file</g> & <b> <ph id="3">%s</ph>!'
    assert document.sources == [shown]
    assert target_of(None) == (INLINE.replace('<mrk mtype="x">!</mrk>', "!"), [])
    moved = '<ph id="3">%s</ph> & <b> <g id="1"><x id="2"/></g> !'
    assert target_of(moved) == (moved.replace("&", "&amp;").replace("<b>", "&lt;b&gt;"), [])


def test_tags_that_a_model_renumbered_are_those_of_the_source_in_order():
    source = '<x id="a"/> and <x id="b"/> in <g id="c">d</g>'
    assert target_of('<g id="9">D</g>: <x id="7"/>, <x id="a"/>', source) == (
        '<g id="c">D</g>: <x id="b"/>, <x id="a"/>', [])  # fmt: skip


def test_a_lost_inline_element_needs_a_review_and_is_named_once():
    lost_x = INLINE.replace('<x id="2"/>', "").replace('<mrk mtype="x">!</mrk>', "!")
    note = '<note from="mtloop">&lt;x id="2"/&gt; missing</note>'
    assert target_of('Open <g id="1">the file</g> & <b> <ph id="3">%s</ph>!') == (lost_x, [note])
    inner, (note,) = target_of('Open the <x id="2"/>file</g> & <b> <ph id="3">%s</ph>!')
    assert (
        inner == 'Open the <x id="2"/>file &amp; &lt;b&gt; <ph id="3">%s</ph>!' and '&lt;g id="1"&gt; missing' in note
    )
    inner, (note,) = target_of('</g>Open the <x id="2"/>file<g id="1"> & <b> <ph id="3">%s</ph>!')
    assert "<g" not in inner and "not nested" in note
    first, _, _ = fill(
        OLD.replace("{units}", f'<trans-unit id="1"><source>{INLINE}</source></trans-unit>'), text="Ouvrir"
    )
    assert first.count('from="mtloop"') == 1
    again, _, _ = fill(first, text="Ouvrir", retranslate_fuzzy=True)
    assert again == first
    whole, num_failed, _ = fill(first, retranslate_fuzzy=True, no_fuzzy=True)
    assert num_failed == 0 and "mtloop" not in whole


def test_code_in_inline_elements_is_restored_as_it_was():
    source = (
        '<bpt id="1">&lt;b class="x"&gt;</bpt>Bold<ept id="1">&lt;/b&gt;</ept><it id="2" pos="open"><sub>t</sub></it>'
    )
    assert target_of(None, source) == (source, [])


# XLIFF 2.0


def test_segments_get_targets_and_states():
    content = (
        '<unit id="u1">\n   <originalData><data id="d1">%s</data></originalData>\n   <segment id="s1">\n'
        '    <source>Save <pc id="1">all</pc> <ph id="2" dataRef="d1"/></source>\n   </segment>\n'
        "   <ignorable><source> </source></ignorable>\n"
        '   <segment state="initial"><source>More</source><target>x</target></segment>\n</unit>'
    )
    got, _ = unit(content, NEW, no_fuzzy=True)
    target = '\n    <target>Save <pc id="1">all</pc> <ph id="2" dataRef="d1"/></target>'
    expected = content.replace('"/></source>', f'"/></source>{target}').replace('id="s1"', 'id="s1" state="translated"')
    assert got == expected.replace('"initial"', '"translated"').replace(">x<", ">More<")
    assert states() == ["untranslated", "untranslated"]
    got, _ = unit(content, NEW)
    assert got.count('state="translated" subState="mtloop:needs-review"') == 2
    Path("a.xlf").write_text(NEW.replace("{units}", got))
    assert states() == ["fuzzy", "fuzzy"]
    assert unit(got, NEW)[0] == got
    assert unit(got, NEW, retranslate_fuzzy=True, no_fuzzy=True)[0] == expected.replace(
        '"initial"', '"translated"').replace(">x<", ">More<")  # fmt: skip


@pytest.mark.parametrize("notes", ["", "\n   <notes>\n    <note>n</note>\n   </notes>"])
def test_a_note_of_2_0_is_in_notes_and_removed_again(notes):
    content = f'<unit id="u1">{notes}\n   <segment><source>Save %1</source></segment>\n</unit>'
    once, num_failed = unit(content, NEW, text="x", no_fuzzy=True)
    assert num_failed == 1 and once.count('<note category="mtloop">%1 missing</note>') == 1
    assert unit(once, NEW, text="x", retranslate=True, no_fuzzy=True)[0] == once
    whole, _ = unit(once, NEW, retranslate=True, no_fuzzy=True)
    assert whole == content.replace("<segment>", '<segment state="translated">').replace(
        "</source>", "</source><target>Save %1</target>")  # fmt: skip


# Files


def test_the_target_language_is_added_where_it_is_missing_and_said():
    units = '<unit id="u"><segment><source>A</source></segment></unit>'
    content = NEW.replace("{units}", units).replace(' trgLang="fr"', "")
    got, _, document = fill(content, target_lang="pt_BR", no_fuzzy=True)
    assert ' srcLang="en" trgLang="pt-BR">' in got and document.notes == ["line 2: trgLang is set to pt_BR"]
    with pytest.raises(UserError, match=r"^--target_lang: missing, and a\.xlf:2 has no trgLang\. Give its code"):
        fill(content, target_lang=None)
    done = content.replace("</source>", "</source><target>x</target>")
    assert fill(done, target_lang="fr")[0] == done
    with pytest.raises(UserError, match=r"^a\.xlf:3: the catalogue's language is fr, not de\. Leave the file out"):
        fill(OLD.replace("{units}", '<trans-unit id="1"><source>A</source></trans-unit>'), target_lang="de")


@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-16", "utf-16-le", "utf-8-sig", "us-ascii"])
def test_the_encoding_is_kept_and_what_it_lacks_is_a_reference(encoding):
    name = "UTF-8" if encoding == "utf-8-sig" else encoding
    units = '<trans-unit id="1"><source>A</source><target/></trans-unit><!-- caf\u00e9 -->'
    units = units.replace("\u00e9", "e") if encoding == "us-ascii" else units
    content = OLD.replace("{units}", units).replace('encoding="UTF-8"', f'encoding="{name}"')
    got, _, _ = fill(content.encode(encoding), text="\u00e9 \u65e5", no_fuzzy=True)
    shown = got.decode(encoding).replace("&#26085;", "\u65e5").replace("&#233;", "\u00e9")
    assert (shown == content.replace(
        "<target/>", f'<target state="translated" {MT}>\u00e9 \u65e5</target>'))  # fmt: skip
    assert etree.fromstring(got).findtext(".//{*}target") == "\u00e9 \u65e5"


def test_prefixes_and_line_ends_are_those_of_the_file():
    units = '<trans-unit id="1">\n  <source>A <x id="1"/></source>\n</trans-unit>'
    content = re.sub(r"<(/?)(?=[a-z])", r"<\1x:", OLD.replace("{units}", units)).replace("xmlns=", "xmlns:x=")
    content = content.replace("\n", "\r\n").encode()
    got, _, _ = fill(content, no_fuzzy=True)
    target = f'\r\n  <x:target state="translated" {MT}>A <x:x id="1"/></x:target>'.encode()
    assert got == content.replace(b"</x:source>", b"</x:source>" + target)


@pytest.mark.parametrize("seed", range(10))
def test_generated_files_keep_all_but_targets_and_states(seed):
    random_ = random.Random(seed)
    pieces = [
        "a ",
        "<g id='{}'>b</g>",
        '<x\n id="{}"/>',
        "<!-- c -->",
        "&#233;",
        "<![CDATA[<d>]]>",
        '<ph id="{}">e</ph>',
    ]
    units = []
    for number in range(20):
        source = "".join(random_.choices(pieces, k=4))
        for number_in in range(4):
            source = source.replace("{}", str(number_in), 1)
        target = random_.choice(["", "<target/>", '<target state="needs-adaptation">f</target>', "<target>g</target>"])
        extra = random_.choice(["", "<note>h</note>", "<alt-trans><target>i</target></alt-trans>"])
        units.append(f"    <trans-unit id='{number}'>\n<source>{source}</source>{target}{extra}</trans-unit>")
    content = OLD.replace("{units}", "\n".join(units))
    for options in ({"no_fuzzy": True}, {"retranslate_fuzzy": True}, {"retranslate": True}):
        got, num_failed, document = fill(content, **options)
        assert num_failed == 0 and document.num_entries == 20

        def frame(text):  # an added target begins on a separate line, as the source does
            return re.sub(r"(?<!<alt-trans>)\n?<target[^>]*?(/>|>.*?</target>)", "", text, flags=re.DOTALL)

        assert frame(got) == frame(content)
        Path("a.xlf").write_text(got)
        assert set(states()) <= ({"kept", "fuzzy"} if options != {"retranslate": True} else {"fuzzy"})
