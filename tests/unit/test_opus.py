"""Test data.opus with the real clients against a Hub and an OPUS on loopback."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from mtloop.config.inputs import DataConfig
from mtloop.config.parse import parse_config
from mtloop.data.load import Corpus, load_corpus
from mtloop.data.opus import HUB_BRANCH, KDE4_CODES, KDE4_PAIRS_ON_HUB, _spellings, find_code
from mtloop.errors import UserError
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.setup_inputs import load_corpora
from tests.support.hub_server import HubServer
from tests.support.kde4 import KDE4, PARQUET_BRANCH, add_archive, add_kde4, archive

# The same rows from both sources: those of the Hub were stripped when its files were made.
ENGLISH, OTHER = [f"line {number}" for number in range(8)], [f"Zeile {number}" for number in range(8)]


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    """Start one server for all tests."""
    with HubServer() as started:
        add_kde4(started, list(zip(ENGLISH, OTHER, strict=True)), pairs=["en-fr"])
        yield started


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Point the clients at the server, with empty caches; undo what the test does to it."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template[template.index("/{repo_id}") :])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("MTLOOP_OPUS_URL", f"{server.url}/")
    repo = server.repos[KDE4]
    branches = dict(repo.branches)
    server.requests.clear()
    yield server
    server.heal()
    server.archives.clear()
    server.repos[KDE4] = repo
    repo.branches = branches


def load(name: str, source_lang: str | None, target_lang: str | None, **how: Any) -> tuple[Corpus, list[str]]:
    """Load a corpus; return it and the lines that were printed."""
    lines: list[str] = []
    config = DataConfig(dataset_name=name, source_lang=source_lang, target_lang=target_lang, validation_split=0.25)
    return load_corpus(config, say=lines.append, **how), lines


def error_of(name: str, source_lang: str | None, target_lang: str | None, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(name, source_lang, target_lang, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(corpus: Corpus) -> set[tuple[str, str]]:
    """Return all rows of train and valid."""
    return {(row["source"], row["target"]) for rows in (corpus.train, corpus.valid) for row in rows}


def file_of(lines: list[str], end: str = "\n") -> bytes:
    return "".join(line + end for line in lines).encode()


def downloads(hub: HubServer) -> list[str]:
    """Return the archives and Parquet files downloaded since the test began."""
    return [request for request in hub.requests if request.startswith("GET") and request.endswith((".zip", ".parquet"))]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        *(("German", "de"), ("de_DE", "de"), ("deu_Latn", "de"), ("de", "de")),
        *(("pt_BR", "pt_BR"), ("pt-br", "pt_BR"), ("pt", "pt"), ("Portuguese", "pt"), ("por_Latn", "pt")),
        *(("en_GB", "en_GB"), ("English", "en"), ("en_US", "en"), ("zh_Hans", "zh_CN"), ("zh_TW", "zh_TW")),
        *(("Norwegian", "nb"), ("nno_Latn", "nn"), ("Serbian", "sr"), ("ben_Beng", "bn"), ("hne", "hne")),
    ],
)
def test_find_code_resolves_codes_and_names(given: str, code: str) -> None:
    assert find_code("--source_lang", given) == code


@pytest.mark.parametrize(
    ("given", "candidates"),
    [("zh", "zh_CN, zh_HK, zh_TW"), ("Chinese", "zh_CN, zh_HK, zh_TW"), ("zh_Hant", "zh_HK, zh_TW")],
)
def test_find_code_lists_candidates(given: str, candidates: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"^--target_lang: kde4 has several such languages \(got {given}\)\. Give one of {candidates}",
    ):
        find_code("--target_lang", given)


def test_find_code_refuses_unknown_language() -> None:
    with pytest.raises(
        UserError, match=r"^--source_lang: kde4 does not have this language \(got sr@latin\)\. Give one of sr\."
    ):
        find_code("--source_lang", "sr@latin")


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        *[("de_DE", ["de_DE", "de"]), ("German", ["de"]), ("ca@valencia", ["ca@valencia", "ca"])],
        *[("sr@latin", ["sr@latin"]), ("uz_Cyrl", ["uz_Cyrl"]), ("yue", ["yue"]), ("zh_TW", ["zh_TW", "zh"])],
    ],
)
def test_spellings_leave_out_a_base_code_of_another_language_or_script(given: str, codes: list[str]) -> None:
    assert _spellings(given) == codes


def test_kde4_codes() -> None:
    # OPUS says "92 languages"; the pages and archives sort them as ASCII does.
    assert len(set(KDE4_CODES)) == 92 and list(KDE4_CODES) == sorted(KDE4_CODES)
    assert {code for pair in KDE4_PAIRS_ON_HUB for code in pair.split("-")} < set(KDE4_CODES)


def test_kde4_reads_the_parquet_branch_and_its_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, lines = load("kde4", "en", "fr")
    assert texts(corpus) == set(zip(ENGLISH, OTHER, strict=True))
    assert lines == [f"loading kde4 en-fr from {HUB_BRANCH}"]
    (source,) = corpus.report["sources"]["train"]
    assert (source["name"], source["path"]) == (HUB_BRANCH, f"{HUB_BRANCH}/en-fr/train/0000.parquet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    named, _ = load("kde4", "English", "French")
    assert named.report == corpus.report
    swapped, _ = load("Helsinki-NLP/kde4", "fr", "en")
    assert texts(swapped) == set(zip(OTHER, ENGLISH, strict=True))
    assert len(downloads(hub)) == 1
    # A branch that is gone does not take away what the cache has.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    del hub.repos[KDE4].branches[PARQUET_BRANCH]
    assert load("kde4", "en", "fr")[0].report == corpus.report


@pytest.mark.parametrize(
    ("source", "target", "path"),
    [
        ("German", "English", "OPUS-KDE4/v2/moses/de-en.txt.zip"),
        ("en", "pt_BR", "OPUS-KDE4/v2/moses/en-pt_BR.txt.zip"),
        ("British English", "eng_Latn", "OPUS-KDE4/v2/moses/en-en_GB.txt.zip"),
    ],
)
def test_kde4_reads_other_pairs_from_opus(hub: HubServer, source: str, target: str, path: str) -> None:
    codes = [find_code("--source_lang", source), find_code("--target_lang", target)]
    sides = {codes[0]: file_of(OTHER), codes[1]: file_of(ENGLISH)}
    assert add_archive(hub, "KDE4/v2", sides) == path
    corpus, lines = load("kde4", source, target)
    assert texts(corpus) == set(zip(OTHER, ENGLISH, strict=True))
    assert lines == [f"loading kde4 {'-'.join(sorted(codes))} from {hub.url}/{path}"]
    assert hub.requests == [f"GET /{path}"]
    (source_of_train,) = corpus.report["sources"]["train"]
    assert source_of_train["name"] == "opus:KDE4/v2" and source_of_train["path"] == f"{hub.url}/{path}"


def test_local_folder_precedes_kde4(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Helsinki-NLP" / "kde4"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("en,fr\n" + "a,b\n" * 4)
    monkeypatch.chdir(tmp_path)
    assert texts(load("Helsinki-NLP/kde4", "en", "fr")[0]) == {("a", "b")}
    assert hub.requests == []


def test_kde4_refuses_one_language_twice(hub: HubServer) -> None:
    assert "--target_lang: the source language of kde4 again (got German)" in error_of("kde4", "de", "German")
    assert "--source_lang" in error_of("kde4", None, "de")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("branch", "no such branch"),
        ("data set", "no such data set"),
        ("file", "no file en-fr/train/0000.parquet"),
        ("access", "403"),
    ],
)
def test_kde4_falls_back_to_opus(hub: HubServer, fault: str, reason: str) -> None:
    if fault == "branch":
        del hub.repos[KDE4].branches[PARQUET_BRANCH]
    elif fault == "data set":
        del hub.repos[KDE4]
    elif fault == "file":
        hub.repos[KDE4].branches[PARQUET_BRANCH] = hub.repos[KDE4].branches[PARQUET_BRANCH][:1]
    else:
        hub.fail("parquet", 403, 1_000)
    path = add_archive(hub, "KDE4/v2", {"en": file_of(ENGLISH, " \n"), "fr": file_of(OTHER)})
    corpus, lines = load("kde4", "en", "fr")
    assert texts(corpus) == {(f"{english} ", other) for english, other in zip(ENGLISH, OTHER, strict=True)}
    first, second = lines
    assert first == f"loading kde4 en-fr from {HUB_BRANCH}"
    assert second.startswith(f"loading kde4 en-fr from {hub.url}/{path} ({HUB_BRANCH}: ") and reason in second


def test_kde4_names_the_reason_of_each_source(hub: HubServer) -> None:
    del hub.repos[KDE4].branches[PARQUET_BRANCH]
    message = error_of("kde4", "en", "fr")
    assert message.startswith(f"--dataset_name: cannot load en-fr of kde4 ({HUB_BRANCH}: no such branch; ")
    assert f"OPUS has no such archive: {hub.url}/OPUS-KDE4/v2/moses/en-fr.txt.zip" in message
    assert "MTLOOP_OPUS_URL" in message and "--train_file" in message


def test_kde4_resumes_from_recorded_source(hub: HubServer, tmp_path: Path) -> None:
    branch = hub.repos[KDE4].branches.pop(PARQUET_BRANCH)
    add_archive(hub, "KDE4/v2", {"en": file_of(ENGLISH, " \n"), "fr": file_of(OTHER)})
    opus = load("kde4", "en", "fr")[0].report
    hub.repos[KDE4].branches[PARQUET_BRANCH] = branch
    parquet = load("kde4", "en", "fr")[0].report
    assert opus["fingerprint"] != parquet["fingerprint"]
    for report in (opus, parquet):
        assert load("kde4", "en", "fr", sources=report["sources"])[0].report == report
    # Nothing else is tried: its rows are not the same.
    del hub.repos[KDE4].branches[PARQUET_BRANCH]
    (tmp_path / "hub").rename(tmp_path / "moved")
    message = error_of("kde4", "en", "fr", sources=parquet["sources"])
    assert "no such branch" in message and "OPUS-KDE4" not in message and "resumed run" in message
    # A run on something else, continued with --allow_changed, has no source of kde4 to go by.
    assert load("kde4", "en", "fr", sources={"train": [{"path": "pairs.jsonl"}]})[0].report == opus


def test_kde4_without_a_network_or_a_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert error_of("kde4", "en", "fr").count("OfflineModeIsEnabled") == 2
    assert hub.requests == []


@pytest.mark.slow
def test_pairs_resume_from_recorded_sources(hub: HubServer, runtime: Runtime) -> None:
    branch = hub.repos[KDE4].branches.pop(PARQUET_BRANCH)
    add_archive(hub, "KDE4/v2", {"en": file_of(ENGLISH, " \n"), "fr": file_of(OTHER)})
    flags = ["--dataset_name", "kde4", "--model_size", "tiny", "--train_tokenizer"]
    config = parse_config([*flags, "--pairs", "en-fr,French-English"])
    first = [corpus.report for corpus in load_corpora(config, runtime, {})]
    hub.repos[KDE4].branches[PARQUET_BRANCH] = branch
    other = [corpus.report for corpus in load_corpora(config, runtime, {})]
    names = [report["sources"]["train"][0]["name"] for report in first + other]
    assert names == ["opus:KDE4/v2", "opus:KDE4/v2", HUB_BRANCH, HUB_BRANCH]
    recorded = {"sources": other[0]["sources"], "pairs": {"en-fr": other[0], "French-English": first[1]}}
    assert [corpus.report for corpus in load_corpora(config, runtime, recorded)] == [other[0], first[1]]
    # The data.json of a run that had one pair has no "pairs".
    single = parse_config([*flags, "--source_lang", "en", "--target_lang", "fr"])
    assert load_corpora(single, runtime, first[0])[0].report == first[0]


class Terminal(io.StringIO):
    """A standard error that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "is_shown"), [(Terminal(), True), (io.StringIO(), False)], ids=["terminal", "file"])
