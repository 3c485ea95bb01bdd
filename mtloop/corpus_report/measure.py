"""Measure rows: lengths, 64-bit keys of the texts, and properties of a single row.

Texts are read in batches and not kept: about 90 bytes a row stay in memory. Shape letter: N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mtloop.config.inputs import DataConfig
from mtloop.data.splits import text_keys
from mtloop.placeholders import CODE, keys
from mtloop.tokenization.encoding import encode_rows

SPLITS = ("train", "valid", "test")
_BATCH_SIZE = 10_000
# Nothing is truncated before it is counted: this is the largest limit of the config.
_LONGEST = 65_536
_REPLACEMENT = "\ufffd"
# A text without one has no placeholder that a program reads.
_CODE_SIGNS = r"[@<&{$%]|://"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of N rows, ordered by their index, then their split; the keys are those of `text_keys`.

    Attributes:
        split: int8 [N], position in SPLITS.
        position: int64 [N], in the split.
        index: int64 [N], the row's number in its source as loaded.
        source_key, pair_key: int64 [N], of the texts as they are.
        source_normalized_key: int64 [N], of the source without what --split_by source ignores.
        source_letters_key, pair_letters_key: int64 [N], of the letters of the texts, lower-cased.
        source_words, target_words, source_characters, target_characters: int32 [N].
        source_tokens, target_tokens: int32 [N] with special tokens, not truncated; zeros without a tokenizer.
        is_copy: bool [N], the target equals the source.
        has_source_newline: bool [N].
        has_one_newline: bool [N], one side has newlines and the other has none.
        has_outer_space: bool [N], a side begins or ends with white space.
        has_replacement: bool [N], a side has U+FFFD, which replaces bytes that could not be decoded.
        lost_kinds: int32 [N], bit k for the kind CODE[k] of placeholders that differ between the sides.
    """

    split: NDArray[np.int8]
    position: NDArray[np.int64]
    index: NDArray[np.int64]
    source_key: NDArray[np.int64]
    pair_key: NDArray[np.int64]
    source_normalized_key: NDArray[np.int64]
    source_letters_key: NDArray[np.int64]
    pair_letters_key: NDArray[np.int64]
    source_words: NDArray[np.int32]
    target_words: NDArray[np.int32]
    source_characters: NDArray[np.int32]
    target_characters: NDArray[np.int32]
    source_tokens: NDArray[np.int32]
    target_tokens: NDArray[np.int32]
    is_copy: NDArray[np.bool_]
    has_source_newline: NDArray[np.bool_]
    has_one_newline: NDArray[np.bool_]
    has_outer_space: NDArray[np.bool_]
    has_replacement: NDArray[np.bool_]
    lost_kinds: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.index)

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Measures:
        """Return the rows at the positions, or of the mask."""
        return Measures(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def measure(splits: Mapping[str, Dataset], tokens: Mapping[str, tuple[NDArray[np.int32], ...]]) -> Measures:
    """Measure every row.

    Args:
        splits: Rows with index, source and target, by names of SPLITS.
        tokens: The result of count_tokens by split; empty without a tokenizer.
    """
    parts = []
    for name, rows in splits.items():
        num_rows = len(rows)
        columns = _concatenate(_measure_batch(batch) for batch in rows.with_format("arrow").iter(_BATCH_SIZE))
        columns["split"] = np.full(num_rows, SPLITS.index(name), dtype=np.int8)
        columns["position"] = np.arange(num_rows)
        zeros = np.zeros(num_rows, dtype=np.int32)
        columns["source_tokens"], columns["target_tokens"] = tokens.get(name, (zeros, zeros))
        parts.append(columns)
    whole = Measures(**_concatenate(parts))
    return whole.select(np.lexsort((whole.split, whole.index)))


def count_tokens(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the number of tokens of each source and target, prefix and special tokens included: two int32 [N]."""
    encoded = encode_rows(
        rows,
        tokenizer,
        max_source_length=_LONGEST,
        max_target_length=_LONGEST,
        source_prefix=data.source_prefix,
        num_workers=data.preprocessing_num_workers,
    )
    return encoded.source_lengths, encoded.target_lengths


def _concatenate(parts: Iterable[dict[str, NDArray]]) -> dict[str, NDArray]:
    whole = list(parts)
    return {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}


def _measure_batch(batch: pa.Table) -> dict[str, NDArray]:
    source, target = sides = [batch[name].combine_chunks() for name in ("source", "target")]
    sources, targets = source.to_pylist(), target.to_pylist()
    return {
        "index": _array(batch["index"]),
        **text_keys(batch),
        "source_words": np.array([len(text.split()) for text in sources], dtype=np.int32),
        "target_words": np.array([len(text.split()) for text in targets], dtype=np.int32),
        "source_characters": _array(pc.utf8_length(source)),
        "target_characters": _array(pc.utf8_length(target)),
        "is_copy": _array(pc.equal(source, target)),
        "has_source_newline": _array(pc.match_substring(source, "\n")),
        "has_one_newline": _array(pc.xor(*(pc.match_substring(side, "\n") for side in sides))),
        "has_outer_space": _array(pc.or_(*(pc.not_equal(pc.utf8_trim_whitespace(side), side) for side in sides))),
        "has_replacement": _array(pc.or_(*(pc.match_substring(side, _REPLACEMENT) for side in sides))),
        "lost_kinds": _lost_kinds(source, target),
    }


def _lost_kinds(source: pa.Array, target: pa.Array) -> NDArray[np.int32]:
    has_sign = _array(pc.or_(*(pc.match_substring_regex(side, _CODE_SIGNS) for side in (source, target))))
    found = np.zeros(len(source), dtype=np.int32)
    for row in np.flatnonzero(has_sign).tolist():
        there, here = (keys(side[row].as_py(), CODE) for side in (source, target))
        found[row] = sum(1 << number for number, kind in enumerate(CODE) if there.get(kind) != here.get(kind))
    return found


def _array(values: pa.Array | pa.ChunkedArray) -> NDArray:
    return values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
