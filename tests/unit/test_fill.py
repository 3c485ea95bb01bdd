"""Filling the catalogues of a command: which files, the journal, the table, and what the command says."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtloop.errors import UserError
from mtloop.placeholders import lost
from mtloop.translate.catalogues import Counts, Filling, Job, Journal, fill_files, find_jobs, journal_path
from mtloop.translate.filling import FillOptions
from mtloop.translate.translator import Translation
from tests.support.catalogues import PO, XLIFF_1, XLIFF_2
from tests.support.commands import command
from tests.support.mutations import of_bytes

SHARED = Path(__file__).parents[3] / "shared" / "data" / "po"
ENTRY = 'msgid "{0}"\nmsgstr ""\n'
XLIFF = (
    '<xliff version="1.2"><file source-language="en" target-language="fr"><body>'
    '<trans-unit id="1"><source>Yes</source></trans-unit></body></file></xliff>'
)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, *texts):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(ENTRY.format(text) for text in texts) if texts else ""
    path.write_text(XLIFF if path.suffix in (".xlf", ".xliff") else content)
    return name


class Upper:
    """A translator that counts its texts, and fails at one of them."""

    def __init__(self, fails_at=None):
        self.seen, self._fails_at = [], fails_at

    def translate(self, texts):
        if self._fails_at in texts:
            raise KeyboardInterrupt
        self.seen += texts
        return [[Translation(text=text.upper(), lost=tuple(lost(text, text.upper())))] for text in texts]


ONE_RANK = SimpleNamespace(on_main=lambda work: work(), is_main=True)


def fill(*paths, output, translator=None, key=(), is_folder=True, **options):
    """Fill catalogues; return the filling and the translator."""
    jobs, _ = find_jobs(paths, Path(output), is_folder=is_folder)
    journal = Journal(journal_path(Path(output), is_folder=is_folder), "org/model", {"key": key})
    filling, translator = Filling(jobs, FillOptions(target_lang="fr", **options), journal), translator or Upper()
    fill_files(filling, ONE_RANK, lambda: translator, lambda done, total: None)
    return filling, translator


# Which files


def test_a_folder_is_searched_and_its_structure_kept():
    for name in ("po/a.po", "po/sub/b.po", "po/sub/t.pot", "po/sub/c.xlf", "po/notes.txt", "po/d.mo", "po/.hidden.po"):
        write(name, "Yes")
    jobs, num_others = find_jobs(["po"], Path("out"), is_folder=True)
    assert jobs == [
        Job("po/a.po", Path("out/a.po")),
        Job("po/sub/b.po", Path("out/sub/b.po")),
        Job("po/sub/c.xlf", Path("out/sub/c.xlf")),
        Job("po/sub/t.pot", Path("out/sub/t.po")),
    ]
    assert num_others == 2
    write("more/a.po", "Yes")
    jobs, _ = find_jobs(["po", "more", "po/a.po"], Path("out"), is_folder=True)
    assert [str(job.target) for job in jobs][-2:] == ["out/more/a.po", "out/a.po"]


def test_a_file_is_filled_into_a_file_or_a_folder():
    write("a.pot", "Yes")
    assert find_jobs(["a.pot"], Path("fr.po"), is_folder=False)[0] == [Job("a.pot", Path("fr.po"))]
    assert find_jobs(["a.pot"], Path("out"), is_folder=True)[0] == [Job("a.pot", Path("out/a.po"))]


@pytest.mark.parametrize(
    ("paths", "output", "reason"),
    [
        (["a.po"], "a.po", r"^-o: equals the input, which would be lost \(got a\.po\)\. Give another name\.$"),
        (["po"], "po/out", r"^-o: in the folder of the input \(got po/out\)"),
        (["empty"], "out", r"^FILE: no file to fill \(\.po, \.pot, \.xlf, \.xliff\) \(got empty\)"),
        (["a.po"], "a.xlf", r"^-o: only an XLIFF file can be filled into a\.xlf \(got a\.po\)\. Give an output of the"),
        (
            ["a.po", "a.txt"],
            "out/",
            r"^FILE: not a catalogue, as other files are \(got a\.txt\)\. Translate them one by",
        ),
        (["a.po"], "a.mo", r"^-o: \.mo files are read, not written \(got a\.mo\)\. Give -o FILE\.po or FILE\.xlf"),
        (["a.mo"], "a.fr.po", r"^-o: only a gettext file can be filled into a\.fr\.po \(got a\.mo\)"),
        (["a.po", "a.pot"], "out/", r"^FILE: a\.po and a\.pot have the same output out/a\.po\. Translate them one by"),
    ],
)
def test_outputs_that_cannot_be_are_refused(paths, output, reason):
    for name in ("a.po", "a.pot", "a.mo", "a.txt", "po/a.po", "empty/a.txt"):
        write(name, "Yes")
    with pytest.raises(UserError, match=reason):
        find_jobs(paths, Path(output), is_folder=output.endswith("/") or len(paths) > 1 or output == "out")


# What is written


def test_files_are_filled_and_counted():
    write("po/a.po", "Yes", "Open %n", "\\n")
    write("po/b.po")
    write("po/c.xliff")
    filling, translator = fill("po", output="out", no_fuzzy=True)
    assert sorted(translator.seen) == ["Open %n", "Yes"]  # once for both files, and nothing blank
    assert Path("out/a.po").read_text() == (
        'msgid "Yes"\nmsgstr "YES"\n\n# mtloop: %n missing, %N added\n#, fuzzy\nmsgid "Open %n"\nmsgstr "OPEN %N"\n\n'
        'msgid "\\n"\nmsgstr "\\n"\n'
    )
    assert Path("out/b.po").read_bytes() == b"" and ">YES</target>" in Path("out/c.xliff").read_text()
    assert list(filling.counts.values()) == [
        Counts("po/a.po", 3, 3, 1), Counts("po/b.po", 0, 0, 0), Counts("po/c.xliff", 1, 1, 0),
    ]  # fmt: skip
    assert [line.split() for line in filling.table()] == [
        ["file", "entries", "filled", "kept", "failed", "survival"], ["po/a.po", "3", "3", "0", "1"],
        ["po/b.po", "0", "0", "0", "0"], ["po/c.xliff", "1", "1", "0", "0"], ["all", "4", "4", "0", "1"],
    ]  # fmt: skip
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.po", "b.po", "c.xliff"]


def test_a_packed_catalogue_is_filled_and_nothing_to_do_needs_no_model():
    Path("a.po.gz").write_bytes(gzip.compress(ENTRY.format("Yes").encode()))
    fill("a.po.gz", output="out")
    filled = gzip.decompress(Path("out/a.po.gz").read_bytes())
    assert filled == b'#, fuzzy\nmsgid "Yes"\nmsgstr "YES"\n'
    fill("out/a.po.gz", output="b.po", is_folder=False, translator=None)
    assert Path("b.po").read_bytes() == filled

    def open_translator():
        raise AssertionError("nothing is to be translated")

    filling = Filling(find_jobs(["b.po"], Path("c.po"), is_folder=False)[0], FillOptions(), Journal(Path("j"), "m", {}))
    fill_files(filling, ONE_RANK, open_translator, lambda done, total: None)
    assert Path("c.po").read_bytes() == filled


def test_a_malformed_file_ends_the_command_before_anything_is_translated():
    write("po/a.po", "Yes")
    Path("po/b.po").write_text('msgid "Yes\n')
    translator = Upper()
    with pytest.raises(UserError, match=r"^po/b\.po:1: malformed gettext catalogue"):
        fill("po", output="out", translator=translator)
    assert not translator.seen and not Path("out").exists()


@pytest.mark.parametrize("name, content", [("a.po", PO), ("a.xlf", XLIFF_1), ("b.xlf", XLIFF_2)])
def test_a_mutated_file_is_filled_or_refused(name, content, is_full):
    for seed in range(1000 if is_full else 25):
        Path(name).write_bytes(of_bytes(random.Random(seed), content.encode()))
        for number, options in enumerate(({}, {"no_fuzzy": True, "retranslate": True})):
            output = f"{number}{Path(name).suffix}"
            Path(output).unlink(missing_ok=True)
            try:
                filling, translator = fill(name, output=output, is_folder=False, **options)
            except UserError:
                assert not Path(output).exists()
                continue
            (counts,) = filling.counts.values()
            assert counts.filled or Path(output).read_bytes() == Path(name).read_bytes()
            again, _ = fill(output, output="again" + Path(name).suffix, is_folder=False)  # it can be read
            assert next(iter(again.counts.values())).entries == counts.entries, seed


# Interruptions


def test_an_interrupted_command_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr("mtloop.translate.catalogues._BLOCK_SIZE", 2)
    write("po/a.po", "one", "three")
    write("po/b.po", *(f"text number {number}" for number in range(9)), "three", "last")
    with pytest.raises(KeyboardInterrupt):
        fill("po", output="out", translator=Upper(fails_at="last"))
    assert Path("out/a.po").exists() and not Path("out/b.po").exists()
    finished = Path("out/a.po").stat()
    filling, translator = fill("po", output="out")
    assert translator.seen == ["text number 8", "last"] and filling.num_known == 10  # the block that was interrupted
    assert Path("out/a.po").stat() == finished
    expected = Path("out/b.po").read_bytes()
    assert not list(Path("out").glob(".*"))
    fill("po", output="again")
    assert Path("again/b.po").read_bytes() == expected


@pytest.mark.parametrize("case", ["same", "torn", "other options", "other folder", "not JSON"])
def test_a_journal_is_of_its_model_and_options(case, tmp_path):
    Path("model").mkdir()
    Path("model/weights").write_bytes(b"1")
    journal = Journal(Path("j"), "model", {"num_beams": 2})
    journal.read()
    journal.add(["a\u2028b", "c"], [Translation(text="x", lost=("%1 missing",)), Translation(text="y", is_cut=True)])
    journal.add(["d"], [Translation(text="z")])
    if case == "torn":
        Path("j").write_bytes(Path("j").read_bytes()[:-9])
    elif case == "not JSON":
        Path("j").write_bytes(b"\xff\x00")
    elif case == "other folder":
        Path("model/weights").write_bytes(b"22")
    again = Journal(Path("j"), "model", {"num_beams": 3 if case == "other options" else 2})
    again.read()
    known = dict(list(journal.translations.items())[: {"same": 3, "torn": 2}.get(case, 0)])
    assert again.translations == known and Path("j").exists() == bool(known)
    again.add(["e"], [Translation(text="e")])
    third = Journal(Path("j"), "model", {"num_beams": 3 if case == "other options" else 2})
    third.read()
    assert third.translations == again.translations


# The command


def test_dry_run_counts_without_a_model(capsys, monkeypatch):
    write("po/a.po", "Yes", "No")
    write("po/readme.txt", "x")
    assert command("translate")(["po", "-o", "out", "--model", "no/model", "--dry_run", "--target_lang", "fr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["po/a.po", "2", "2", "0"] and lines[2] == "left out: 1 other files in the folders"
    assert not Path("out").exists()


def test_the_command_fills_a_catalogue(model_path, fresh_accelerate, capsys):
    """A real catalogue, by a model that has memorized a few rows: what it breaks is marked, and msgfmt accepts it."""
    if (SHARED / "newsboat.fr.po").exists():
        Path("a.po").write_bytes((SHARED / "newsboat.fr.po").read_bytes())
        num_entries, num_untranslated = 448, 17
    else:
        write("a.po", "Yes", "Save %1")
        num_entries = num_untranslated = 2
    flags = ["--model", str(model_path), "--num_beams", "2", "--max_target_length", "24", "--cpu_threads", "1"]
    assert command("translate")(["a.po", "-o", "out/b.po", "--target_lang", "fr", "--no_fuzzy", *flags]) == 0
    captured = capsys.readouterr()
    counts = list(map(int, captured.out.splitlines()[1].split()[1:]))
    before, filled = Path("a.po").read_text(), Path("out/b.po").read_text()
    num_failed = filled.count("# mtloop: ")
    assert counts == [num_entries, num_untranslated, num_entries - num_untranslated, num_failed]
    assert filled.count("#, fuzzy") == before.count("#, fuzzy") + num_failed
    assert "mtloop: warning" not in captured.err and [path.name for path in Path("out").iterdir()] == ["b.po"]
    if shutil.which("msgfmt") is not None:
        checked = ["msgfmt", "--check", "--statistics", "-o", "/dev/null", "out/b.po"]
        result = subprocess.run(checked, check=False, capture_output=True, text=True, env={"LC_ALL": "C"})
        assert result.returncode == 0 and "untranslated" not in result.stderr, result.stderr
