"""Store Dataset objects as files, which a configuration can name. Must not know languages or columns."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from datasets import Dataset, DatasetDict

from mtloop.atomic import write_text
from mtloop.data.sources import SPLIT_FIELDS, SPLIT_NAMES
from mtloop.data.store import Store, unwritable_cache
from mtloop.errors import UserError

_BATCH = 1000


def store_dataset(dataset: Dataset | DatasetDict) -> dict[str, list[str]]:
    """Write the splits as JSON Lines into the cache; return the settings that name them.

    A file is found by the hash of its rows: the same rows are the same data to a run that is resumed, and others are
    not. A format or transform of the object is not applied.

    Raises:
        UserError: for another object, or one without a split "train".
        RunFailed: for a cache that cannot be written.
    """
    splits: dict[Any, Any] = dict(dataset) if isinstance(dataset, dict) else {"train": dataset}
    for split in splits.values():
        if not isinstance(split, Dataset):
            raise UserError(
                f"dataset: expected a Dataset or DatasetDict (got {type(split).__name__}). Make one with "
                "Dataset.from_list or from_generator, or write a file and give it to --train_file."
            )
    found = {
        split: next((splits[name] for name in names if name in splits), None) for split, names in SPLIT_NAMES.items()
    }
    if found["train"] is None:
        raise UserError(f"dataset: no split 'train' (got {', '.join(map(str, splits))}). Name one of them train.")
    try:
        return {SPLIT_FIELDS[split]: [_store(split, rows)] for split, rows in found.items() if rows is not None}
    except OSError as error:
        raise unwritable_cache(error) from error


def _store(split: str, rows: Dataset) -> str:
    """Write the rows of a split, and return the path."""
    batches = rows.with_format("arrow").iter(_BATCH)
    # Other columns may hold what JSON lacks, such as dates.
    text = "".join(
        json.dumps(row, ensure_ascii=False, default=str) + "\n" for batch in batches for row in batch.to_pylist()
    )
    path = Store().root / "objects" / hashlib.sha256(text.encode()).hexdigest()[:32] / f"{split}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return str(path)
