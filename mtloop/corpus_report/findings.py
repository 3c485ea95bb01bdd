"""Make the report from the measures: lengths, suspicious rows, and the rows of validation that are also in train.

Owns the rules for suspicious rows and the report's JSON. Must not know texts, except those of the examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from mtloop.config.inputs import DataConfig
from mtloop.corpus_report.measure import SPLITS, Measures
from mtloop.data.splits import shares
from mtloop.placeholders import CODE

PERCENTILES = (50, 90, 95, 99)
NUM_EXAMPLES = 3
# The ratio of shorter pairs is meaningless: "What?" is "Qu'est-ce que c'est ?".
MIN_CHARACTERS = 20
# In robust standard deviations of the logarithm of the ratio. On KDE English-French, 5 finds 0.4 % of the rows, nearly
# all of them wrong or very free translations; half of what 3 finds are good translations.
MAX_DEVIATIONS = 5.0
# For a corpus with nearly constant ratios, such as copies: a factor below 1.6 is never suspicious.
MIN_DEVIATION = 0.1
ALL = "all"


@dataclass(frozen=True)
class Band:
    """The usual ratios of target to source characters; others are suspicious.

    Attributes:
        median: Of the rows with at least MIN_CHARACTERS on a side.
        lowest: The lowest usual ratio.
        highest: The highest usual ratio.
    """

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Finding:
    """The rows that are suspicious for one reason.

    Attributes:
        name: The key in the report.
        is_found: bool [N].
        severity: float [N], by which the examples are sorted; None for the order of the rows.
        rows_per_source: The maximum of examples with the same source.
    """

    name: str
    is_found: NDArray[np.bool_]
    severity: NDArray | None = None
    rows_per_source: int = 1


def inspect(measures: Measures, splits: Mapping[str, Dataset], data: DataConfig, *, has_tokens: bool) -> dict[str, Any]:
    """Return the report on N rows, as JSON.

    Args:
        measures: Of the rows of all splits.
        splits: The rows, for the texts of examples.
        data: Names the limits.
        has_tokens: Whether tokens were counted.
    """
    band = ratio_band(measures)
    lost_kinds = [kind for number, kind in enumerate(CODE) if (measures.lost_kinds >> number & 1).any()]
    scopes = {name: measures.select(measures.split == SPLITS.index(name)) for name in splits}
    scopes[ALL] = measures
    report: dict[str, Any] = {"lengths": {}, "findings": {}, "sources_with_several_targets": {}, "examples": {}}
    for scope, rows in scopes.items():
        report["lengths"][scope] = lengths(rows, has_tokens=has_tokens)
        report["sources_with_several_targets"][scope] = int((targets_per_source(rows)[1] > 1).sum())
        for finding in (*find(rows, data, band, has_tokens=has_tokens), *find_lost(rows, lost_kinds)):
            counts = report["findings"].setdefault(finding.name, {})
            counts[scope] = int(finding.is_found.sum())
            if scope == ALL:
                chosen = pick(finding, measures)
                report["examples"][finding.name] = [example(measures, splits, row) for row in chosen]
    train = scopes["train"]
    report["shared_with_train"] = {name: shares(vars(scopes[name]), vars(train)) for name in splits if name != "train"}
    report["length_ratio"] = None if band is None else {**vars(band), "min_characters": MIN_CHARACTERS}
    return report


def lengths(rows: Measures, *, has_tokens: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean, percentiles and maximum, by side and unit; a percentile is a length that occurs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for side in ("source", "target"):
        found[side] = {}
        for unit in ("words", "characters", *(["tokens"] if has_tokens else [])):
            values = getattr(rows, f"{side}_{unit}")
            percentiles = np.percentile(values, PERCENTILES, method="inverted_cdf")
            found[side][unit] = {
                "mean": round(float(values.mean()), 3),
                **{f"p{share}": int(value) for share, value in zip(PERCENTILES, percentiles, strict=True)},
                "max": int(values.max()),
            }
    return found


def find(rows: Measures, data: DataConfig, band: Band | None, *, has_tokens: bool) -> Iterator[Finding]:
    """Yield the findings, in the order of the report."""
    _, first, inverse, counts = np.unique(rows.pair_key, return_index=True, return_inverse=True, return_counts=True)
    is_repeat = np.arange(len(rows)) != first[inverse]
    yield Finding("duplicate_pairs", is_repeat, counts[inverse])
    inverse, num_targets = targets_per_source(rows)
    yield Finding("several_targets", num_targets[inverse] > 1, num_targets[inverse], rows_per_source=2)
    yield Finding("target_is_source", rows.is_copy, rows.source_characters)
    yield Finding("newline_in_source", rows.has_source_newline)
    yield Finding("newline_on_one_side", rows.has_one_newline)
    yield Finding("outer_space", rows.has_outer_space)
    yield Finding("replacement_character", rows.has_replacement)
    if band is not None:
        ratio = length_ratio(rows)
        is_odd = is_measurable(rows) & ((ratio < band.lowest) | (ratio > band.highest))
        yield Finding("odd_length_ratio", is_odd, np.abs(np.log(ratio / band.median)))
    if has_tokens:
        yield Finding("long_source", rows.source_tokens > data.max_source_length, rows.source_tokens)
        yield Finding("long_target", rows.target_tokens > data.max_target_length, rows.target_tokens)


def find_lost(rows: Measures, kinds: Sequence[str]) -> Iterator[Finding]:
    """Yield the findings of pairs whose placeholders differ, of the kinds of which there are some in the corpus."""
    for kind in kinds:
        yield Finding(f"lost_{kind}", (rows.lost_kinds >> CODE.index(kind) & 1).astype(bool))


def targets_per_source(rows: Measures) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each row's source, and the number of different targets of each source."""
    _, inverse = np.unique(rows.source_key, return_inverse=True)
    _, first = np.unique(rows.pair_key, return_index=True)
    return inverse, np.bincount(inverse[first], minlength=inverse.max() + 1)


