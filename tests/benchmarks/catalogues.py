"""Seconds of CPU and peak memory of reading catalogues of 100,000 entries; beside it, what translate-toolkit takes.

    python tests/benchmarks/catalogues.py [--entries 100000]

Each file is read in a separate process. mtloop yields rows, with pairs, context, comment and references; the peer
parses the file and asks each unit for its source and target.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.material import ROOT

NAMES = ("a.po", "a.mo", "a.tmx", "v1.xlf", "v2.xlf")


def pairs_of(number: int) -> Iterator[tuple[str, str]]:
    """So many different pairs, three in a hundred of several lines."""
    from mtloop.data.demo.grammar import demo_pairs

    chance = random.Random(0)
    for index, (source, target) in enumerate(itertools.islice(itertools.cycle(demo_pairs("train")), number)):
        end = "\n" * (chance.random() < 0.03)
        yield f"{source} ({index}){end}", f"{target} ({index}){end}"


def po_of(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A catalogue: a reference each, some comments, contexts and fuzzy entries."""
    chance = random.Random(1)
    yield 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\nLanguage: fr\\n"\n\n'
    for index, texts in enumerate(pairs):
        source, target = (text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for text in texts)
        comment = "#. Of a menu.\n" if chance.random() < 0.2 else ""
        context = f'msgctxt "menu {index}"\n' if chance.random() < 0.2 else ""
        fuzzy = "#, fuzzy\n" if chance.random() < 0.05 else ""
        yield f'{comment}#: src/main.cpp:{index}\n{fuzzy}{context}msgid "{source}"\nmsgstr "{target}"\n\n'


def tmx_of(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A translation memory."""
    yield '<?xml version="1.0"?>\n<tmx version="1.4"><header srclang="en"/><body>\n'
    for source, target in pairs:
        yield f'<tu><tuv xml:lang="en"><seg>{escape(source)}</seg></tuv>'
        yield f'<tuv xml:lang="fr"><seg>{escape(target)}</seg></tuv></tu>\n'
    yield "</body></tmx>\n"


def xliff_1_of(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A file of XLIFF 1.2, an inline element in each unit."""
    yield '<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">\n'
    yield '<file original="a" datatype="plaintext" source-language="en" target-language="fr"><body>\n'
    for index, (source, target) in enumerate(pairs):
        yield f'<trans-unit id="{index}"><source>{escape(source)}<x id="1"/></source>'
        yield f'<target>{escape(target)}<x id="1"/></target><note>A menu.</note></trans-unit>\n'
    yield "</body></file></xliff>\n"


def xliff_2_of(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A file of XLIFF 2.0, an inline element in each unit."""
    yield '<xliff version="2.0" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="fr"><file id="f">\n'
    for index, (source, target) in enumerate(pairs):
        yield f'<unit id="{index}"><segment><source>{escape(source)}<ph id="1"/></source>'
        yield f'<target>{escape(target)}<ph id="1"/></target></segment></unit>\n'
    yield "</file></xliff>\n"


def make_files(folder: Path, number: int) -> None:
    """Write the files."""
    makers: dict[str, Callable[[Iterator[tuple[str, str]]], Iterator[str]]] = {
        "a.po": po_of, "a.tmx": tmx_of, "v1.xlf": xliff_1_of, "v2.xlf": xliff_2_of,
    }  # fmt: skip
    for name, make in makers.items():
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(make(pairs_of(number)))
    subprocess.run(["msgfmt", "-o", folder / "a.mo", folder / "a.po"], check=True)


def read_here(path: str) -> int:
    """Count the entries that mtloop reads."""
    from mtloop.data.catalogues import entries
    from mtloop.data.files import InputFile

    return sum(1 for _ in entries(InputFile(path, path), "en", "fr", keep_fuzzy=False))


def read_by_the_toolkit(path: str) -> int:
    """Count the units that translate-toolkit reads."""
    from translate.storage.factory import getobject
    from translate.storage.xliff2 import Xliff2File

    units = (Xliff2File.parsefile(path) if Path(path).name == "v2.xlf" else getobject(path)).units
    return sum(1 for unit in units if (str(unit.source), str(unit.target)))


def measure(reader: str, path: str) -> None:
    """Read a file in this process; print what it took."""
    start = time.process_time()
    number = {"mtloop": read_here, "toolkit": read_by_the_toolkit}[reader](path)
    time_s = time.process_time() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"entries": number, "time_s": time_s, "peak_mb": peak_mb}))


def main() -> None:
    """Print a line a file."""
    if len(sys.argv) == 3 and sys.argv[1] in ("mtloop", "toolkit"):
        measure(*sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    number = parser.parse_args().entries
    print(f"{number:,} entries      mtloop                      translate-toolkit")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder, number)
        for name in NAMES:
            found = []
            for reader in ("mtloop", "toolkit"):
                command = [sys.executable, __file__, reader, str(folder / name)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
                found.append(json.loads(done.stdout))
            size_mb = (folder / name).stat().st_size / 1e6
            texts = [f"{one['time_s']:>6.1f} s {one['peak_mb']:>7,.0f} MB" for one in found]
            print(f"{name:>8} {size_mb:>6.1f} MB {texts[0]:>24} {texts[1]:>28}", flush=True)


if __name__ == "__main__":
    main()
