"""Load rows from the archives of OPUS, https://opus.nlpl.eu, and KDE4, the corpus of the Hugging Face course.

KDE4 is on the Hub as Parquet for five pairs; every pair is an archive of OPUS.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from mtloop.data.files import CorruptArchive, InputFile, identify
from mtloop.data.rows import Columns, LoadedSplit, digest
from mtloop.data.sources import download_progress, load_records, load_text_pair, raise_if_disk_is_full, reason_of
from mtloop.data.store import Store
from mtloop.errors import UserError, without_passwords
from mtloop.languages import advise, base_code, match_language

Say = Callable[[str], None]

OPUS_URL = "https://object.pouta.csc.fi"
REMEDY = (
    "Check the network and the languages, set MTLOOP_OPUS_URL to a mirror, or download an archive elsewhere, unpack it "
    "and give its two text files to --train_file."
)
# A language code as OPUS writes them: pt, ast, pt_br, zh-cn, sr@latin.
_CODE = re.compile(r"[A-Za-z]{2,3}([_@-]\w+)*")

KDE4_REPO, KDE4_BRANCH = "Helsinki-NLP/kde4", "refs/convert/parquet"
HUB_BRANCH = f"{KDE4_REPO}@{KDE4_BRANCH}"
# The names that a user may give; the main branch holds a loading script, which datasets 4 and later do not run.
KDE4_NAMES = ("kde4", KDE4_REPO, HUB_BRANCH)
# The branch has a folder for each of these pairs and no configurations.
KDE4_PAIRS_ON_HUB = ("en-fr", "en-it", "fi-nl", "it-ro", "nl-sv")
# The 92 languages of KDE4 v2 as OPUS writes them. Source: the corpus's page on OPUS (public_html/KDE4.php of
# Helsinki-NLP/OPUS-ingest), which agrees with the card of the data set on the Hub.
_KDE4_CODES = """
af ar as ast be bg bn bn_IN br ca crh cs csb cy da de el en en_GB eo es et eu fa fi fr fy ga gl gu ha he hi hne hr hsb
hu hy id is it ja ka kk km kn ko ku lb lt lv mai mk ml mr ms mt nb nds ne nl nn nso oc or pa pl ps pt pt_BR ro ru rw se
si sk sl sr sv ta te tg th tr uk uz vi wa xh zh_CN zh_HK zh_TW
"""
KDE4_CODES = tuple(_KDE4_CODES.split())


class NoSuchArchive(UserError):
    """Raised if OPUS does not have the archive."""


def load_opus(name: str, columns: Columns, store: Store, say: Say) -> dict[str, LoadedSplit]:
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
        raise UserError(f"--dataset_name: expected opus:<Corpus>/<version>, for example opus:KDE4/v2 (got {name}).")
    source, target = given_languages(name, columns)
    archives = [
        Archive(corpus, version, source_code, target_code)
        for source_code in _spellings(source)
        for target_code in _spellings(target)
        if source_code != target_code
    ]
    archives.sort(key=lambda archive: not archive.is_cached(store))
    failures: list[str] = []
    for archive in archives:
        say(f"loading {name} from {archive.url}")
        try:
            return {"train": archive.load(store)}
        except NoSuchArchive as error:
            failures.append(str(error))
        except UserError as error:
            failures = [str(error)]
            break
    reason = "; ".join(failures) or "both languages are the same"
    raise UserError(f"--dataset_name: cannot load {source}-{target} of {name} ({reason}). {REMEDY}")


def given_languages(name: str, columns: Columns) -> tuple[str, str]:
    """Return both languages as the user wrote them.

    Raises:
        UserError: one is missing.
    """
    if not (columns.source_lang and columns.target_lang):
        flags = " and ".join(columns.flags)
        raise UserError(f"--dataset_name: {name} requires both languages. Give {flags} (en and fr).")
    return columns.source_lang, columns.target_lang


def _spellings(language: str) -> list[str]:
    """Return the codes to try for a language: itself, and its base code unless that is another one, as sr of sr@latin.

    A name has its base code only.
    """
    base = [code for code in [base_code(language)] if match_language(language, [code])]
    given = [language] if _CODE.fullmatch(language) or not base else []
    return list(dict.fromkeys([*given, *base]))


class Archive:
    """A zip archive of two aligned text files, named after the codes of both languages in alphabetical order."""

    def __init__(self, corpus: str, version: str, source: str, target: str) -> None:
        pair = "-".join(sorted((source, target)))
        base = os.environ.get("MTLOOP_OPUS_URL", OPUS_URL).rstrip("/")
        self.name = f"opus:{corpus}/{version}"
        self._address = f"{base}/OPUS-{corpus}/{version}/moses/{pair}.txt.zip"
        self.url = without_passwords(self._address)  # in messages and in the records of a run
        self._label = f"{corpus} {pair}"
        self._members = [f"{corpus}.{pair}.{language}" for language in (source, target)]

    def is_cached(self, store: Store) -> bool:
        """Return True if the archive is downloaded and need not be downloaded again."""
        return store.is_current(self._path(store))

    def load(self, store: Store) -> LoadedSplit:
        """Return the rows, source first.

        Raises:
            NoSuchArchive: OPUS does not have it.
            UserError: with the reason alone: it cannot be downloaded, or does not hold the two files.
        """
        path = self._download(store)
        try:
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
            if missing := [member for member in self._members if member not in inside]:
                raise UserError(f"{self.url}: expected a file {missing[0]}, found only {', '.join(inside)}")
            file = identify(str(path), flag="--dataset_name", name=self.url)
            source, target = (
                InputFile(file.path, f"{self.url}/{member}", file.sha256, file.size, member) for member in self._members
            )
            split = load_text_pair(source, target, store)
        except (zipfile.BadZipFile, CorruptArchive) as error:
            # The next run would find the same corrupt file in the cache.
            path.unlink(missing_ok=True)
            raise UserError(f"{self.url}: corrupt download, deleted: {error}") from error
        return LoadedSplit(split.rows, split.identity, [{"name": self.name, **file.record}])

    def _path(self, store: Store) -> Path:
        return store.root / "downloads" / f"{digest(self.url)[:32]}.zip"

    def _download(self, store: Store) -> Path:
        """Return the downloaded file, from the cache if it is in it."""
        path = self._path(store)
        if store.is_current(path):  # before the lock: the cache may be read-only
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with FileLock(f"{path}.lock"):
            if store.is_current(path):
                return path
            try:
                # http_get has a timeout, compares the size with Content-Length, and respects HF_HUB_OFFLINE.
                with download_progress(), open(partial, "wb") as stream:
                    http_get(self._address, stream, displayed_filename=self._label)
                partial.replace(path)
            except Exception as error:  # the classes of the HTTP client differ between versions of huggingface_hub
                partial.unlink(missing_ok=True)
                raise_if_disk_is_full(error)
                if isinstance(error, HfHubHTTPError) and error.response.status_code == 404:
                    raise NoSuchArchive(f"OPUS has no such archive: {self.url}") from error
                raise UserError(f"{self.url}: {reason_of(error)}") from error
        return path


def load_kde4(columns: Columns, store: Store, *, recorded: str | None, say: Say) -> dict[str, LoadedSplit]:
    """Load a pair of KDE4 from the Hub, or from OPUS if the Hub does not have it; log each attempt.

    Args:
        columns: The languages, in any code or by name.
        store: The cache.
        recorded: The source of a resumed run, as in its report: no other is tried, because the rows of the Hub lack
            the outer white space that those of OPUS have.
        say: Prints a line.

    Raises:
        UserError: a language that KDE4 does not have, or the reason why each source failed.
    """
    source, target = map(find_code, columns.flags, given_languages("kde4", columns))
    if source == target:
        again = "the source language of kde4 again"
        raise UserError(f"{columns.flags[1]}: {again} (got {columns.target_lang}). Give another.")
    pair = "-".join(sorted((source, target)))
    archive = Archive("KDE4", "v2", source, target)
    routes: dict[str, tuple[str, Callable[[], LoadedSplit]]] = {
        archive.name: (archive.url, lambda: archive.load(store))
    }
    own = Columns(source, target, group_by=columns.group_by)
    if pair in KDE4_PAIRS_ON_HUB:
        routes = {HUB_BRANCH: (HUB_BRANCH, lambda: _load_parquet(pair, own, store)), **routes}
    if recorded in routes:
        routes = {recorded: routes[recorded]}
    failures: list[str] = []
    for place, load in routes.values():
        say(f"loading kde4 {pair} from {place}" + "".join(f" ({failure})" for failure in failures))
        try:
            return {"train": load()}
        except UserError as error:
            failures.append(str(error))
    remedy = REMEDY
    if recorded in routes:
        remedy += " A resumed run reads its rows from the same source; a run in another --output_dir may use another."
    raise UserError(f"--dataset_name: cannot load {pair} of kde4 ({'; '.join(failures)}). {remedy}")


def find_code(flag: str, language: str) -> str:
    """Return the code that KDE4 has for a language.

    Raises:
        UserError: naming `flag` and the codes to choose from, if KDE4 has none or several for the language.
    """
    found = match_language(language, KDE4_CODES)
    if len(found) != 1:
        problem = "kde4 has several such languages" if found else "kde4 does not have this language"
        raise UserError(f"{flag}: {problem} (got {language}). {advise(language, KDE4_CODES)}")
    return found[0]


def _load_parquet(pair: str, columns: Columns, store: Store) -> LoadedSplit:
    """Return the rows of a pair's file on the Hub.

    The file is downloaded by itself: load_dataset(data_dir=..., revision=...) does not find its own cache without a
    network (datasets 5.2).

    Raises:
        UserError: with the reason alone.
    """
    path = f"{pair}/train/0000.parquet"
    cached = try_to_load_from_cache(KDE4_REPO, path, revision=KDE4_BRANCH, repo_type="dataset")
    try:
        with download_progress():
            local = hf_hub_download(KDE4_REPO, path, revision=KDE4_BRANCH, repo_type="dataset")
    except Exception as error:  # anything from httpx and huggingface_hub
        raise_if_disk_is_full(error)
        if not isinstance(cached, str):
            raise UserError(f"{HUB_BRANCH}: {_hub_reason(error, path)}") from error
        local = cached
    file = identify(local, flag="--dataset_name", name=f"{HUB_BRANCH}/{path}")
    split = load_records((file,), "parquet", columns, store)
    return LoadedSplit(split.rows, split.identity, [{"name": HUB_BRANCH, **file.record}])


def _hub_reason(error: Exception, path: str) -> str:
    if isinstance(error, RevisionNotFoundError):
        return "no such branch"
    if isinstance(error, RepositoryNotFoundError):
        return "no such data set"
    return f"no file {path}" if isinstance(error, RemoteEntryNotFoundError) else reason_of(error)