def length_ratio(rows: Measures) -> NDArray[np.float64]:
    """Return target characters for each source character."""
    return rows.target_characters / rows.source_characters


def is_measurable(rows: Measures) -> NDArray[np.bool_]:
    """Return True for the rows with at least MIN_CHARACTERS on a side."""
    return np.maximum(rows.source_characters, rows.target_characters) >= MIN_CHARACTERS


def ratio_band(rows: Measures) -> Band | None:
    """Return the usual ratios, from median and median absolute deviation of the logarithm; None if all rows are short.

    Source: Leys et al. 2013, Detecting outliers; 1.4826 makes the deviation that of a normal distribution.
    """
    logs = np.log(length_ratio(rows)[is_measurable(rows)])
    if not len(logs):
        return None
    median = float(np.median(logs))
    reach = MAX_DEVIATIONS * max(1.4826 * float(np.median(np.abs(logs - median))), MIN_DEVIATION)
    edges = (float(np.exp(log)) for log in (median, median - reach, median + reach))
    return Band(*(round(edge, 4) or float(f"{edge:.4g}") for edge in edges))  # a divisor: never 0


def pick(finding: Finding, rows: Measures) -> list[int]:
    """Return the rows of the examples, the most severe first; few with the same source, no pair twice."""
    found = np.flatnonzero(finding.is_found)
    _, first, inverse = np.unique(rows.source_key[found], return_index=True, return_inverse=True)
    severity = np.zeros(len(found)) if finding.severity is None else finding.severity[found]
    # Rows with the same source are adjacent; sources of the same severity are in the order of their first row.
    order = found[np.lexsort((found, first[inverse], -severity))]
    chosen: list[int] = []
    per_source: dict[int, int] = {}
    pairs = set()
    for row in order.tolist():
        source, pair = int(rows.source_key[row]), int(rows.pair_key[row])
        if per_source.get(source, 0) < finding.rows_per_source and pair not in pairs:
            chosen.append(row)
            pairs.add(pair)
            per_source[source] = per_source.get(source, 0) + 1
        if len(chosen) == NUM_EXAMPLES * finding.rows_per_source:
            break
    return chosen


def example(measures: Measures, splits: Mapping[str, Dataset], row: int) -> dict[str, Any]:
    """Return a row of the report's examples."""
    split = SPLITS[measures.split[row]]
    texts = splits[split][int(measures.position[row])]
    return {"split": split, "index": texts["index"], "source": texts["source"], "target": texts["target"]}
