"""The cache of rows: generators and loaded data sets -> memory-mapped Arrow files, found again by their content.

Must not know where rows come from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from mtloop.data.rows import RAW_FEATURES, ROWS_VERSION, Columns, pack_batch
from mtloop.errors import UserError

# Every rank loads the corpus, the first one alone and the others after it: what is younger than this process is theirs
# to share even under --overwrite_cache.
_STARTED = time.time()


@dataclass(frozen=True)
class Store:
    """Where rows are kept, and whether what is there counts.

    Attributes:
        cache_dir: The folder; None is the datasets library's own.
        overwrite: Whether to rebuild what an earlier run has left.
    """

    cache_dir: str | None = None
    overwrite: bool = False

    @property
    def root(self) -> Path:
        """The folder for everything that is kept."""
        return Path(self.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "mtloop"

    def is_current(self, path: Path) -> bool:
        """Whether a file or folder is there and need not be made again."""
        return path.exists() and not (self.overwrite and path.stat().st_mtime < _STARTED)

    def folder(self, identity: Any) -> Path:
        """Return the cache folder of a content, emptied first if it is to be rebuilt.

        Keyed by content and not by path or time: a changed file has another folder, and is never served stale.
        """
        folder = self.root / digest([ROWS_VERSION, identity])[:32]
        if folder.exists() and not self.is_current(folder):
            shutil.rmtree(folder)
        return folder

    def fill(
        self, generator: Callable[..., Iterator[dict[str, Any]]], identity: Any, kwargs: dict[str, Any]
    ) -> Dataset:
        """Return the rows of a generator, from the cache if they are there.

        Args:
            generator: A module-level function that yields packed rows; its errors leave nothing in the cache.
            identity: What the rows depend on, as JSON.
            kwargs: The generator's arguments. No lists: the library would take them for shards.

        Raises:
            UserError: what the generator raised.
            OSError: for a disk that is full or not writable.
        """
        arguments = {**kwargs, "version": ROWS_VERSION}
        folder = str(self.folder(identity))
        try:
            return Dataset.from_generator(generator, features=RAW_FEATURES, gen_kwargs=arguments, cache_dir=folder)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, (UserError, OSError)):
                raise error.__cause__ from None
            raise

    def convert(self, rows: Dataset, columns: Columns) -> Dataset:
        """Return the packed rows of a loaded data set, from the cache if they are there."""
        return rows.map(
            pack_batch,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=RAW_FEATURES,
            fn_kwargs={"columns": columns, "version": ROWS_VERSION},
            load_from_cache_file=not self.overwrite,
            desc="Reading rows",
        )


@dataclass(frozen=True)
class Raw:
    """The rows of one split as loaded, none dropped yet.

    Attributes:
        rows: With the columns of RAW_FEATURES.
        identity: JSON that is equal where the rows are, on any machine.
        origin: What the report says of the source: names, or files with size and sha256.
    """

    rows: Dataset
    identity: Any
    origin: list[dict[str, Any]]


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
