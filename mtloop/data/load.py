"""Load, split and filter the rows of train, valid and test that a DataConfig names, and report on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from huggingface_hub import HfApi

from mtloop.config.inputs import Dialect
from mtloop.config.model import split_revision
from mtloop.data.opus import KDE4_NAMES, load_kde4, load_opus
from mtloop.data.rows import (
    NOTES,
    REASONS,
    ROWS_VERSION,
    Columns,
    LoadedSplit,
    digest,
    note_lines,
)
from mtloop.data.sources import SPLIT_FIELDS, load_demo, load_files, load_named
from mtloop.data.splits import Overlap, cut, overlaps
from mtloop.data.store import Store, select_rows, unwritable_cache
from mtloop.errors import UserError

if TYPE_CHECKING:
    from mtloop.config.inputs import DataConfig

_COUNT_BATCH = 10_000


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Rows to train on and to evaluate on.

    Each data set has the columns `index` (int64, the row's number in its source as loaded, from 0), `source` and
    `target` (str, exactly as the source has them), and is memory-mapped.

    Attributes:
        train: Training rows.
        valid: Validation rows.
        test: Test rows; None if the source has none.
        report: JSON: "sources" per split, "counts" per split ("loaded", "dropped" by reason, "kept"; loaded is the sum
            of these two; "notes": rows with doubtful quotes, if there are any), and "fingerprint", equal for equal
            content and settings.
        overlaps: What valid and test have in common with train, by their names; {} until `compared` was called.
    """

    train: Dataset
    valid: Dataset
    test: Dataset | None
    report: dict[str, Any]
    overlaps: dict[str, Overlap] = field(default_factory=dict)

    def compared(self) -> dict[str, Overlap]:
        """Compare the rows of valid and test with those of train."""
        others = {"valid": self.valid, "test": self.test}
        return overlaps(self.train, {name: rows for name, rows in others.items() if rows is not None})


