"""Fill the loopback Hub with KDE4 as on the real one: a loading script, a branch of Parquet files, archives of OPUS."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import pyarrow.parquet as pq
from datasets import Dataset, Features, Translation, Value

from tests.support.hub_server import HubServer

KDE4 = "datasets/Helsinki-NLP/kde4"
PARQUET_BRANCH = "refs/convert/parquet"
PAIRS = ("en-fr", "en-it", "fi-nl", "it-ro", "nl-sv")


def add_kde4(hub: HubServer, texts: Sequence[tuple[str, str]], pairs: Sequence[str] = PAIRS) -> None:
    """Publish both branches of the data set; each pair has the rows `texts`, and neither branch has configurations."""
    hub.publish(KDE4, {"kde4.py": b"# a loading script\n", "README.md": b"---\nlanguage:\n- en\n---\n# KDE4\n"})
    files = {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
    for pair in pairs:
        files[f"{pair}/train/0000.parquet"] = _parquet(pair, texts)
    hub.publish(KDE4, files, PARQUET_BRANCH)


def add_archive(hub: HubServer, corpus: str, sides: dict[str, bytes]) -> str:
    """Add an archive of OPUS and return its path on the server.

    Args:
        hub: The server.
        corpus: Name and version, as KDE4/v2.
        sides: The content of both files by language code.
    """
    path = f"OPUS-{corpus}/moses/{'-'.join(sorted(sides))}.txt.zip"
    hub.archives[path] = hub.store(archive(corpus.partition("/")[0], sides))
    return path


def archive(corpus: str, sides: dict[str, bytes]) -> bytes:
    """Return a zip archive of two aligned files, laid out as those of OPUS."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("README", "read me")
        packed.writestr("LICENSE", "free")
        for language, content in sides.items():
            packed.writestr(f"{corpus}.{'-'.join(sorted(sides))}.{language}", content)
    return stream.getvalue()


def _parquet(pair: str, texts: Sequence[tuple[str, str]]) -> bytes:
    languages = pair.split("-")
    rows = {
        "id": [str(number) for number in range(len(texts))],
        "translation": [dict(zip(languages, both, strict=True)) for both in texts],
    }
    features = Features({"id": Value("string"), "translation": Translation(languages=languages)})
    stream = io.BytesIO()
    pq.write_table(Dataset.from_dict(rows, features=features).data.table, stream)
    return stream.getvalue()
