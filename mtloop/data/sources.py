"""Load rows from files, from the embedded demo, and from a data set of the Hub or a local data set folder.

Must not know splitting or dropping.
"""

from __future__ import annotations

import csv
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets import Dataset, DatasetBuilder
from datasets.packaged_modules.arrow.arrow import ArrowConfig
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from mtloop.atomic import read_json
from mtloop.config.inputs import Dialect
from mtloop.config.model import split_revision
from mtloop.data.demo.grammar import PAIRS_SHA256, demo_pairs
from mtloop.data.files import InputFile, find_files, identify, kind_of
from mtloop.data.readers import aligned_rows, record_rows
from mtloop.data.row_shapes import TRANSLATION, languages_in, languages_of
from mtloop.data.rows import Columns, LoadedSplit, pack
from mtloop.data.store import READ_ONLY, Store
from mtloop.errors import UserError, without_passwords
from mtloop.languages import base_code

T = TypeVar("T")
# What may be set in the configuration of a data set whose files are read here.
_CONFIG_OF_ANY_FILES = ("name", "version", "data_dir", "data_files", "description", "features", "sep")
_NUM_SAMPLED = 1000  # rows in which the languages of a data set are looked up
# The setting that names the files of a split, and the names that it has in data sets.
SPLIT_FIELDS = {"train": "train_file", "valid": "validation_file", "test": "test_file"}
SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev", "val"), "test": ("test",)}


def load_files(flag: str, patterns: list[str], columns: Columns, dialect: Dialect, store: Store) -> LoadedSplit:
    """Load the files of one split.

    Raises:
        UserError: naming `flag` and the path, or path:LINE.
    """
    paths = find_files(flag, patterns)
    kind = kind_of(flag, paths, (columns.source_lang, columns.target_lang))
    if kind == "text":
        _check_text_pair(flag, patterns, paths, columns)
    files = tuple(identify(path, flag=flag) for path in paths)
    if kind == "text":
        return load_text_pair(files[0], files[1], store)
    return load_records(files, kind, columns, store, dialect)


def load_records(
    files: tuple[InputFile, ...], kind: str, columns: Columns, store: Store, dialect: Dialect | None = None
) -> LoadedSplit:
    """Load files with named columns.

    Raises:
        UserError: see `record_rows`.
    """
    dialect = dialect or Dialect()
    identity: dict[str, Any] = {"kind": kind.removesuffix("l"), "sha256": [file.sha256 for file in files]}
    identity |= {"columns": columns.names, **dialect.changes(kind)}
    identity |= {"group_by": columns.group_by} if columns.group_by else {}
    rows = store.fill(record_rows, identity, {"files": files, "kind": kind, "columns": columns, "dialect": dialect})
    return LoadedSplit(rows, identity, [file.record for file in files])


def load_text_pair(source: InputFile, target: InputFile, store: Store) -> LoadedSplit:
    """Load two aligned text files.

    Raises:
        UserError: see `aligned_rows`.
    """
    identity = {"kind": "text", "sha256": [source.sha256, target.sha256], "members": [source.member, target.member]}
    rows = store.fill(aligned_rows, identity, {"source": source, "target": target})
    return LoadedSplit(rows, identity, [source.record, target.record])


def _check_text_pair(flag: str, patterns: list[str], paths: list[str], columns: Columns) -> None:
    if len(paths) != 2 or len(patterns) != 2:
        found = "" if len(paths) == len(patterns) else f", which match {len(paths)} files"
        raise UserError(
            f"{flag}: plain text must be two aligned files (got {' '.join(patterns)}{found}). Give two, source first."
        )
    endings = [Path(path.removesuffix(".gz")).suffix.removeprefix(".") for path in paths]
    if endings == [columns.target_lang, columns.source_lang] and endings[0] != endings[1]:
        raise UserError(
            f"{flag}: the two files seem to be swapped (got {' '.join(paths)} with {columns.flags[0]} "
            f"{endings[1]}). Give the source first."
        )


def load_demo(columns: Columns, store: Store) -> dict[str, LoadedSplit]:
    """Load the embedded English-French corpus.

    Raises:
        UserError: for other languages.
    """
    languages = tuple(base_code(code or "none") for code in (columns.source_lang, columns.target_lang))
    if languages not in (("en", "fr"), ("fr", "en")):
        raise UserError(
            f"--dataset_name: demo has English and French only (got {columns.source_lang} to {columns.target_lang}). "
            "Give --source_lang en --target_lang fr, or fr and en."
        )
    loaded = {}
    for split, demo_split in (("train", "train"), ("valid", "validation")):
        pairs_sha256 = PAIRS_SHA256[demo_split]
        identity = {"kind": "demo", "sha256": pairs_sha256, "source": languages[0]}
        arguments = {"split": demo_split, "is_swapped": languages[0] == "fr", "pairs_sha256": pairs_sha256}
        rows = store.fill(demo_rows, identity, arguments)
        loaded[split] = LoadedSplit(rows, identity, [{"name": "demo", "split": demo_split, "sha256": pairs_sha256}])
    return loaded


