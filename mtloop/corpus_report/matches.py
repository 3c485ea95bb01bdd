"""Pairs with a pattern in them, and how they are shown."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset

from mtloop.corpus_report.show import one_line

_BATCH_SIZE = 10_000
_LONGEST = 300


def matches(
    splits: Mapping[str, Dataset], pattern: re.Pattern[str], *, max_shown: int
) -> tuple[int, list[dict[str, Any]]]:
    """Find the rows with the pattern in the source or the target.

    Returns:
        How many there are, and the first of them in the order of their source: split, index, source, reference.
    """
    num_found = 0

    def found() -> Iterator[tuple[int, int, str, dict[str, Any]]]:
        nonlocal num_found
        for number, (split, rows) in enumerate(splits.items()):
            for batch in rows.iter(_BATCH_SIZE):
                for index, source, target in zip(batch["index"], batch["source"], batch["target"], strict=True):
                    if pattern.search(source) or pattern.search(target):
                        num_found += 1
                        row = {"split": split, "index": index, "source": source, "reference": target}
                        yield index, number, split, row

    chosen = heapq.nsmallest(max_shown, found(), key=lambda match: match[:2])
    return num_found, [row for *_, row in chosen]


def match_lines(rows: list[dict[str, Any]], pattern: re.Pattern[str], num_found: int, *, num_rows: int) -> list[str]:
    """Show matches one below the other: source, reference and, where there is one, hypothesis."""
    fewer = f", the first {len(rows):,} shown (--max_shown)" if len(rows) < num_found else ""
    lines = [f"{pattern.pattern!r}: {num_found:,} of {num_rows:,} rows{fewer}"]
    for row in rows:
        lines += ["", f"{row['split']} {row['index']}"]
        for name in ("source", "reference", "hypothesis"):
            if name in row:
                place = pattern.search(row[name])
                lines.append(
                    f"  {name:<10}  {one_line(row[name], near=place.start() if place else 0, longest=_LONGEST)}"
                )
    return lines
