"""Rows from the archives of OPUS, https://opus.nlpl.eu, and KDE4, which is partly there and partly on the Hub."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from mtloop.config import UserError
from mtloop.corpus.files import DamagedArchive, InputFile, identify
from mtloop.corpus.named import first_line, load_named, raise_if_disk_is_full
from mtloop.corpus.rows import Columns
from mtloop.corpus.sources import load_text_pair
from mtloop.corpus.store import Raw, Store, digest

OPUS_URL = "https://object.pouta.csc.fi"
# The pairs of KDE4 that the Hub holds as Parquet; its loading script for the others is refused by datasets 4.
KDE4_ON_HUB = ("en-fr", "en-it", "fi-nl", "it-ro", "nl-sv")


def load_kde4(columns: Columns, store: Store) -> dict[str, Raw]:
    """Load KDE4 from wherever its language pair is to be had."""
    first, second = _sorted_pair("kde4", columns)
    if f"{first}-{second}" in KDE4_ON_HUB:
        return load_named("Helsinki-NLP/kde4@refs/convert/parquet", f"{first}-{second}", columns, store)
    return load_opus("opus:KDE4/v2", columns, store)


def load_opus(name: str, columns: Columns, store: Store) -> dict[str, Raw]:
    """Load the archive of a corpus and a language pair from OPUS; the download is kept in the datasets cache.

    Args:
        name: "opus:<Corpus>/<version>".
        columns: The languages.
        store: The cache.

    Raises:
        UserError: naming the archive and what to do without a network.
    """
    corpus, slash, version = name.removeprefix("opus:").partition("/")
    if not (corpus and slash and version) or "/" in version:
        raise UserError(f"--dataset_name {name}: write opus:<Corpus>/<version>, for example opus:KDE4/v2")
    first, second = _sorted_pair(name, columns)
    base = os.environ.get("MTLOOP_OPUS_URL", OPUS_URL).rstrip("/")
    url = f"{base}/OPUS-{corpus}/{version}/moses/{first}-{second}.txt.zip"
    advice = f"download {url} elsewhere, unpack it and give its two text files to --train_file"
    path = _download(url, f"--dataset_name {name}", advice, store)
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
        members = [f"{corpus}.{first}-{second}.{language}" for language in (columns.source_lang, columns.target_lang)]
        if missing := [member for member in members if member not in inside]:
            raise UserError(f"--dataset_name {name}: {url} holds no {missing[0]}, only {', '.join(inside)}")
        archive_file = identify(path, flag="--dataset_name", name=url)
        pair = [
            InputFile(path, f"{url}/{member}", archive_file.sha256, archive_file.size, member) for member in members
        ]
        raw = load_text_pair(pair[0], pair[1], store)
    except (zipfile.BadZipFile, DamagedArchive) as error:
        # The next run would find the same broken file in the cache.
        Path(path).unlink(missing_ok=True)
        raise UserError(f"--dataset_name {name}: damaged download ({error}): run again, or {advice}") from error
    return {"train": Raw(raw.rows, raw.identity, [{"name": name, **archive_file.record}])}


def _download(url: str, flag: str, advice: str, store: Store) -> str:
    """Return the path of the downloaded file; one that is in the cache already is not asked for again."""
    path = store.root / "downloads" / f"{digest(url)[:32]}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with FileLock(f"{path}.lock"):
        if store.is_current(path):
            return str(path)
        try:
            # Resumes a broken download, has a timeout, checks the length, and keeps to HF_HUB_OFFLINE.
            with open(partial, "wb") as stream:
                http_get(url, stream, displayed_filename=path.name)
            partial.replace(path)
        except Exception as error:  # whatever HTTP client huggingface_hub uses has classes of its own
            raise_if_disk_is_full(error)
            partial.unlink(missing_ok=True)
            is_missing = isinstance(error, HfHubHTTPError) and error.response.status_code == 404
            reason = "OPUS has no such archive" if is_missing else f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{flag}: cannot get {url} ({reason}): check corpus and languages, or {advice}") from error
    return str(path)


def _sorted_pair(name: str, columns: Columns) -> tuple[str, str]:
    if not (columns.source_lang and columns.target_lang):
        raise UserError(f"--dataset_name {name}: give --source_lang and --target_lang, for example en and fr")
    first, second = sorted((columns.source_lang, columns.target_lang))
    return first, second
