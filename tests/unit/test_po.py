"""Filling gettext catalogues: what is filled and how it is marked, and that nothing else changes."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mtloop.data.catalogues import parse_gettext
from mtloop.data.files import InputFile
from mtloop.errors import UserError
from mtloop.placeholders import lost
from mtloop.translate.filling import FillOptions
from mtloop.translate.po import read_po
from mtloop.translate.translator import Translation

SHARED = Path(__file__).parents[3] / "shared" / "data" / "po"
LANGUAGES = {"ru": "ru", "ja": "ja", "de": "de"}

HEADER = 'msgid ""\nmsgstr ""\n"Language: fr\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
HEADER += '"Plural-Forms: nplurals=2; plural=(n > 1);\\n"\n'


def translation(source, text=None, **marks):
    text = source.swapcase() if text is None else text
    return Translation(text=text, lost=tuple(lost(source, text)), **marks)


def fill(content, translate=translation, target_lang="fr", name="a.po", **options):
    """Return the filled catalogue, the number of failed entries, and the document."""
    data = content if isinstance(content, bytes) else content.encode()
    document = read_po(InputFile(name, name), data, FillOptions(target_lang=target_lang, **options))
    filled, num_failed = document.fill({text: translate(text) for text in document.sources})
    return filled if isinstance(content, bytes) else filled.decode(), num_failed, document


def filled(entry, *args, **options):
    """Return an entry below a header after it was filled."""
    text, _, _ = fill(f"{HEADER}\n{entry}", *args, **options)
    assert text.startswith(f"{HEADER}\n")
    return text.removeprefix(f"{HEADER}\n")


def frame(content):
    """Return what filling must not change: all lines but those of msgstr, our comments, fuzzy and previous msgids."""
    lines, in_msgstr = [], False
    for line in content.split(b"\n"):
        text = line.strip()
        in_msgstr = text.startswith(b"msgstr") or (in_msgstr and text.startswith(b'"'))
        if in_msgstr or text.startswith((b"# mtloop: ", b"#|")):
            continue
        if text.startswith(b"#,"):
            flags = [flag.strip() for flag in text[2:].split(b",") if flag.strip() != b"fuzzy"]
            if not flags:
                continue
            line = b"#, " + b", ".join(flags)
        lines.append(line)
    return lines


def units(content):
    """Return all that translate-toolkit reads of each entry, but for its translation and mark."""
    catalogue, _ = parse_gettext(InputFile("a.po", "a.po"), content)
    return [
        (unit.source, unit.getcontext(), unit.getlocations(), unit.isobsolete(), unit.isheader(),
         [line for line in unit.othercomments if "mtloop: " not in line], unit.automaticcomments,
         "" if not unit.isheader() and not unit.isobsolete() else str(unit.target))
        for unit in catalogue.units
    ]  # fmt: skip


# What is filled


def test_an_untranslated_entry_is_filled_and_marked():
    assert filled('#: a.c:1\n#, c-format\nmsgid "Open %s"\nmsgstr ""\n', lambda _: translation(_, "Ouvrir %s")) == (
        '#: a.c:1\n#, fuzzy, c-format\nmsgid "Open %s"\nmsgstr "Ouvrir %s"\n'
    )
    assert filled('#: a.c:1\nmsgid "Open"\nmsgstr ""\n') == '#: a.c:1\n#, fuzzy\nmsgid "Open"\nmsgstr "oPEN"\n'
    assert filled('#: a.c:1\nmsgid "Open"\nmsgstr ""\n', no_fuzzy=True) == '#: a.c:1\nmsgid "Open"\nmsgstr "oPEN"\n'


def test_translated_and_fuzzy_entries_are_kept_unless_asked_for():
    entries = 'msgid "A"\nmsgstr "x"\n\n#, fuzzy, c-format\n#| msgid "Bb"\nmsgid "B"\nmsgstr "y"\n'
    assert filled(entries) == filled(entries, no_fuzzy=True) == entries
    fuzzy = filled(entries, retranslate_fuzzy=True)
    assert fuzzy == entries.replace('"y"', '"b"')
    assert filled(entries, retranslate_fuzzy=True, no_fuzzy=True) == (
        'msgid "A"\nmsgstr "x"\n\n#, c-format\nmsgid "B"\nmsgstr "b"\n'
    )
    everything = filled(entries, retranslate=True, no_fuzzy=True)
    assert everything == 'msgid "A"\nmsgstr "a"\n\n#, c-format\nmsgid "B"\nmsgstr "b"\n'


def test_a_lost_placeholder_is_fuzzy_with_a_comment_and_once():
    entry = '# of a translator\n#. of the source\nmsgid "Open %1"\nmsgstr ""\n'
    text = f"{HEADER}\n{entry}"
    for _ in range(2):  # the second run removes the comment of the first
        text, num_failed, _ = fill(text, lambda _: translation(_, "Ouvrir"), no_fuzzy=True, retranslate=True)
        assert num_failed == 1
        assert text.removeprefix(f"{HEADER}\n") == (
            '# of a translator\n# mtloop: %1 missing\n#. of the source\n#, fuzzy\nmsgid "Open %1"\nmsgstr "Ouvrir"\n'
        )
    text, num_failed, _ = fill(text, no_fuzzy=True, retranslate_fuzzy=True)
    assert (text.removeprefix(f"{HEADER}\n"), num_failed) == (entry.replace('""', '"oPEN %1"'), 0)


@pytest.mark.parametrize(
    ("marks", "comment"),
    [
        ({"text": " "}, "the translation is empty"),
        ({"is_cut": True}, "the translation may be unfinished"),
        ({"is_forced": True}, "check the places of the placeholders"),
        ({"is_source_cut": True, "is_cut": True}, "the source was too long for the model, and cut"),
    ],
)
def test_a_translation_that_is_cut_or_empty_needs_a_review(marks, comment):
    text = filled('msgid "A"\nmsgstr ""\n', lambda _: translation(_, **marks), no_fuzzy=True)
    assert text.startswith(f'# mtloop: {comment}\n#, fuzzy\nmsgid "A"\n')


@pytest.mark.parametrize(
    ("flags", "text", "comment"),
    [
        ("c-format", "%d de %s", "%s %d in another order"),
        ("c-format", "%2$d de %1$s", ""),
        ("c-format", "%s %d, 5 % de", "% added"),
        ("no-c-format", "%d de %s", ""),
        ("kde-format", "%d de %s", ""),
    ],
)
def test_arguments_of_printf_keep_their_order(flags, text, comment):
    got = filled(f'#, {flags}\nmsgid "%s %d"\nmsgstr ""\n', lambda _: translation(_, text), no_fuzzy=True)
    assert got.startswith(f"# mtloop: {comment}\n#, fuzzy, {flags}" if comment else f"#, {flags}\n"), got


def test_white_space_at_the_edges_is_that_of_the_source():
    assert filled('msgid " A:\\n"\nmsgstr ""\n', lambda _: translation(_, "À :"), no_fuzzy=True) == (
        'msgid " A:\\n"\nmsgstr " À :\\n"\n'
    )
    assert filled('msgid " \\n"\nmsgstr ""\n', no_fuzzy=True) == 'msgid " \\n"\nmsgstr " \\n"\n'


def test_control_characters_of_a_model_are_left_out():
    assert 'msgstr "a b\\tc\\\\\\"d"\n' in filled(
        'msgid "A"\nmsgstr ""\n', lambda _: translation(_, 'a b\tc\\"\x07\x1bd\r')
    )


# Plural forms

FILES = 'msgid "One file"\nmsgid_plural "%n files"\n'
RUSSIAN = "nplurals=3; plural=n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2;"


def plural(rule, msgstr='msgstr[0] ""\n', sources=FILES, **options):
    header = HEADER.replace("nplurals=2; plural=(n > 1);", rule) if rule else HEADER[: HEADER.index('"Plural-Forms')]
    text, _, document = fill(f"{header}\n{sources}{msgstr}", no_fuzzy=True, **options)
    return re.findall(r'^msgstr\[\d\] "(.*)"$', text.removeprefix(header), re.MULTILINE), document.notes


def test_every_form_of_the_rule_is_filled():
    assert plural("nplurals=2; plural=(n > 1);")[0] == ["oNE FILE", "%N FILES"]
    assert plural("nplurals=1; plural=0;")[0] == ["%N FILES"]
    # Of KDE: one thing has the last form.
    kde = "nplurals=4; plural=n==1 ? 3 : n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 ? 1 : 2;"
    assert plural(kde)[0] == ["%N FILES"] * 3 + ["oNE FILE"]


def test_a_form_that_also_counts_others_keeps_the_number():
    assert plural(RUSSIAN)[0] == ["%N FILES"] * 3  # the form of 1 is also that of 21
    with_number = FILES.replace("One", "%n")
    assert plural(RUSSIAN, sources=with_number)[0] == ["%N FILE", "%N FILES", "%N FILES"]


def test_without_a_rule_in_the_header_the_language_gives_it_and_that_is_said():
    forms, notes = plural("", target_lang="fra_Latn")
    assert (forms, notes) == (["oNE FILE", "%N FILES"], ["no Plural-Forms in the header: 2 forms by the language, fr"])
    header = HEADER[: HEADER.index('"Plural-Forms')].replace("fr", "")
    text, _, document = fill(f'{header}\n{FILES}msgstr[0] ""\nmsgstr[1] ""\n', target_lang=None, no_fuzzy=True)
    assert '"oNE FILE"' in text and '"%N FILES"' in text and "--target_lang" in document.notes[0]


def test_the_missing_forms_of_a_translated_entry_are_filled():
    assert plural("nplurals=2; plural=(n > 1);", 'msgstr[0] "Un"\nmsgstr[1] ""\n')[0] == ["Un", "%N FILES"]
    assert plural("nplurals=2; plural=(n > 1);", 'msgstr[0] "Un"\nmsgstr[1] "%n"\n')[0] == ["Un", "%n"]


def test_the_inline_forms_of_kde_2_are_filled():
    entry = 'msgid "_: menu\\n"\n"Open"\nmsgstr ""\n\nmsgid "_n: %n file\\n"\n"%n files"\nmsgstr ""\n'
    texts = re.findall(r'^msgstr (".*"\n(?:".*"\n)*)', filled(entry, no_fuzzy=True), re.MULTILINE)
    assert texts == ['"oPEN"\n', '""\n"%N FILE\\n"\n"%N FILES"\n']


# Lines


def test_lines_are_wrapped_as_the_file_wraps():
    words = ["word"] * 40
    entry = f'msgid "{" ".join(words)}"\nmsgstr ""\n'
    lines = [" ".join(words[:15]) + " ", " ".join(words[15:30]) + " ", " ".join(words[30:])]
    wrapped = 'msgid ""\n' + "".join(f'"{line}"\n' for line in lines) + 'msgstr "kept"\n\n'
    expected = 'msgstr ""\n' + "".join(f'"{line.swapcase()}"\n' for line in lines)
    assert filled(wrapped + entry).endswith(expected)
    in_one = f'msgstr "{" ".join(words).swapcase()}"\n'
    assert filled(entry).endswith(in_one)
    assert filled(f"{wrapped}#, no-wrap\n{entry}").endswith(in_one)
    assert 'msgstr ""\n"A\\n"\n"B"\n' in filled('msgid ""\n"a\\n"\n"b"\nmsgstr ""\n')
    narrow = 'msgid ""\n' + '"word word word word word word word "\n' * 3 + '"word"\nmsgstr "kept"\n\n'
    narrow += narrow.replace('"word"', '"other"')
    assert max(map(len, filled(narrow + entry).split("msgstr")[-1].splitlines())) == len(narrow.splitlines()[1])


def test_line_ends_and_a_missing_last_one_are_kept():
    content = f'{HEADER}\nmsgid "A"\nmsgstr ""'.replace("\n", "\r\n").encode()
    text, _, _ = fill(content)
    assert text == content[:-2].replace(b'msgid "A"', b'#, fuzzy\r\nmsgid "A"') + b'"a"'


def test_the_charset_of_the_file_is_kept():
    content = HEADER.replace("UTF-8", "ISO 8859-1").encode() + b'\nmsgid "A"\nmsgstr ""\n\nmsgid "B"\nmsgstr "\xe9"\n'
    text, _, _ = fill(content, lambda _: translation(_, "à"), no_fuzzy=True)
    assert text == content.replace(b'""\n\nmsgid "B"', b'"\xe0"\n\nmsgid "B"')
    with pytest.raises(
        UserError, match=r"^a\.po:7: .*8859-1 cannot hold the translation \(got 'ś'\)\. Convert the file"
    ):
        fill(content, lambda _: translation(_, "ś"))


def test_obsolete_entries_and_stray_comments_are_kept():
    entries = '#~ msgid "Old"\n#~ msgstr ""\n\n# a stray comment\n'
    assert filled(entries, retranslate=True) == entries


# Headers

TEMPLATE = """# TITLE.
#, fuzzy
msgid ""
msgstr ""
"Language-Team: LANGUAGE\\n"
"Language: \\n"
"Content-Type: text/plain; charset=CHARSET\\n"
"Plural-Forms: nplurals=INTEGER; plural=EXPRESSION;\\n"