def demo_rows(split: str, is_swapped: bool, pairs_sha256: str, version: int) -> Iterator[dict[str, Any]]:
    """Yield the packed rows of the demo; the hash and `version` only distinguish cached results."""
    for index, (english, french) in enumerate(demo_pairs(split)):
        yield pack(index, french, english) if is_swapped else pack(index, english, french)


def load_named(
    name: str, config_name: str | None, columns: Columns, dialect: Dialect, store: Store
) -> dict[str, LoadedSplit]:
    """Load the splits of a data set of the Hub, or of a local data set folder.

    Args:
        name: NAME, NAME@REVISION, or a folder.
        config_name: The configuration of the data set.
        columns: The place of the texts.
        dialect: The form of .csv and .tsv files.
        store: The cache.

    Raises:
        UserError: for an unknown name, no network, a data set that needs a script, or missing columns.
    """
    path, revision = split_revision(name)
    cache_dir = store.cache_dir
    try:
        options: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
        if saved := _saved_files(path):
            path, options["data_files"] = "arrow", {"train": saved}
        builder = _with_config(datasets.load_dataset_builder, path, config_name, columns, **options)
        form = _form_of(builder, dialect)
        identity, files = _local_identity(builder, form) if saved or Path(path).is_dir() else (None, {})
        if identity:
            cache_dir = str(store.folder(identity))
        kinds = _kinds_of(builder, files)
        splits: Any = kinds
        if not kinds:
            arguments = {**options, "cache_dir": cache_dir, **form}
            if isinstance(builder.config, CsvConfig):
                _check_header(name, dialect)
                arguments["keep_default_na"] = False  # the text "null" is a text
            splits = _with_config(datasets.load_dataset, path, config_name, columns, **arguments)
    except UserError:
        raise
    except Exception as error:  # anything from httpx, huggingface_hub, fsspec, and every reader of datasets
        raise_if_disk_is_full(error)
        raise _named_error(name, config_name, error) from error
    loaded = {}
    for split, accepted in SPLIT_NAMES.items():
        found = next((candidate for candidate in accepted if candidate in splits), None)
        columns = columns if split == "train" else replace(columns, group_by=())
        if found in kinds:
            assert identity is not None
            rows = load_records(tuple(files[found]), kinds[found], columns, store, dialect).rows
            origin = {"name": name, "config": builder.config.name, "split": found}
            origin["files"] = [file.record for file in files[found]]
            loaded[split] = LoadedSplit(rows, {**identity, "split": found, "columns": columns.names}, [origin])
        elif found:
            quoting = "csv" if isinstance(builder.config, CsvConfig) and "quoting" not in form else None
            try:
                loaded[split] = _convert(name, found, splits[found], columns, store, (identity, files, form), quoting)
            except (UserError, OSError):
                raise
            except Exception as error:  # of a value that Python lacks: a date, a text that is not UTF-8
                raise _named_error(name, config_name, error) from error
    if "train" not in loaded:
        raise UserError(
            f"--dataset_name: {name} has no split 'train' (got {', '.join(map(str, splits))}). Give one of its "
            "files to --train_file."
        )
    return loaded


def _with_config(load: Callable[..., T], path: str, config_name: str | None, columns: Columns, **arguments: Any) -> T:
    """Load with the configuration given; if one is required and none is given, with that of the languages."""
    try:
        return load(path, config_name, **arguments)
    except ValueError as error:
        languages = (columns.source_lang, columns.target_lang)
        for guess in (f"{languages[0]}-{languages[1]}", f"{languages[1]}-{languages[0]}"):
            # The message lists the configurations of the data set.
            if config_name is None and repr(guess) in str(error):
                return load(path, guess, **arguments)
        raise


def _form_of(builder: DatasetBuilder, dialect: Dialect) -> dict[str, Any]:
    """Return what differs from the library's way to read .csv and .tsv files, as its arguments."""
    if not isinstance(builder.config, CsvConfig):
        return {}
    form: dict[str, Any] = {"sep": dialect.delimiter} if dialect.delimiter else {}
    form |= {"header": None} if dialect.no_header else {}
    kind = "tsv" if builder.config.sep == "\t" else "csv"
    return form if dialect.is_quoted(kind) else {**form, "quoting": csv.QUOTE_NONE}


def _check_header(name: str, dialect: Dialect) -> None:
    if dialect.no_header:
        raise UserError(
            f"--no_header: only valid for files and folders on this machine (got --dataset_name {name}). Download its "
            "files and give them to --train_file."
        )