def test_download_progress_on_terminal(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, is_shown: bool
) -> None:
    add_archive(hub, "KDE4/v2", {"de": file_of(OTHER), "en": file_of(ENGLISH)})
    monkeypatch.setattr(sys, "stderr", stream)
    disable_progress_bars()  # as train.py does
    try:
        load("kde4", "en", "fr")
        load("kde4", "en", "de")
        assert are_progress_bars_disabled("huggingface_hub.http_get")
    finally:
        enable_progress_bars()
    shown = stream.getvalue()
    assert ("0000.parquet: 100%" in shown, "KDE4 de-en: 100%" in shown) == (is_shown, is_shown)


def test_truncated_archive_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.repos[KDE4].branches.pop(PARQUET_BRANCH)
    path = add_archive(hub, "KDE4/v2", {"en": file_of(ENGLISH), "fr": file_of(OTHER)})
    hub.reset(f"GET /{path}", when="answer")
    message = error_of("kde4", "en", "fr")
    assert f"{hub.url}/{path}: " in message and "--train_file" in message
    assert [file.suffix for file in (tmp_path / "datasets" / "mtloop" / "downloads").iterdir()] == [".lock"]
    assert texts(load("kde4", "en", "fr")[0]) == set(zip(ENGLISH, OTHER, strict=True))


