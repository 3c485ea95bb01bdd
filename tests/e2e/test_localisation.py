"""docs/localisation.md: each command of the page, in its order, on a small folder of catalogues."""

import re
import shlex
import shutil
from collections import Counter

import pytest

from mtloop.data.catalogues import entries
from mtloop.data.files import InputFile
from tests.support.launch import PROJECT, PYTHON, run

pytestmark = pytest.mark.e2e

PAGE = PROJECT / "docs" / "localisation.md"
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("pip ")
]
# The model of the page is on the Hub; a small one takes its place, and its updates are few.
MODEL = "Helsinki-NLP/opus-mt-en-fr"
QUICK = (
    "--use_cpu",
    "--cpu_threads",
    "1",
    "--max_train_steps",
    "2",
    "--val_max_target_length",
    "8",
    "--num_beams",
    "1",
)
HEADER = """msgid ""
msgstr ""
"Project-Id-Version: {name}\\n"
"PO-Revision-Date: 2026-11-27 12:00+0100\\n"
"Last-Translator: A Name <name@example.org>\\n"
"Language-Team: French <fr@example.org>\\n"
"Language: fr\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=2; plural=(n > 1);\\n"

"""
XLIFF = """<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file source-language="en" target-language="fr" datatype="plaintext" original="a"><body>
<trans-unit id="1"><source>Close the window</source></trans-unit>
</body></file></xliff>
"""
UNIT = '<tu><tuv xml:lang="en"><seg>Close {n}</seg></tuv><tuv xml:lang="fr"><seg>Fermer {n}</seg></tuv></tu>'
TMX = f'<tmx version="1.4"><header srclang="en"/><body>{"".join(UNIT.format(n=n) for n in range(20))}</body></tmx>'


@pytest.fixture(scope="module")
def folder(demo_sample, model_path, tmp_path_factory):
    """Return a folder with what the page calls the reader's own files, after its commands were run in it."""
    folder = tmp_path_factory.mktemp("localisation")
    for number, name in enumerate(("editor", "mail")):
        texts = [HEADER.format(name=name)]
        for index, pair in enumerate(demo_sample[number * 40 : number * 40 + 40]):
            source, target = (text.replace('"', '\\"') for text in pair)
            flag = "#, fuzzy\n" * (index == 5)
            texts.append(f'#: main.cpp:{index}\n{flag}msgid "{source}"\nmsgstr "{"" if index == 7 else target}"\n\n')
        (folder / "po" / "fr").mkdir(parents=True, exist_ok=True)
        (folder / "po" / "fr" / f"{name}.po").write_text("".join(texts)[:-1], encoding="utf-8")
    (folder / "app.xlf").write_text(XLIFF, encoding="utf-8")
    (folder / "memory.tmx").write_text(TMX, encoding="utf-8")
    shutil.copy(PROJECT / "train.py", folder)
    printed = {}
    for line in COMMANDS:
        words = [str(model_path) if word == MODEL else word for word in shlex.split(line)]
        if words[0] == "msgfmt" and shutil.which("msgfmt") is None:
            continue
        if words[:2] == ["accelerate", "launch"]:
            words = [PYTHON, *words[2:], *QUICK]
        elif words[0] == "python":
            words = [PYTHON, *words[1:]]
        done = run(words, cwd=folder, timeout_s=120)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2_000:]}\n{done.stderr[-3_000:]}"
        printed[line] = done.stdout + done.stderr
    return folder, printed


def of(printed, *words):
    """Return what the first command with these words printed."""
    return next(text for line, text in printed.items() if set(words) <= set(line.split()))


def test_the_corpus_is_counted_as_the_page_says(folder):
    _, printed = folder
    counted = of(printed, "corpus")
    assert "untranslated" in counted and "fuzzy" in counted


def test_the_run_scores_survival_and_unseen_sources(folder):
    path, printed = folder
    metrics = (path / "runs" / "po" / "metrics.jsonl").read_text(encoding="utf-8")
    assert '"survival"' in metrics
    assert "--split_by source" in of(printed, "train.py", "--split_by")


def test_a_dry_run_counts_what_the_run_fills(folder):
    _, printed = folder
    counts = re.findall(r"^all +(\d+) +(\d+)", of(printed, "--dry_run"), re.MULTILINE)
    assert counts == [("80", "2")]
    assert re.findall(r"^all +(\d+) +(\d+)", of(printed, "filled", "po/fr"), re.MULTILINE)[0] == counts[0]


def test_the_folder_is_filled_and_marked(folder):
    path, _ = folder
    for name in ("editor.po", "mail.po"):
        states = Counter(
            state
            for _, _, state in entries(
                InputFile(str(path / "filled" / name), name), source_lang="en", target_lang="fr", keep_fuzzy=False
            )
        )
        assert states == {"header": 1, "kept": 38, "fuzzy": 2}
        before, after = ((path / parent / name).read_text().splitlines() for parent in ("po/fr", "filled"))
        assert [line for line in before if line not in after] == []


def test_the_other_formats_are_filled_and_read(folder):
    path, printed = folder
    assert "<target" in (path / "app.fr.xlf").read_text(encoding="utf-8")
    assert "valid: 2 rows loaded, 0 dropped" in of(printed, "corpus", "memory.tmx")
