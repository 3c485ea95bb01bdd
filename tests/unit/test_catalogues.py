"""Entries of gettext catalogues, translation memories and XLIFF files: states, plural forms, charsets, safety."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import os
import re
import signal
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mtloop.config.inputs import DataConfig
from mtloop.data.catalogues import entries
from mtloop.data.files import InputFile, unpacked_ending
from mtloop.data.load import load_corpus
from mtloop.data.readers import Records
from mtloop.data.rows import REASONS, Columns
from mtloop.data.texts import Texts
from mtloop.errors import UserError
from mtloop.translate.catalogues import FILLABLE, Filling, Job
from mtloop.translate.filling import FillOptions
from mtloop.translate.translator import Translation
from tests.support.catalogues import PO, TMX, XLIFF_1, XLIFF_2, compiled, mutation

SHARED = Path(__file__).parents[3] / "shared" / "data" / "po"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(name, content=None, source="en", target="fr", **options):
    """Return [(where, translation, state)] of a file that is written first."""
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = entries(InputFile(name, name), source, target, keep_fuzzy=options.get("keep_fuzzy", False))
    return [(where, row["translation"], state) for where, row, state in found]


def pairs(name, content=None, **options):
    """Return the pairs of the entries that are used."""
    return [tuple(texts.values()) for _, texts, state in read(name, content, **options) if state == "kept"]


def error_of(name, content, **options):
    with pytest.raises(UserError) as caught:
        read(name, content, **options)
    return str(caught.value)


# gettext


def test_a_catalogue_gives_pairs_and_counts_what_it_leaves_out():
    found = read("a.po", PO)
    assert Counter(state for _, _, state in found) == {
        "header": 1, "kept": 4, "fuzzy": 1, "untranslated": 1, "obsolete": 1,
    }  # fmt: skip
    assert [(where, texts) for where, texts, state in found if state == "kept"] == [
        ("a.po:8", {"en": "&Open <b>%1</b>\n", "fr": "&Ouvrir <b>%1</b>\n"}),
        ("a.po:22", {"en": "%n file", "fr": "%n fichier"}),
        ("a.po:22", {"en": "%n files", "fr": "%n fichiers"}),
        ("a.po:27", {"en": "long text", "fr": "texte long"}),
    ]
    assert ("Close", "Fermé") in pairs("a.po", keep_fuzzy=True)


def test_context_comment_references_and_file_are_columns():
    Path("a.po").write_text(PO)
    records = Records(InputFile("a.po", "a.po"), "catalogue", Columns("en", "fr"))
    rows = [row for _, row in records if records.reason == 0]
    assert list(records.names) == ["translation", "context", "comment", "references", "file"]
    assert list(rows[0].values())[1:] == ["menu", "Of the menu.", "main.cpp:3 menu.cpp:9", "a.po"]


@pytest.mark.parametrize(
    ("rule", "forms", "expected"),
    [
        ("nplurals=1; plural=0;", ["ファイル"], [("%n files", "ファイル")]),
        ("nplurals=2; plural=n != 1;", ["a", "b"], [("%n file", "a"), ("%n files", "b")]),
        # Russian of KDE: the form for one thing is the last.
        ("nplurals=4; plural=n==1 ? 3 : n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 ? 1 : 2;", ["a", "b", "c", "d"],
         [("%n files", "a"), ("%n files", "b"), ("%n files", "c"), ("%n file", "d")]),
        ("nplurals=2; plural=__import__('os');", ["a", "b"], [("%n file", "a"), ("%n files", "b")]),
        ("nplurals=2; plural=n/0;", ["a", "b"], [("%n file", "a"), ("%n files", "b")]),
    ],
)  # fmt: skip
def test_plural_forms_are_paired_by_the_rule_of_the_target(rule, forms, expected):
    texts = "".join(f'msgstr[{number}] "{form}"\n' for number, form in enumerate(forms))
    head = f'msgid ""\nmsgstr "Plural-Forms: {rule}\\n"\n\n'
    assert pairs("a.po", f'{head}msgid "%n file"\nmsgid_plural "%n files"\n{texts}') == expected


def test_the_inline_forms_of_kde_2_are_read():
    content = 'msgid ""\nmsgstr "x\\n"\n\nmsgid "_: menu\\n"\n"Open"\nmsgstr "Ouvrir"\n\n'
    content += 'msgid "_n: %n file\\n"\n"%n files"\nmsgstr "%n fichier\\n"\n"%n fichiers"\n'
    assert pairs("a.po", content) == [("Open", "Ouvrir"), ("%n file", "%n fichier"), ("%n files", "%n fichiers")]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("ISO-8859-1", "latin-1"), ("ISO 8859-1", "latin-1"), (" koi8-r", "koi8-r"), ("CHARSET", "utf-8"),
        ("unknown-9", "utf-8"), ("unknown-9", "latin-1"), ("rot13", "utf-8"), ("UTF-8", "utf-8-sig"),
    ],
)  # fmt: skip
def test_charsets_are_read_as_declared_and_broken_declarations_too(declared, encoding):
    text = "файл" if encoding == "koi8-r" else "été"
    content = f'msgid ""\nmsgstr "Content-Type: text/plain; charset={declared}\\n"\n\nmsgid "a"\nmsgstr "{text}"\n'
    assert pairs("a.po", content.encode(encoding)) == [("a", text)]


def test_a_byte_outside_of_the_declared_charset_is_named():
    content = b'msgid ""\nmsgstr "charset=UTF-8\\n"\n\nmsgid "a"\nmsgstr "\xe9t\xe9"\n'
    assert error_of("a.po", content).startswith("a.po:5: not UTF-8 (got byte 0xe9).")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('msgid "a"\nmsgstr "b\n', 2),
        ('msgid "a"\nmsgid_plural "b"\nmsgstr[1] "c"\nmsgstr[0] "d"\n', 1),
        ('msgid "a"\nmsgstr "b"\n\n\nmsgid "c"\nmsgid_plural "b"\nmsgstr[x] "d"\n', 1),
        ('msgid "a"\nmsgid "b"\n', 2),
        ('msgid "a"\nmsgstr "b"\n\nplain text\n', 4),
        ("not a catalogue\n", 1),
    ],
)
def test_a_malformed_catalogue_is_named_with_its_line(content, line):
    assert error_of("a.po", content).startswith(f"a.po:{line}: malformed gettext catalogue (")


def test_a_catalogue_of_another_language_is_refused():
    Path("a.po").write_text(PO)
    with pytest.raises(UserError, match=r"^--target_lang: no row of a\.po has this language \(got de\). .*en, fr"):
        load_corpus(DataConfig(train_file=["a.po"], source_lang="en", target_lang="de"))


@pytest.mark.parametrize("order", "<>")
def test_a_compiled_catalogue_is_read(order):
    content = compiled(order)
    expected = [("%n file", "%n fichier"), ("%n files", "%n fichiers"), ("long text", "texte long")]
    assert pairs("a.mo", content) == [*expected, ("&Open <b>%1</b>\n", "&Ouvrir <b>%1</b>\n")]
    start = "b.mo:1: malformed compiled gettext catalogue ("
    assert error_of("b.mo", content[:50]).startswith(f"{start}its tables end after")
    assert error_of("b.mo", content[:-3]).startswith(f"{start}entry 4 ends after")
    assert error_of("b.mo", PO).startswith(f"{start}it begins with b'# A ')")


def test_catalogues_of_a_folder_are_one_corpus(tmp_path):
    for name in ("po/fr/a.po", "po/fr/b/c.po", "po/fr/notes.md", "po/fr/d.tmx"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(TMX if name.endswith("tmx") else PO)
    data = {"source_lang": "en", "target_lang": "fr", "validation_split": 0.5}
    whole = load_corpus(DataConfig(train_file=["po"], **data))
    assert (
        whole.report["counts"]["train"]["dropped"]["header"] + whole.report["counts"]["valid"]["dropped"]["header"] == 2
    )
    assert len(whole.train) + len(whole.valid) == 4 + 4 + 2
    globbed = load_corpus(DataConfig(train_file=["po/fr/**/*.po"], **data))
    assert len(globbed.train) + len(globbed.valid) == 8
    fuzzy = load_corpus(DataConfig(train_file=["po/fr/a.po"], keep_fuzzy=True, **data))
    assert len(fuzzy.train) + len(fuzzy.valid) == 5
    Path("empty").mkdir()
    with pytest.raises(UserError, match="expected a file, or a folder of catalogues"):
        load_corpus(DataConfig(train_file=["empty"], **data))


def test_texts_to_translate_are_all_that_can_be():
    Path("a.po").write_text(PO)
    texts = Texts("a.po", column=None, source_lang="en")
    assert [entry.text for entry in texts] == ["&Open <b>%1</b>\n", "Close", "Save", "%n file", "%n files", "long text"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "translate.storage.mo", None)
    monkeypatch.setitem(sys.modules, "lxml", None)
    for name, content in (("a.po", PO), ("a.tmx", TMX)):
        assert error_of(name, content).startswith(f"{name}: translate-toolkit is not installed")


# XML


def test_a_translation_memory_is_read_with_the_markup_of_its_texts():
    found = read("a.tmx", TMX)
    assert [texts for _, texts, _ in found] == [
        {"en-US": "Press <b>OK</b> now", "fr": "Appuyez & validez"},
        {"en-US": "Close", "fr": "Fermer"},
        {"en-US": "Open", "de": "Öffnen"},
    ]
    assert [where for where, _, _ in found] == ["a.tmx:4", "a.tmx:7", "a.tmx:8"]


def test_xliff_1_is_read():
    assert [(texts["en"], texts["fr"], state) for _, texts, state in read("a.xlf", XLIFF_1)] == [
        ('Press <g id="1">OK</g><x id="2"/>', 'Appuyez <g id="1">OK</g><x id="2"/>', "kept"),
        ("Close", "Fermé", "fuzzy"),
        ("Save", "", "untranslated"),
        ("KDE", "KDE", "not_translatable"),
        ("New", "New", "untranslated"),
    ]


def test_xliff_2_is_read():
    assert [(texts["en"], texts["fr"], state) for _, texts, state in read("a.xliff", XLIFF_2)] == [
        ('Press <pc id="1">OK</pc>', 'Appuyez <pc id="1">OK</pc>', "kept"),
        ("Close", "Close", "untranslated"),
        ("Save", "", "untranslated"),
        ("KDE", "KDE", "not_translatable"),
    ]


BOMB = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE tmx [<!ENTITY secret SYSTEM "secret.txt">]>',
        f'<!DOCTYPE tmx [<!ENTITY e0 "lol">{BOMB}]>',
        '<!DOCTYPE tmx [<!ENTITY % other SYSTEM "http://127.0.0.1:9/x.dtd"> %other;]>',
    ],
)
def test_entities_are_refused_and_nothing_outside_is_read(head):
    Path("secret.txt").write_text("a secret")
    content = TMX.replace('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', head).replace("Close", "&secret;&e12;")
    message = error_of("a.tmx", content)
    assert message.startswith("a.tmx:") and "secret\n" not in message and "a secret" not in message


def test_malformed_xml_is_named_with_its_line():
    assert error_of("a.tmx", TMX[:-100]).startswith("a.tmx:8: malformed XML (")
    assert error_of("a.xlf", "plain").startswith("a.xlf:1: malformed XML (")
    assert error_of("a.xlf", "").startswith("a.xlf:1: malformed XML (")
    assert error_of("a.tmx", "<html/>").startswith("a.tmx:1: malformed XML (expected <tmx>, got <html>)")


def test_xliff_without_a_target_language_has_that_of_the_flag():
    ((_, texts, state), *_) = read("a.xlf", XLIFF_1.replace(' target-language="fr"', ""), target="de")
    assert list(texts) == ["en", "de"] and state == "kept"


def test_a_packed_catalogue_is_not_unpacked_without_end():
    bomb = gzip.compress(b"#" * 3_000_000, 9) * 100
    assert error_of("a.po.gz", bomb) == "a.po.gz:1: a catalogue of over 100 MiB. Split it into several files."


# robustness


LIMIT_S = 20  # of CPU, for a file
LIMIT_MB = 500
BASE = int(os.environ.get("MTLOOP_FUZZ_BASE", "1"))
AGAIN = [int(number) for number in os.environ.get("MTLOOP_FUZZ", "").split() if number.isdigit()]
_opened: list[str] | None = None


def note_opened(event, arguments):
    """Note what Python opens while `_opened` is a list."""
    if _opened is not None and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        _opened.append(str(arguments[0]))


class TooLong(BaseException):
    """Raised when a file takes more than LIMIT_S."""


@contextlib.contextmanager
def limited():
    """Raise TooLong after LIMIT_S; return the function of the peak memory since the start, in MB."""

    def stop(number, frame):
        raise TooLong

    def memory(name):
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the memory of now
    start, before = memory("VmRSS"), signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield lambda: memory("VmHWM") - start
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def opened():
    """Note what is opened from here on, in the rest of this process: a hook cannot be removed."""
    sys.addaudithook(note_opened)


@pytest.fixture
def outside(opened, tmp_path):
    """Return a function that says what was touched outside of the file: a secret beside it, or a port that listens."""
    Path("secret.txt").write_text("a secret")
    Path("tmx14.dtd").write_text("<!ELEMENT tmx ANY>")
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    for name in ("secret.txt", "tmx14.dtd"):
        assert libc.inotify_add_watch(watch, os.fsencode(tmp_path / name), 0x20 | 0x1) > 0  # IN_OPEN, IN_ACCESS

    def touched():
        with contextlib.suppress(BlockingIOError):
            return f"files beside it: {os.read(watch, 4096)!r}"
        with contextlib.suppress(BlockingIOError):
            return f"the network: {server.accept()[1]}"
        return ""

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        touched.port = server.getsockname()[1]
        yield touched
    os.close(watch)


@dataclass
class Kept:
    """A journal that has the translations of all texts: in upper case."""

    translations: dict[str, Translation] = field(default_factory=dict)

    def read(self):
        """Read nothing."""


def fill(name):
    """Fill a catalogue; what was written must be readable, and the input the same."""
    before, job = Path(name).read_bytes(), Job(name, Path("filled", name))
    filling = Filling([job], FillOptions(target_lang="fr", retranslate=True), Kept())
    filling.read()
    filling._journal.translations |= {text: Translation(text=text.upper()) for text in filling.pending([job])}
    filling.write(job)
    assert Path(name).read_bytes() == before
    read(f"filled/{name}")


def fault_of(name, outside):
    """Read and fill a file; return what is wrong with the outcome, "" if nothing is."""
    global _opened
    with limited() as peak_mb:
        try:
            _opened = []
            read(name)
            if unpacked_ending(name) in FILLABLE:
                fill(name)
        except UserError as error:
            message = str(error)
            if not re.match(rf"{re.escape(name)}(:[1-9]\d*:|: corrupt gzip)", message) or len(message) > 400:
                return message[:400]
        except BaseException as error:
            return repr(error)[:400]
        finally:
            opened, _opened = _opened, None
        if peak_mb() > LIMIT_MB:
            return f"{peak_mb():.0f} MB"
    own = ("filled/", sys.prefix, sys.base_prefix, "/proc/", str(Path(__file__).parents[2]))
    return ", ".join(one for one in opened if one != name and not one.startswith(own)) or outside()


def some(first, last, *marks):
    return [pytest.param(start, min(start + 25, last), marks=marks) for start in range(first, last, 25)]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last"), [*some(0, 100), *some(100, 1_000, pytest.mark.full)])
def test_mutated_files_are_read_or_refused_with_file_and_line(first, last, outside):
    """Nothing but the file is opened. `MTLOOP_FUZZ="NUMBER ..." MTLOOP_FUZZ_BASE=1` makes the mutations again."""
    faults = {}
    for number in AGAIN or range(first, last):
        name, content = mutation(number, BASE)
        Path(name).write_bytes(content.replace(b"PORT", str(outside.port).encode()))
        if fault := fault_of(name, outside):
            faults[number] = f"{name}: {fault}"
    assert not faults


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/po")
def test_catalogues_of_real_projects_have_the_counts_of_msgfmt():
    counts = {}
    for path in sorted(SHARED.glob("*.po")):
        target = path.name.split(".")[-2]
        found = [(where, state) for where, _, state in read(str(path), target=target)]
        # Plural forms are one entry.
        counts[path.name] = tuple(
            len({where for where, state in found if state in states})
            for states in (("kept", "fuzzy", "untranslated"), ("fuzzy",), ("untranslated",), ("obsolete",))
        )
    assert counts == {
        "GNOME_evince-help.fr.po": (563, 0, 0, 1),
        "KDE_konsole.ru.po": (971, 4, 0, 165),
        "KDE_libk3b.fr.po": (798, 0, 0, 3),
        "KDE_okular.ja.po": (1052, 130, 246, 26),
        "KDE_rkward__import_export.fr.po": (440, 0, 0, 1),
        "gitk.fr.po": (311, 0, 0, 6),
        "kde2_kdebugdialog.iso8859-1.de.po": (10, 0, 0, 0),
        "kde2_kdelibs.fr.po": (1956, 0, 0, 0),
        "kde2_krn.nocharset.fr.po": (403, 43, 21, 16),
        "newsboat.fr.po": (448, 30, 17, 0),
    }
    assert set(REASONS) >= {"fuzzy", "untranslated", "obsolete"}
