"""Rows from a data set of the Hub or from a local data set folder. Must not know splitting or dropping."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from mtloop.config.inputs import split_revision
from mtloop.data.files import InputFile, identify
from mtloop.data.readers import languages_in
from mtloop.data.rows import TRANSLATION, Columns
from mtloop.data.store import Raw, Store
from mtloop.errors import UserError

T = TypeVar("T")
_SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev", "val"), "test": ("test",)}


def load_named(name: str, config_name: str | None, columns: Columns, store: Store) -> dict[str, Raw]:
    """Load the splits of a data set of the Hub, or of a local data set folder.

    Args:
        name: NAME, NAME@REVISION, or a folder.
        config_name: The configuration of the data set.
        columns: Where the texts stand.
        store: The cache.

    Raises:
        UserError: for an unknown name, no network, a data set that needs a script, or missing columns.
    """
    path, revision = split_revision(name)
    cache_dir = store.cache_dir
    try:
        identity, files = _local_identity(path, config_name, columns)
        if identity:
            cache_dir = str(store.folder(identity))
        arguments = {"revision": revision or None, "cache_dir": cache_dir}
        splits = _with_config(datasets.load_dataset, path, config_name, columns, **arguments)
    except UserError:
        raise
    except Exception as error:  # anything from httpx, huggingface_hub, fsspec and every reader of datasets
        raise_if_disk_is_full(error)
        raise _named_error(name, config_name, error) from error
    raws = {}
    for split, accepted in _SPLIT_NAMES.items():
        found = next((candidate for candidate in accepted if candidate in splits), None)
        if found:
            raws[split] = _convert(name, found, splits[found], columns, store, (identity, files))
    if "train" not in raws:
        raise UserError(f"--dataset_name {name}: no split 'train'; there: {', '.join(map(str, splits))}")
    return raws


def _with_config(load: Callable[..., T], path: str, config_name: str | None, columns: Columns, **arguments: Any) -> T:
    """Load with the configuration given; where one is needed and none is given, with that of the languages."""
    try:
        return load(path, config_name, **arguments)
    except ValueError as error:
        languages = (columns.source_lang, columns.target_lang)
        for guess in (f"{languages[0]}-{languages[1]}", f"{languages[1]}-{languages[0]}"):
            # The message lists the configurations there are.
            if config_name is None and repr(guess) in str(error):
                return load(path, guess, **arguments)
        raise


def _local_identity(path: str, config_name: str | None, columns: Columns) -> tuple[Any, dict[str, list[InputFile]]]:
    """Hash the files of a local folder: the library itself would go by their times. None for a name of the Hub."""
    if not Path(path).is_dir():
        return None, {}
    builder = _with_config(datasets.load_dataset_builder, path, config_name, columns)
    data_files = builder.config.data_files or {}
    files = {
        str(split): [identify(str(file), flag="--dataset_name") for file in split_files]
        for split, split_files in data_files.items()
    }
    hashes = {split: [file.sha256 for file in split_files] for split, split_files in files.items()}
    return {"kind": "folder", "config": builder.config.name, "sha256": hashes}, files


def _convert(
    name: str,
    split: str,
    rows: Dataset,
    columns: Columns,
    store: Store,
    local: tuple[Any, dict[str, list[InputFile]]],
) -> Raw:
    columns.check(f"{name} ({split})", rows.column_names, languages_in(rows.features.arrow_schema))
    names = [columns.key(name, rows.column_names) for name in columns.names]
    wanted = [column for column in dict.fromkeys((TRANSLATION, *names)) if column in rows.column_names]
    packed = store.convert(rows.select_columns(wanted), columns)
    content, files = local
    if content is None:
        # The addresses hold the repository and its commit.
        urls = sorted(rows.info.download_checksums or [rows._fingerprint])
        content = {"kind": "hub", "config": rows.info.config_name, "urls": urls}
    origin = {"name": name, "config": rows.info.config_name, "split": split}
    origin["files"] = [file.record for file in files[split]] if files else content["urls"]
    return Raw(packed, {**content, "split": split, "columns": columns.names}, [origin])


def _named_error(name: str, config_name: str | None, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {first_line(error.__cause__ or error)}"
    if "scripts are no longer" in str(error):
        remedy = "datasets no longer runs loading scripts: try --dataset_name NAME@refs/convert/parquet, "
        remedy += "opus:<Corpus>/<version>, or --train_file (--trust_remote_code does not change this)"
    elif isinstance(error, ValueError) and "onfig" in str(error):
        reason = " ".join(str(error).split())[:500]
        remedy = f"choose one of its configurations with --dataset_config_name (now {config_name})"
    else:
        remedy = "check the name; without a network give --train_file, or set HF_HOME to a filled cache, or run "
        remedy += (
            f"`hf download --repo-type dataset {name.partition('@')[0]}` elsewhere and give its folder as the name"
        )
    return UserError(f"--dataset_name {name}: cannot be loaded ({reason}): {remedy}")


def raise_if_disk_is_full(error: Exception) -> None:
    """Let a full disk pass as what it is: no mistake in a name."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cause


@contextmanager
def download_progress() -> Iterator[None]:
    """Show the progress of downloads on a terminal, although train.py has silenced the libraries."""
    group = "huggingface_hub"
    is_silenced = are_progress_bars_disabled(group) and constants.HF_HUB_DISABLE_PROGRESS_BARS is not True
    if is_silenced:
        enable_progress_bars(group)
    try:
        yield
    finally:
        if is_silenced:
            disable_progress_bars(group)


def reason_of(error: BaseException) -> str:
    """Return the type and the first line of the error that caused this one."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def first_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    return str(error).strip().partition("\n")[0]