msgid "A"
msgstr ""
"""


def test_a_template_gets_the_fields_of_its_language():
    text, _, document = fill(
        TEMPLATE, lambda _: translation(_, "é"), name="a.pot", target_lang="fra_Latn", no_fuzzy=True
    )
    rule = document.rule.header
    assert rule.startswith("nplurals=2; ")
    expected = TEMPLATE.replace("#, fuzzy\n", "").replace("Language: ", "Language: fr").replace("CHARSET", "UTF-8")
    expected = expected.replace("nplurals=INTEGER; plural=EXPRESSION;", rule).replace(
        '"A"\nmsgstr ""', '"A"\nmsgstr "é"'
    )
    assert text == expected and document.notes == [f"header: Language fr and Plural-Forms {rule}"]
    without = "".join(line for line in TEMPLATE.splitlines(True) if "Plural" not in line and "Language: " not in line)
    text, _, _ = fill(without, target_lang="pt-BR", name="a.pot")
    assert text.index('"Language: pt_BR\\n"\n"Plural-Forms: ') < text.index('msgid "A"')
    with pytest.raises(UserError, match=r"^--target_lang: missing, and a\.pot is a template"):
        fill(TEMPLATE, name="a.pot", target_lang=None)


def test_a_catalogue_of_another_language_is_refused():
    with pytest.raises(UserError, match=r"^a\.po:1: the catalogue's language is fr, not de\. Leave the file out, or"):
        fill(HEADER, target_lang="de")
    fill(HEADER.replace("fr", "fr_CA"))


# Properties


def generated(random_):
    """Return a catalogue with entries of all sorts."""
    newline = random_.choice(["\n", "\n", "\r\n"])
    entries = [HEADER]
    words = ["Open", "%1", "the", "file", "<b>", "</b>", "日本語", "été", '\\"', "\\t", "100%", "&OK", "%s", "\\\\"]
    for number in range(random_.randrange(1, 30)):
        text = " ".join(random_.choices(words, k=random_.choice([1, 3, 30])))
        end = random_.choice(["", "", "\\n", " "])
        marker = random_.choice(["", "", "#~ "])
        comments = random_.sample(["# note\n", "#. auto\n", "#: a.c:1 b.c:2\n"], k=random_.randrange(4))
        flags = random_.choice(["", "#, fuzzy\n", "#, c-format, fuzzy\n", "#,fuzzy\n", "#, kde-format\n"])
        previous = random_.choice(["", '#| msgid "x"\n']) if flags else ""
        lines = [f'msgctxt "c{number}"'] if random_.random() < 0.3 else []
        lines += [f'msgid ""\n{marker}"{number} {text}"\n{marker}"{end}"' if random_.random() < 0.3
                  else f'msgid "{number} {text}{end}"']  # fmt: skip
        target = random_.choice(["", "", "x", "y z"]) + end
        if random_.random() < 0.2:
            lines += [f'msgid_plural "{text}s{end}"', f'msgstr[0] "{target}"', f'msgstr[1] "{target}"']
        else:
            lines += [f'msgstr "{target}"']
        comments = [] if marker else [*sorted(comments, reverse=True), flags, previous]
        entries.append("".join(comments) + "".join(f"{marker}{line}\n" for line in lines))
    return "\n".join(entries).replace("\n", newline).encode()


def check_properties(content, **options):
    done, num_failed, document = fill(content, **options)
    assert frame(done) == frame(content)
    assert units(done) == units(content)
    document.entries.clear()
    assert document.fill({}) == (content, 0)
    again, _, second = fill(done, **{**options, "retranslate": False, "retranslate_fuzzy": False})
    assert again == done and not second.num_chosen, second.sources
    return num_failed, document


ALL_OPTIONS = [{}, {"no_fuzzy": True}, {"no_fuzzy": True, "retranslate_fuzzy": True}, {"retranslate": True}]


@pytest.mark.parametrize("seed", range(12))
def test_generated_catalogues_keep_all_but_what_is_filled(seed):
    content = generated(random.Random(seed))
    for options in ALL_OPTIONS:
        check_properties(content, **options)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.po")), ids=lambda path: path.name)
def test_real_catalogues_keep_all_but_what_is_filled(path, is_full):
    content = path.read_bytes()
    target_lang = LANGUAGES.get(path.stem.rpartition(".")[2], "fr")
    for options in ALL_OPTIONS if is_full else ALL_OPTIONS[2:3]:
        check_properties(content, target_lang=target_lang, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_untranslated"), [("KDE_okular.ja.po", 246), ("newsboat.fr.po", 17), ("kde2_krn.nocharset.fr.po", 21)]
)
@pytest.mark.parametrize("options", ALL_OPTIONS[1:3], ids=["untranslated", "fuzzy"])
def test_msgfmt_accepts_filled_catalogues(name, num_untranslated, options, tmp_path):
    if shutil.which("msgfmt") is None:
        pytest.skip("msgfmt (gettext) is not installed")
    if not (SHARED / name).exists():
        pytest.skip("shared/data/po is absent")
    content = (SHARED / name).read_bytes()

    def identity(source):
        return translation(source, source)

    done, num_failed, document = fill(content, identity, target_lang=name.split(".")[-2], **options)
    assert num_failed == 0 and frame(done) == frame(content)
    num_fuzzy = 0 if "retranslate_fuzzy" in options else content.count(b"#, fuzzy")
    assert document.num_chosen >= num_untranslated
    (tmp_path / "done.po").write_bytes(done)
    command = ["msgfmt", "--check", "--statistics", "-o", "/dev/null", str(tmp_path / "done.po")]
    checked = subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace", env={"LC_ALL": "C"}
    )
    assert checked.returncode == 0, checked.stderr
    assert "untranslated" not in checked.stderr
    assert (" fuzzy" in checked.stderr) == bool(num_fuzzy)