def _kinds_of(builder: DatasetBuilder, files: dict[str, list[InputFile]]) -> dict[str, str]:
    """Return the kind of the files of each split of a local folder; none if only the library can read them."""
    config = builder.config
    own, usual = vars(config), vars(type(config)())
    if not isinstance(config, (ArrowConfig, CsvConfig, JsonConfig, ParquetConfig)):
        return {}
    if any(own[name] != usual[name] for name in usual if name not in _CONFIG_OF_ANY_FILES):
        return {}
    if isinstance(config, ArrowConfig):
        return dict.fromkeys(files, "arrow")
    try:
        kinds = {split: kind_of("--dataset_name", [file.name for file in of]) for split, of in files.items()}
    except UserError:  # of several kinds, or packed
        return {}
    is_usual = "text" not in kinds.values() and (
        not isinstance(config, CsvConfig) or {Dialect().separator(kind) for kind in kinds.values()} == {config.sep}
    )
    return kinds if is_usual else {}


def _saved_files(path: str) -> list[str]:
    """Return the files of a folder of `Dataset.save_to_disk`, which holds one split; none for any other folder."""
    state = Path(path, "state.json")
    if not state.is_file():
        return []
    return [str(state.with_name(file["filename"])) for file in read_json(state)["_data_files"]]


def _local_identity(builder: DatasetBuilder, form: dict[str, Any]) -> tuple[Any, dict[str, list[InputFile]]]:
    """Hash the files of a local folder: the library itself compares their times."""
    data_files = builder.config.data_files or {}
    files = {
        str(split): [identify(str(file), flag="--dataset_name") for file in split_files]
        for split, split_files in data_files.items()
    }
    hashes = {split: [file.sha256 for file in split_files] for split, split_files in files.items()}
    return {"kind": "folder", "config": builder.config.name, "sha256": hashes, **form}, files


def _convert(
    name: str,
    split: str,
    rows: Dataset,
    columns: Columns,
    store: Store,
    local: tuple[Any, dict[str, list[InputFile]], dict[str, Any]],
    quoting: str | None,
) -> LoadedSplit:
    languages = set(languages_in(rows.features.arrow_schema))
    if TRANSLATION in rows.column_names and not languages:  # in another form than structs
        for value in rows.select(range(min(len(rows), _NUM_SAMPLED)))[TRANSLATION]:
            languages.update(languages_of(value))
    example = rows[0][TRANSLATION] if len(rows) and TRANSLATION in rows.column_names else None
    columns.check(f"{name} ({split})", rows.column_names, languages, example=example)
    names = [columns.key(name, rows.column_names) for name in columns.names]
    named = dict.fromkeys((TRANSLATION, *names, columns.group_column))
    wanted = [column for column in named if column in rows.column_names]
    packed = store.convert(rows.select_columns(wanted), columns, quoting)
    content, files, form = local
    if content is None:
        # The URLs hold the repository and its commit.
        urls = sorted(map(without_passwords, rows.info.download_checksums or [rows._fingerprint]))
        content = {"kind": "hub", "config": rows.info.config_name, "urls": urls, **form}
    origin = {"name": name, "config": rows.info.config_name, "split": split}
    origin["files"] = [file.record for file in files[split]] if files else content["urls"]
    return LoadedSplit(packed, {**content, "split": split, "columns": columns.names}, [origin])


def _named_error(name: str, config_name: str | None, error: Exception) -> UserError:
    reason = reason_of(error)
    if "scripts are no longer" in str(error):
        remedy = (
            "The datasets library runs no loading scripts, and --trust_remote_code does not change this: try "
            "--dataset_name NAME@refs/convert/parquet, opus:<Corpus>/<version>, or --train_file"
        )
    elif "datasets dtype equivalent" in str(error):
        remedy = "The datasets library cannot hold this type. Give its files to --train_file"
    elif isinstance(error, ValueError) and "onfig" in str(error):
        reason = " ".join(str(error).split())[:500]
        remedy = f"Give one of its configurations with --dataset_config_name (got {config_name})"
    elif Path(name).is_dir():
        remedy = "Correct its files, or give them to --train_file, which reads more forms and names the line"
    else:
        remedy = (
            "Check the name. Without a network give --train_file, set HF_HOME to a filled cache, or run `hf download "
            f"--repo-type dataset {name.partition('@')[0]}` on another machine and give its folder as the name"
        )
    return UserError(f"--dataset_name: cannot load {name} ({reason}). {remedy}.")


def raise_if_disk_is_full(error: Exception) -> None:
    """Raise the error of a full disk or of a cache that cannot be written again: it is not a mistake in a name."""
    caches = (constants.HF_HOME, constants.HF_HUB_CACHE, str(datasets.config.HF_DATASETS_CACHE))
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError):
            is_of_cache = cause.errno in (*READ_ONLY, errno.ENOTDIR) and str(cause.filename).startswith(caches)
            if is_of_cache or cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise cause


@contextmanager
def download_progress() -> Iterator[None]:
    """Show the progress of downloads on a terminal, although train.py silences the libraries."""
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
    """Return the type of an error and the first line of its cause, or of itself."""
    cause = error.__cause__ or error
    first_line = str(cause).strip().partition("\n")[0]
    return f"{type(cause).__name__}: {without_passwords(first_line)}"
