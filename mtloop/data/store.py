"""Keep rows in memory-mapped Arrow files, which are found again by the content that they were made of.

Must not know where rows come from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from numpy.typing import NDArray

from mtloop.data.rows import NOTES, RAW_FEATURES, ROWS_VERSION, Columns, digest, pack_batch
from mtloop.errors import RunFailed, UserError, out_of_resources

# Every rank loads the corpus, the first one alone and the others after it: what is younger than this process can be
# shared even with --overwrite_cache.
_STARTED = time.time()

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FileLock = datasets.builder.FileLock


@contextlib.contextmanager
def _lock_where_writable(path: str) -> Iterator[None]:
    """Hold the lock of a builder; none in a folder that cannot be written, in which everything is cached or fails."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_FileLock(path))
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
        yield


# datasets 5.2 writes lock files even where it only reads.
datasets.builder.FileLock = _lock_where_writable


@dataclass(frozen=True)
class Store:
    """The cache of rows.

    Attributes:
        cache_dir: The folder; None for that of the datasets library.
        overwrite: Whether to rebuild what an earlier run has left.
    """

    cache_dir: str | None = None
    overwrite: bool = False

    @property
    def root(self) -> Path:
        """Return the folder of everything that is cached."""
        return Path(self.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "mtloop"

    def is_current(self, path: Path) -> bool:
        """Return True if a file or folder exists and need not be made again."""
        return path.exists() and not (self.overwrite and path.stat().st_mtime < _STARTED)

    def folder(self, identity: Any) -> Path:
        """Return the cache folder of a content, emptied first if it is to be rebuilt.

        The key is the content, not a path or time: a changed file has another folder, and is never served stale.
        """
        folder = self.root / digest([ROWS_VERSION, list(RAW_FEATURES), NOTES, identity])[:32]
        if folder.exists() and not self.is_current(folder):
            shutil.rmtree(folder)
        return folder

    def fill(
        self, generator: Callable[..., Iterator[dict[str, Any]]], identity: Any, kwargs: dict[str, Any]
    ) -> Dataset:
        """Return the rows of a generator, from the cache if they are in it.

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
            features = kwargs.get("columns", Columns()).features
            return Dataset.from_generator(generator, features=features, gen_kwargs=arguments, cache_dir=folder)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, (UserError, OSError)):
                raise error.__cause__ from None
            raise

    def convert(self, rows: Dataset, columns: Columns, quoting: str | None) -> Dataset:
        """Return the packed rows of a loaded data set, from the cache if they are in it; `quoting` as in pack_batch."""
        return rows.map(
            pack_batch,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=columns.features,
            fn_kwargs={"columns": columns, "version": ROWS_VERSION, "quoting": quoting},
            load_from_cache_file=not self.overwrite,
            desc="Reading rows",
        )


def unwritable_cache(error: OSError) -> RunFailed:
    """Return the error of a cache of rows that cannot be written."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) and (failure := out_of_resources(error)):
        return failure
    folder = datasets.config.HF_DATASETS_CACHE
    return RunFailed(
        f"HF_DATASETS_CACHE: cannot write rows to the cache of the datasets library, {folder} ({error}). Free disk "
        "space, or set HF_DATASETS_CACHE or HF_HOME to another folder."
    )


def select_rows(rows: Dataset, positions: NDArray[np.int64], identity: Any) -> Dataset:
    """Return the rows at the positions, under a fingerprint of the identity."""
    fingerprint = digest(identity)[:16]
    folders = [Path(file["filename"]).parent for file in rows.cache_files]
    # Written at each call: in a cache that is read-only the positions stay in memory, as for rows in memory.
    file = str(folders[0] / f"subset-{fingerprint}.arrow") if folders and os.access(folders[0], os.W_OK) else None
    return rows.select(positions, indices_cache_file_name=file, new_fingerprint=fingerprint)
