"""Rows from the archives of OPUS, https://opus.nlpl.eu. Must not know which corpora have other sources too."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from mtloop.data.files import DamagedArchive, InputFile, identify
from mtloop.data.named import download_progress, raise_if_disk_is_full, reason_of
from mtloop.data.rows import Columns
from mtloop.data.sources import load_text_pair
from mtloop.data.store import Raw, Store, digest
from mtloop.errors import UserError
from mtloop.languages import base_code

Say = Callable[[str], None]

OPUS_URL = "https://object.pouta.csc.fi"
REMEDY = (
    "Check the network and the languages, set MTLOOP_OPUS_URL to a mirror, or download an archive elsewhere, unpack it "
    "and give its two text files to --train_file."
)
# A language code as OPUS writes them: pt, ast, pt_br, zh-cn, sr@latin.
_CODE = re.compile(r"[A-Za-z]{2,3}([_@-]\w+)*")


class NoSuchArchive(UserError):
    """OPUS answered that it does not have the archive."""


def load_opus(name: str, columns: Columns, store: Store, say: Say) -> dict[str, Raw]:
    """Load a corpus in a pair of languages from OPUS; the download is kept in the datasets cache.

    The codes of a corpus are not known beforehand: a code is tried as it was given, then its base code (de of de_DE).

    Args:
        name: opus:<Corpus>/<version>.
        columns: The languages.
        store: The cache.
        say: Prints a line.

    Raises:
        UserError: naming the archives that were tried.
    """
    corpus, slash, version = name.removeprefix("opus:").partition("/")
    if not (corpus and slash and version) or "/" in version:
        raise UserError(f"--dataset_name {name}: write opus:<Corpus>/<version>, for example opus:KDE4/v2")
    source, target = given_languages(name, columns)
    archives = [
        Archive(corpus, version, source_code, target_code)
        for source_code in _spellings(source)
        for target_code in _spellings(target)
        if source_code != target_code
    ]
    archives.sort(key=lambda archive: not archive.is_cached(store))
    missing: list[str] = []
    try:
        for archive in archives:
            say(f"loading {name} from {archive.url}")
            try:
                return {"train": archive.load(store)}
            except NoSuchArchive as error:
                missing.append(str(error))
    except UserError as error:
        raise UserError(f"--dataset_name {name}: cannot load {source}-{target} ({error}). {REMEDY}") from error
    tried = "; ".join(missing) or "one language twice"
    raise UserError(f"--dataset_name {name}: cannot load {source}-{target} ({tried}). {REMEDY}")


def given_languages(name: str, columns: Columns) -> tuple[str, str]:
    """Return both languages as the user wrote them.

    Raises:
        UserError: one is missing.
    """
    if not (columns.source_lang and columns.target_lang):
        raise UserError(f"--dataset_name {name}: give --source_lang and --target_lang, for example en and fr")
    return columns.source_lang, columns.target_lang


def _spellings(language: str) -> list[str]:
    """Return the codes to try for a language; a name has its base code only."""
    given = [language] if _CODE.fullmatch(language) else []
    return list(dict.fromkeys([*given, base_code(language)]))


class Archive:
    """A zip archive of two aligned text files, named after the codes of both languages in alphabetical order."""

    def __init__(self, corpus: str, version: str, source: str, target: str) -> None:
        pair = "-".join(sorted((source, target)))
        base = os.environ.get("MTLOOP_OPUS_URL", OPUS_URL).rstrip("/")
        self.name = f"opus:{corpus}/{version}"
        self.url = f"{base}/OPUS-{corpus}/{version}/moses/{pair}.txt.zip"
        self._label = f"{corpus} {pair}"
        self._members = [f"{corpus}.{pair}.{language}" for language in (source, target)]

    def is_cached(self, store: Store) -> bool:
        """Return True if a download is there that need not be made again."""
        return store.is_current(self._path(store))

    def load(self, store: Store) -> Raw:
        """Return the rows, source first.

        Raises:
            NoSuchArchive: OPUS does not have it.
            UserError: with the reason alone: it cannot be downloaded, or holds something else.
        """
        path = self._download(store)
        try:
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
            if missing := [member for member in self._members if member not in inside]:
                raise UserError(f"{self.url} holds no {missing[0]}, only {', '.join(inside)}")
            file = identify(str(path), flag="--dataset_name", name=self.url)
            source, target = (
                InputFile(file.path, f"{self.url}/{member}", file.sha256, file.size, member) for member in self._members
            )
            raw = load_text_pair(source, target, store)
        except (zipfile.BadZipFile, DamagedArchive) as error:
            # The next run would find the same broken file in the cache.
            path.unlink(missing_ok=True)
            raise UserError(f"{self.url}: damaged download, deleted: {error}") from error
        return Raw(raw.rows, raw.identity, [{"name": self.name, **file.record}])

    def _path(self, store: Store) -> Path:
        return store.root / "downloads" / f"{digest(self.url)[:32]}.zip"

    def _download(self, store: Store) -> Path:
        """Return the downloaded file; one that is in the cache is not asked for again."""
        path = self._path(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with FileLock(f"{path}.lock"):
            if store.is_current(path):
                return path
            try:
                # Has a timeout, compares the size with the server's Content-Length, and keeps to HF_HUB_OFFLINE.
                with download_progress(), open(partial, "wb") as stream:
                    http_get(self.url, stream, displayed_filename=self._label)
                partial.replace(path)
            except Exception as error:  # whatever HTTP client huggingface_hub uses has classes of its own
                partial.unlink(missing_ok=True)
                raise_if_disk_is_full(error)
                if isinstance(error, HfHubHTTPError) and error.response.status_code == 404:
                    raise NoSuchArchive(f"OPUS has no such archive: {self.url}") from error
                raise UserError(f"{self.url}: {reason_of(error)}") from error
        return path
