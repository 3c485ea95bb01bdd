"""Rows from files and from the embedded demo. Must not know splitting or dropping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtloop.data.demo import PAIRS_SHA256, demo_pairs
from mtloop.data.files import InputFile, find_files, identify, kind_of
from mtloop.data.readers import aligned_rows, record_rows
from mtloop.data.rows import Columns, pack
from mtloop.data.store import Raw, Store
from mtloop.errors import UserError
from mtloop.languages import base_code


def load_files(flag: str, patterns: list[str], columns: Columns, store: Store) -> Raw:
    """Load the files of one split.

    Raises:
        UserError: naming `flag` and the path, or path:LINE.
    """
    paths = find_files(flag, patterns)
    kind = kind_of(flag, paths)
    if kind == "text":
        _check_text_pair(flag, patterns, paths, columns)
    files = tuple(identify(path, flag=flag) for path in paths)
    if kind == "text":
        return load_text_pair(files[0], files[1], store)
    return load_records(files, kind, columns, store)


def load_records(files: tuple[InputFile, ...], kind: str, columns: Columns, store: Store) -> Raw:
    """Load files whose rows have named columns.

    Raises:
        UserError: see `record_rows`.
    """
    identity = {"kind": kind.removesuffix("l"), "sha256": [file.sha256 for file in files], "columns": columns.names}
    rows = store.fill(record_rows, identity, {"files": files, "kind": kind, "columns": columns})
    return Raw(rows, identity, [file.record for file in files])


def load_text_pair(source: InputFile, target: InputFile, store: Store) -> Raw:
    """Load two aligned text files.

    Raises:
        UserError: see `aligned_rows`.
    """
    identity = {"kind": "text", "sha256": [source.sha256, target.sha256], "members": [source.member, target.member]}
    rows = store.fill(aligned_rows, identity, {"source": source, "target": target})
    return Raw(rows, identity, [source.record, target.record])


def _check_text_pair(flag: str, patterns: list[str], paths: list[str], columns: Columns) -> None:
    advice = "plain text needs exactly two aligned files, source first"
    if len(paths) != 2 or len(patterns) != 2:
        raise UserError(f"{flag} {' '.join(patterns)}: {advice} ({len(patterns)} given, {len(paths)} found)")
    endings = [Path(path.removesuffix(".gz")).suffix.removeprefix(".") for path in paths]
    if endings == [columns.target_lang, columns.source_lang] and endings[0] != endings[1]:
        raise UserError(f"{flag} {' '.join(paths)}: {advice}; these seem to be swapped (--source_lang {endings[1]})")


def load_demo(columns: Columns, store: Store) -> dict[str, Raw]:
    """Load the embedded English-French corpus.

    Raises:
        UserError: for other languages.
    """
    languages = tuple(base_code(code or "none") for code in (columns.source_lang, columns.target_lang))
    if languages not in (("en", "fr"), ("fr", "en")):
        raise UserError(
            f"--dataset_name demo has English and French only, not {columns.source_lang} to {columns.target_lang}"
        )
    raws = {}
    for split, demo_split in (("train", "train"), ("valid", "validation")):
        pairs_sha256 = PAIRS_SHA256[demo_split]
        identity = {"kind": "demo", "sha256": pairs_sha256, "source": languages[0]}
        arguments = {"split": demo_split, "is_swapped": languages[0] == "fr", "pairs_sha256": pairs_sha256}
        rows = store.fill(demo_rows, identity, arguments)
        raws[split] = Raw(rows, identity, [{"name": "demo", "split": demo_split, "sha256": pairs_sha256}])
    return raws


def demo_rows(split: str, is_swapped: bool, pairs_sha256: str, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of the demo; the hash and `version` only distinguish cached results."""
    for index, (english, french) in enumerate(demo_pairs(split)):
        yield pack(index, french, english) if is_swapped else pack(index, english, french)