def test_truncated_parquet_is_refused(hub: HubServer) -> None:
    hub.reset("GET .*0000.parquet", when="answer")
    assert "OPUS has no such archive" in error_of("kde4", "en", "fr")
    assert texts(load("kde4", "en", "fr")[0]) == set(zip(ENGLISH, OTHER, strict=True))


def test_opus_archive_is_downloaded_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = add_archive(hub, "Books/v1", {"en": b"a\nb\nc\n\n", "fr": "\u00e0\nb\x85\nc\nd\n".encode()})
    corpus, lines = load("opus:Books/v1", "en", "fr")
    pairs = {("a", "\u00e0"), ("b", "b\x85"), ("c", "c")}
    # The fourth row is empty on one side.
    assert texts(corpus) == pairs
    assert lines == [f"loading opus:Books/v1 from {hub.url}/{path}"]
    (source,) = corpus.report["sources"]["train"]
    assert source["path"] == f"{hub.url}/{path}" and source["size"] == len(hub.blobs[hub.archives[path]])
    assert texts(load("opus:Books/v1", "fr", "en")[0]) == {(fr, en) for en, fr in pairs}
    assert hub.requests == [f"GET /{path}"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load("opus:Books/v1", "en", "fr")[0].report == corpus.report


def test_opus_tries_a_code_as_given_and_its_base_code(hub: HubServer) -> None:
    base = add_archive(hub, "Books/v1", {"de": b"a\nb\n", "en": b"c\nd\n"})
    own = add_archive(hub, "Tatoeba/v1", {"cmn": b"a\nb\n", "en": b"c\nd\n"})
    tried = base.replace("de-en", "de_DE-en")
    assert load("opus:Books/v1", "de_DE", "English")[1] == [
        f"loading opus:Books/v1 from {hub.url}/{path}" for path in (tried, base)
    ]
    # What is in the cache comes first.
    assert load("opus:Books/v1", "de_DE", "English")[1] == [f"loading opus:Books/v1 from {hub.url}/{base}"]
    load("opus:Tatoeba/v1", "cmn", "en")
    assert hub.requests == [f"GET /{path}" for path in (tried, base, own)]
    message = error_of("opus:News/v1", "pt_BR", "Low German")
    for pair in ("nds-pt_BR", "nds-pt"):
        assert f"OPUS has no such archive: {hub.url}/OPUS-News/v1/moses/{pair}.txt.zip" in message
    assert "both languages are the same" in error_of("opus:News/v1", "de", "German")


def test_opus_errors_name_archive_and_remedy(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    good = archive("Books", {"en": b"line\n" * 400, "fr": b"ligne\n" * 400})
    middle = good.index(b"Books.en-fr.en") + 14 + 4
    path = "OPUS-Books/v1/moses/en-fr.txt.zip"
    for damaged in (good[:100], b"<html>busy</html>", good[:middle] + b"\xff\xff\xff" + good[middle + 3 :]):
        hub.archives[path] = hub.store(damaged)
        message = error_of("opus:Books/v1", "en", "fr")
        assert f"{hub.url}/{path}: corrupt download" in message and "--train_file" in message
    # A good archive takes the place of a damaged one.
    hub.archives[path] = hub.store(good)
    assert len(load("opus:Books/v1", "en", "fr")[0].train) == 300
    hub.archives["OPUS-Other/v1/moses/en-fr.txt.zip"] = hub.archives[path]
    assert "expected a file Other.en-fr.en" in error_of("opus:Other/v1", "en", "fr")
    assert "opus:<Corpus>/<version>" in error_of("opus:Books", "en", "fr")
    assert "--source_lang" in error_of("opus:Books/v1", None, "fr")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = error_of("opus:News/v1", "en", "fr")
    assert "OfflineModeIsEnabled" in message and "--train_file" in message