def load_corpus(
    data: DataConfig,
    *,
    cache_dir: str | None = None,
    sources: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Load, split and filter the rows that `data` names.

    Several processes may call it, preferably one after another: the first one fills the cache for the others. A
    missing validation split is cut from train as in the Hugging Face course: before any row is dropped, with
    `train_test_split(train_size=1 - validation_split, seed=split_seed)`.

    Args:
        data: The data flags.
        cache_dir: The folder of the rows, instead of the cache of the datasets library.
        sources: "sources" of the report of a resumed run: a corpus with several sources is read from the same one.
        say: Prints a line, before a download.

    Raises:
        UserError: for whatever the user can correct.
        RunFailed: for a cache that cannot be written.
    """
    columns = Columns.of(data)
    try:
        raws = _load_raws(data, columns, Store(cache_dir, data.overwrite_cache), sources or {}, say)
        splits, report = _assemble(data, raws)
    except OSError as error:
        raise unwritable_cache(error) from error
    return Corpus(train=splits["train"], valid=splits["valid"], test=splits.get("test"), report=report)


def load_scored_rows(data: DataConfig, split: str) -> Dataset:
    """Load the rows of valid or test alone, as load_corpus does.

    Raises:
        UserError: for whatever the user can correct.
        RunFailed: for a cache that cannot be written.
    """
    columns, file = Columns.of(data), getattr(data, SPLIT_FIELDS[split])
    try:
        store = Store(None, data.overwrite_cache)
        if file:
            raws = {split: load_files(f"--{SPLIT_FIELDS[split]}", file, columns, data.dialect, store)}
        else:
            raws = _load_raws(data, columns, store, {}, lambda line: None)
        if split == "test" and "test" not in raws:
            raise UserError(
                f"--do_predict: {data.dataset_name} has no test rows (got {', '.join(raws)}). Add --test_file."
            )
        # Validation rows may have to be cut from the training rows.
        splits, _ = _assemble(data, {split: raws[split]} if split in raws else raws)
    except OSError as error:
        raise unwritable_cache(error) from error
    return splits[split]


def load_test_set(
    flag: str,
    files: list[str],
    columns: Columns,
    *,
    dialect: Dialect,
) -> tuple[Dataset, dict[str, Any]]:
    """Load files to score on: return the rows of source and target, and the counts as in Corpus.report.

    Args:
        flag: The flag that named the files, for messages.
        files: One file of rows, several, a glob, or two aligned text files, source first.
        columns: The place of the texts.
        dialect: The form of .csv and .tsv files.

    Raises:
        UserError: for whatever the user can correct.
        RunFailed: for a cache that cannot be written.
    """
    try:
        loaded = load_files(flag, files, columns, dialect, Store(None, False))
        rows, counts = _drop(flag, " ".join(files), loaded.rows)
    except OSError as error:
        raise unwritable_cache(error) from error
    return rows.select_columns(["index", "source", "target"]), {**counts, "kept": len(rows)}


def describe(report: dict[str, Any]) -> list[str]:
    """Return one line per split, rows loaded, dropped by reason, kept; others for doubtful quotes and --split_by."""
    lines = []
    for split, counts in report["counts"].items():
        dropped = counts["dropped"]
        reasons = f" ({', '.join(f'{number:,} {reason}' for reason, number in dropped.items())})" if dropped else ""
        number = sum(dropped.values())
        lines.append(f"{split}: {counts['loaded']:,} rows loaded, {number:,} dropped{reasons}, {counts['kept']:,} kept")
        lines += [f"{split}: {line}" for line in note_lines(counts.get("notes", {}))]
    record = report["sources"].get("valid", [{}])[0]
    if "split_by" in record:
        valid, train = (report["counts"][split]["loaded"] for split in ("valid", "train"))
        lines.append(
            f"valid: {valid:,} of {valid + train:,} rows ({100 * valid / (valid + train):.1f} %) by --split_by "
            f"{' '.join(record['split_by'])}, {record['num_groups']:,} groups in all"
        )
    return lines


def _load_raws(
    data: DataConfig, columns: Columns, store: Store, sources: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, LoadedSplit]:
    """Load every split that a flag or the data set provides; a file of a split replaces that of the data set."""
    if not data.dataset_name and not data.train_file:
        raise UserError("--dataset_name: no training data. Give --dataset_name or --train_file.")
    name = data.dataset_name
    raws: dict[str, LoadedSplit] = {}
    if name == "demo":
        raws = load_demo(columns, store)
    elif name == "kde4" or (name in KDE4_NAMES and not Path(name).is_dir()):
        recorded = next((source.get("name") for source in sources.get("train", [])), None)
        raws = load_kde4(columns, store, recorded=recorded, say=say)
    elif name and name.startswith("opus:"):
        raws = load_opus(name, columns, store, say)
    elif name:
        raws = load_named(_with_owner(name), data.dataset_config_name, columns, data.dialect, store)
    for split, name_of_files in SPLIT_FIELDS.items():
        if patterns := getattr(data, name_of_files):
            own = columns if split == "train" else replace(columns, group_by=())
            raws[split] = load_files(f"--{name_of_files}", patterns, own, data.dialect, store)
    if data.split_by is not None and {"train", "valid"} <= raws.keys():
        raise UserError(
            f"--split_by: {name} has validation rows, and nothing is split off (got {' '.join(data.split_by)}). Leave "
            "it out."
        )
    return raws


def _with_owner(name: str) -> str:
    """Return OWNER/NAME for one of the first data sets, such as wmt16: the Hub redirects what the client refuses."""
    base, revision = split_revision(name)
    if "/" not in base and not Path(name).exists():
        with contextlib.suppress(Exception):  # without a network, or no such name: load_named reports it
            base = HfApi().dataset_info(base).id
    return f"{base}@{revision}" if revision else base


def _assemble(data: DataConfig, raws: dict[str, LoadedSplit]) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Cut the validation split, drop rows and take subsets, in this order; return the rows by split, and the report."""
    identities: dict[str, Any] = {split: [raw.identity] for split, raw in raws.items()}
    sources = {split: raw.origin for split, raw in raws.items()}
    splits = {split: raw.rows for split, raw in raws.items()}
    if "valid" not in splits and "train" in splits:
        splits["train"], splits["valid"], record = cut(splits["train"], data)
        sources["valid"] = [record]
        identities["train"].append(record)
    counts: dict[str, Any] = {}
    finished: dict[str, Dataset] = {}
    for split in (name for name in SPLIT_FIELDS if name in splits):
        given = (
            SPLIT_FIELDS[split]
            if getattr(data, SPLIT_FIELDS[split])
            else "dataset_name"
            if data.dataset_name
            else "train_file"
        )
        kept, counts[split] = _drop(f"--{given}", split, splits[split])
        flag = "max_train_samples" if split == "train" else "max_eval_samples"
        flag = "max_predict_samples" if split == "test" and data.max_predict_samples is not None else flag
        max_samples = getattr(data, flag)
        if max_samples is not None and max_samples < len(kept):
            counts[split]["dropped"][flag] = len(kept) - max_samples
            identities.setdefault(split, []).append({"max_samples": max_samples, "split_seed": data.split_seed})
            kept = _subset(kept, max_samples, data.split_seed)
        counts[split]["kept"] = len(kept)
        finished[split] = kept.select_columns(["index", "source", "target"])
    return finished, {"sources": sources, "counts": counts, "fingerprint": digest([ROWS_VERSION, identities])}


def _drop(flag: str, name: str, rows: Dataset) -> tuple[Dataset, dict[str, Any]]:
    """Return the rows that have both texts, and the counts."""
    totals = np.zeros(len(REASONS), dtype=np.int64)
    noted = np.zeros(len(NOTES), dtype=np.int64)
    for batch in rows.select_columns(["reason", "note"]).with_format("arrow").iter(_COUNT_BATCH):
        totals += np.bincount(batch["reason"].to_numpy(), minlength=len(REASONS))
        noted += np.bincount(batch["note"].to_numpy(), minlength=len(NOTES))
    dropped = {reason: int(total) for reason, total in zip(REASONS[1:], totals[1:], strict=True) if total}
    if not totals[0]:
        reasons = ", ".join(f"{total} {reason}" for reason, total in dropped.items())
        raise UserError(
            f"{flag}: every row of {name} was dropped (of {len(rows)} rows: {reasons}). Check languages and columns."
        )
    if dropped:
        # filter, not select: it writes the positions batch by batch and caches them.
        rows = rows.with_format("arrow").filter(_is_kept, input_columns="reason", batched=True).with_format(None)
    notes = {note: int(total) for note, total in zip(NOTES[1:], noted[1:], strict=True) if total}
    return rows, {"loaded": int(totals.sum()), "dropped": dropped, **({"notes": notes} if notes else {})}


def _is_kept(reasons: pa.Array) -> list[bool]:
    return [bool(is_kept) for is_kept in reasons.to_numpy(zero_copy_only=False) == 0]


def _subset(rows: Dataset, size: int, seed: int) -> Dataset:
    """Return a fixed random subset in the order of the rows."""
    positions = np.sort(np.random.default_rng(seed).permutation(len(rows))[:size])
    return select_rows(rows, positions, [rows._fingerprint, size, seed])
