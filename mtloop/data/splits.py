"""Cut the validation split, and measure what rows have in common with the training rows.

Owns the keys by which two texts count as the same. Must not know where rows come from. N rows, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from mtloop.config.inputs import SPLIT_BY_COLUMN, SPLIT_BY_SOURCE, DataConfig
from mtloop.data.rows import stable_key
from mtloop.data.store import select_rows
from mtloop.errors import UserError
from mtloop.placeholders import KINDS

_BATCH = 10_000
_NO_LETTERS = r"[^\pL\pM]+"
_FINAL_MARKS = ".,:;!?\u2026\u3002\u3001\uff0c\uff0e\uff1a\uff1b\uff01\uff1f \t\n"
# Random orders of the groups that are tried for a share that is nearer: with few groups each is far off.
_NUM_ORDERS = 50
# The shares of rows that are in the training rows too, and the keys that decide it.
SHARED = {
    "sources": "source_key",
    "pairs": "pair_key",
    "sources_normalized": "source_normalized_key",
    "sources_by_letters": "source_letters_key",
    "pairs_by_letters": "pair_letters_key",
}


def normalize(source: str) -> str:
    """Return a source without what `--split_by source` ignores: case, accelerators, white space, final punctuation."""
    if "&" in source:
        pattern = KINDS["accelerator"].pattern
        assert pattern is not None
        source = pattern.sub("", source)
    return " ".join(source.replace("_", "").lower().split()).rstrip(_FINAL_MARKS)


# The cut


def cut(rows: Dataset, data: DataConfig) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Cut the validation rows from the training rows; return both, and the record of the cut.

    Without --split_by as in the Hugging Face course, `train_test_split(train_size=1 - validation_split,
    seed=split_seed)`. With it whole groups of rows, drawn at random, to the nearest share; a row without a value is a
    group alone. Both parts are then in the order of the rows.

    Raises:
        UserError: for too few rows or groups.
    """
    share, seed = data.validation_split, data.split_seed
    record: dict[str, Any] = {"cut_from": "train", "validation_split": share, "split_seed": seed}
    if data.split_by is None:
        try:
            parts = rows.train_test_split(train_size=1 - share, seed=seed)
        except ValueError as error:
            raise UserError(
                f"--validation_split: cannot split {len(rows)} rows (got {share}). Give another share, or "
                "--validation_file."
            ) from error
        return parts["train"], parts["test"], record
    group, num_groups = _groups(rows, data.split_by)
    if num_groups < 2:
        what = f"rows of one {data.split_by[0]}" if data.split_by[0] != SPLIT_BY_COLUMN else "rows with one value"
        raise UserError(
            f"--split_by {' '.join(data.split_by)}: cannot split {what} (got {len(rows):,} rows). Give another "
            "--split_by, or --validation_file."
        )
    num_wanted = min(max(len(rows) - int((1 - share) * len(rows)), 1), len(rows) - 1)
    is_valid = choose_groups(np.bincount(group, minlength=num_groups), num_wanted, seed)[group]
    record |= {"split_by": data.split_by, "num_groups": num_groups}
    train, valid = (
        select_rows(rows, np.flatnonzero(is_valid == side), [rows._fingerprint, record, side]) for side in (False, True)
    )
    return train, valid, record


def choose_groups(sizes: NDArray[np.int64], num_wanted: int, seed: int) -> NDArray[np.bool_]:
    """Choose groups at random whose rows are as near to num_wanted as was found: bool [G], neither all nor none.

    Args:
        sizes: The rows of each group, int64 [G], G at least 2.
        num_wanted: From 1 to all rows but one.
        seed: Of the random orders.
    """
    rng = np.random.default_rng(seed)
    best, nearest = np.zeros(len(sizes), dtype=bool), -1
    for _ in range(_NUM_ORDERS):
        is_chosen = _fill(sizes, num_wanted, rng.permutation(len(sizes)))
        distance = abs(int(sizes[is_chosen].sum()) - num_wanted)
        if nearest < 0 or distance < nearest:
            best, nearest = is_chosen, distance
        if nearest == 0:
            break
    return best


