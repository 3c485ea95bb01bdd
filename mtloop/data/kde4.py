"""KDE4, the corpus of the Hugging Face course: five pairs as Parquet on the Hub, every pair as an archive of OPUS."""

from __future__ import annotations

from collections.abc import Callable

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from mtloop.data.files import identify
from mtloop.data.named import download_progress, raise_if_disk_is_full, reason_of
from mtloop.data.opus import REMEDY, Archive, Say, given_languages
from mtloop.data.rows import Columns
from mtloop.data.sources import load_records
from mtloop.data.store import Raw, Store
from mtloop.errors import UserError
from mtloop.languages import advise, match_language

REPO, BRANCH = "Helsinki-NLP/kde4", "refs/convert/parquet"
HUB_BRANCH = f"{REPO}@{BRANCH}"
# What a user may call it; the main branch on the Hub holds a loading script, which datasets 4 and later do not run.
NAMES = ("kde4", REPO, HUB_BRANCH)
# The branch has a folder for each of these pairs and no configurations.
PAIRS_ON_HUB = ("en-fr", "en-it", "fi-nl", "it-ro", "nl-sv")
# The 92 languages of KDE4 v2 as OPUS writes them. Source: the corpus's page on OPUS (public_html/KDE4.php of
# Helsinki-NLP/OPUS-ingest), which agrees with the card of the data set on the Hub.
_CODES = """
af ar as ast be bg bn bn_IN br ca crh cs csb cy da de el en en_GB eo es et eu fa fi fr fy ga gl gu ha he hi hne hr hsb
hu hy id is it ja ka kk km kn ko ku lb lt lv mai mk ml mr ms mt nb nds ne nl nn nso oc or pa pl ps pt pt_BR ro ru rw se
si sk sl sr sv ta te tg th tr uk uz vi wa xh zh_CN zh_HK zh_TW
"""
CODES = tuple(_CODES.split())


def load_kde4(columns: Columns, store: Store, *, recorded: str | None, say: Say) -> dict[str, Raw]:
    """Load a pair of KDE4: from the Hub where it has it, else from OPUS, each named in a line.

    Args:
        columns: The languages, in any code or by name.
        store: The cache.
        recorded: Where a resumed run has its rows from, as in the report: nothing else is tried, because the rows of
            the Hub lack the outer white space that those of OPUS have.
        say: Prints a line.

    Raises:
        UserError: a language that KDE4 does not have, or the reason why each source failed.
    """
    source, target = map(find_code, ("--source_lang", "--target_lang"), given_languages("kde4", columns))
    if source == target:
        raise UserError(f"--target_lang: the source language of kde4 again (got {columns.target_lang}). Give another.")
    pair = "-".join(sorted((source, target)))
    archive = Archive("KDE4", "v2", source, target)
    routes: dict[str, tuple[str, Callable[[], Raw]]] = {archive.name: (archive.url, lambda: archive.load(store))}
    if pair in PAIRS_ON_HUB:
        routes = {HUB_BRANCH: (HUB_BRANCH, lambda: _load_parquet(pair, Columns(source, target), store)), **routes}
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
        remedy += " A resumed run reads its rows from where it had them; another --output_dir may read them elsewhere."
    raise UserError(f"--dataset_name kde4: cannot load {pair} ({'; '.join(failures)}). {remedy}")


def find_code(flag: str, language: str) -> str:
    """Return the code that KDE4 has for a language.

    Raises:
        UserError: naming `flag` and what it may be: KDE4 has none, or several.
    """
    found = match_language(language, CODES)
    if len(found) != 1:
        problem = "kde4 has several such languages" if found else "kde4 does not have this language"
        advice = advise(language, CODES)
        raise UserError(f"{flag}: {problem} (got {language}). {advice[0].upper()}{advice[1:]}.")
    return found[0]


def _load_parquet(pair: str, columns: Columns, store: Store) -> Raw:
    """Return the rows of a pair's file on the Hub.

    The file is downloaded by itself: load_dataset(data_dir=..., revision=...) does not find its own cache without a
    network (datasets 5.2).

    Raises:
        UserError: with the reason alone.
    """
    path = f"{pair}/train/0000.parquet"
    cached = try_to_load_from_cache(REPO, path, revision=BRANCH, repo_type="dataset")
    try:
        with download_progress():
            local = hf_hub_download(REPO, path, revision=BRANCH, repo_type="dataset")
    except Exception as error:  # anything from httpx and huggingface_hub
        raise_if_disk_is_full(error)
        if not isinstance(cached, str):
            raise UserError(f"{HUB_BRANCH}: {_hub_reason(error, path)}") from error
        local = cached
    file = identify(local, flag="--dataset_name", name=f"{HUB_BRANCH}/{path}")
    raw = load_records((file,), "parquet", columns, store)
    return Raw(raw.rows, raw.identity, [{"name": HUB_BRANCH, **file.record}])


def _hub_reason(error: Exception, path: str) -> str:
    if isinstance(error, RevisionNotFoundError):
        return "no such branch"
    if isinstance(error, RepositoryNotFoundError):
        return "no such data set"
    return f"no file {path}" if isinstance(error, RemoteEntryNotFoundError) else reason_of(error)