def _fill(sizes: NDArray[np.int64], num_wanted: int, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose the groups that fit, in this order, then one more if that is nearer."""
    is_chosen = np.zeros(len(sizes), dtype=bool)
    missing = num_wanted
    while missing and len(order):
        ends = np.cumsum(sizes[order])
        number = int(np.searchsorted(ends, missing, side="right"))  # of groups that fit, one after the other
        is_chosen[order[:number]] = True
        missing -= int(ends[number - 1]) if number else 0
        rest = order[number:]
        order = rest[sizes[rest] <= missing]
    others = np.flatnonzero(~is_chosen)
    smallest = int(others[np.argmin(sizes[others])])
    if not is_chosen.any() or (len(others) > 1 and sizes[smallest] - missing < missing):
        is_chosen[smallest] = True
    return is_chosen


def _groups(rows: Dataset, split_by: list[str]) -> tuple[NDArray[np.int64], int]:
    """Return the number of each row's group, from 0 in the order of the rows, and their number."""
    is_source = split_by[0] == SPLIT_BY_SOURCE
    column = "source" if is_source else "group"
    if column not in rows.column_names:  # aligned text files
        if split_by[0] == SPLIT_BY_COLUMN:
            raise UserError(
                f"--split_by column: plain text has no columns (got {split_by[1]}). Give --split_by source."
            )
        return np.zeros(len(rows), dtype=np.int64), 1
    values: list[NDArray[np.int64]] = []
    empty: list[NDArray[np.bool_]] = []
    for batch in rows.select_columns([column]).with_format("arrow").iter(_BATCH):
        texts = batch[column].to_pylist()
        keys = [stable_key(normalize(text)) if text is not None else None for text in texts] if is_source else texts
        empty.append(np.array([key is None for key in keys], dtype=bool))
        values.append(np.array([key or 0 for key in keys], dtype=np.int64))
    key, is_alone = np.concatenate(values), np.concatenate(empty)
    # A group is named by its first row, so that the cut depends on the rows and not on their keys.
    leader = np.arange(len(key))
    with_key = leader[~is_alone]
    _, first, inverse = np.unique(key[with_key], return_index=True, return_inverse=True)
    leader[with_key] = with_key[first[inverse]]
    leaders, group = np.unique(leader, return_inverse=True)
    return group, len(leaders)


# What rows have in common


@dataclass(frozen=True)
class Overlap:
    """Hold what N rows have in common with the training rows.

    Attributes:
        shares: The share of rows that are in the training rows too, by the names of SHARED.
        is_unseen: bool [N], the source is not in the training rows, also but for what `normalize` drops.
    """

    shares: dict[str, float]
    is_unseen: NDArray[np.bool_]


def text_keys(batch: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Return the keys of SHARED of a batch of rows, int64 [N] each.

    They are Python's 64-bit hashes: equal for equal texts, within this process. Among a million texts, two different
    ones share a key with a probability of 3e-8.
    """
    # A row that is dropped has no texts.
    source, target = (pc.fill_null(batch[name].combine_chunks(), "") for name in ("source", "target"))
    sources = source.to_pylist()
    source_letters, target_letters = _letters(source), _letters(target)
    return {
        "source_key": _keys(sources),
        "pair_key": _keys(zip(sources, target.to_pylist(), strict=True)),
        "source_normalized_key": _keys(map(normalize, sources)),
        "source_letters_key": _keys(source_letters),
        "pair_letters_key": _keys(zip(source_letters, target_letters, strict=True)),
    }


def overlaps(train: Dataset, others: Mapping[str, Dataset]) -> dict[str, Overlap]:
    """Compare the rows of other splits with the training rows."""
    known = _keys_of(train)
    found = {}
    for name, rows in others.items():
        keys = _keys_of(rows)
        is_unseen = ~_is_in(keys["source_normalized_key"], known["source_normalized_key"])
        found[name] = Overlap(shares(keys, known), is_unseen)
    return found


def shares(keys: Mapping[str, NDArray[np.int64]], known: Mapping[str, NDArray[np.int64]]) -> dict[str, float]:
    """Return the shares of SHARED, given the keys of the rows and those of the training rows."""
    return {name: round(float(_is_in(keys[key], known[key]).mean()), 5) for name, key in SHARED.items()}


def leak_line(split: str, found: Mapping[str, float], *, can_split_by: bool) -> str:
    """Describe what a split has in common with the training rows; can_split_by adds a remedy."""
    if not any(found.values()):
        return f"{split}: no source is in the training rows too"
    sources, normalized, pairs = (
        f"{100 * found[name]:.1f} %" for name in ("sources", "sources_normalized", "pairs_by_letters")
    )
    remedy = "; --split_by source keeps sources apart" if can_split_by else ""
    return (
        f"{split}: {sources} of the sources are in the training rows too, {normalized} but for case, accelerators and "
        f"punctuation, and {pairs} of the pairs by letters alone{remedy}"
    )


def _is_in(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which keys are known: as np.isin, and for a few million five times as fast."""
    ordered = np.sort(known)
    places = np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)
    return ordered[places] == keys


def _keys_of(rows: Dataset) -> dict[str, NDArray[np.int64]]:
    """Return the keys of SHARED of all rows.

    The table below most of its rows is read as a whole: in the random order of a split it takes twice as long.
    """
    table, order = rows, None
    if rows._indices is not None and len(rows) > len(rows._data) / 2:
        table, order = Dataset(rows._data), rows._indices.column(0).to_numpy()
    parts = [text_keys(batch) for batch in table.with_format("arrow").iter(_BATCH)]
    keys = {key: np.concatenate([part[key] for part in parts]) for key in SHARED.values()}
    return keys if order is None else {name: key[order] for name, key in keys.items()}


def _letters(texts: pa.Array) -> list[str]:
    """Lower-case, and drop all but letters and their marks."""
    return pc.replace_substring_regex(pc.utf8_lower(texts), pattern=_NO_LETTERS, replacement="").to_pylist()


def _keys(values: Iterable[object]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, values), dtype=np.int64)
