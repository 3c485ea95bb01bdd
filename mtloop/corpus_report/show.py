"""Show the report as lines for a terminal and as a picture, and search the rows for a pattern.

Must not know how the numbers are computed.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from mtloop.corpus_report.findings import ALL, MIN_CHARACTERS, PERCENTILES, Band, is_measurable, length_ratio
from mtloop.corpus_report.measure import Measures
from mtloop.errors import visible
from mtloop.placeholders import CODE, KINDS, lost
from mtloop.tables import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "duplicate_pairs": "pairs that repeat an earlier one",
    "several_targets": "rows whose source has other targets too",
    "target_is_source": "target = source",
    "newline_in_source": "newline in the source",
    "newline_on_one_side": "newline on one side only",
    "outer_space": "a side begins or ends with white space",
    "replacement_character": "U+FFFD on a side: badly decoded",
    "odd_length_ratio": "suspicious length ratio",
    **{f"lost_{kind}": f"{KINDS[kind].title} of the source missing in the target, or added" for kind in CODE},
    "long_source": "source over --max_source_length {max_source_length}",
    "long_target": "target over --max_target_length {max_target_length}",
}
# The character that an example of a finding must show.
_SIGNS = {"newline_in_source": "\n", "newline_on_one_side": "\n", "replacement_character": "\ufffd"}
_SHARED = {
    "sources": "same source",
    "pairs": "same pair",
    "sources_normalized": "same source, ignoring what --split_by source ignores",
    "sources_by_letters": "same source, ignoring case and all but letters",
    "pairs_by_letters": "same pair, ignoring case and all but letters",
}
_BATCH_SIZE = 10_000
_LONGEST_MATCH = 300
_BLUE, _RED = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion


def report_lines(report: dict[str, Any]) -> list[str]:
    """Write the report as tables and examples."""
    limits = report["limits"]
    titles = {name: title.format(**limits) if name.startswith("long_") else title for name, title in _TITLES.items()}
    lines = ["", *_length_lines(report), "", *_finding_lines(report, titles)]
    for split, shares in report["shared_with_train"].items():
        lines += ["", f"share of the {split} rows that are also in train:"]
        lines += [f"  {_percent(share):>7}  {_SHARED[name]}" for name, share in shares.items()]
    examples = list(_example_lines(report, titles))
    return [*lines, "", *examples] if examples else lines


def _length_lines(report: dict[str, Any]) -> Iterator[str]:
    rows = [["length", "mean", *(f"{share} %" for share in PERCENTILES), "max"]]
    for side, units in report["lengths"][ALL].items():
        for unit, numbers in units.items():
            rows.append([f"{side} {unit}", f"{numbers['mean']:,.1f}", *(f"{n:,}" for n in list(numbers.values())[1:])])
    yield from aligned(rows, left=1)
    if report["tokenizer"] is None:
        yield "tokens, and rows over --max_source_length and --max_target_length: add --tokenizer NAME or --model M"
    else:
        yield f"tokens of {report['tokenizer']}, special tokens included, nothing cut"


def _finding_lines(report: dict[str, Any], titles: dict[str, str]) -> Iterator[str]:
    scopes = list(report["lengths"])
    rows = [["rows", *scopes, "share"]]
    num_all = report["num_rows"][ALL]
    rows.append(["pairs", *(f"{report['num_rows'][scope]:,}" for scope in scopes), ""])
    for name, counts in report["findings"].items():
        share = _percent(counts[ALL] / num_all) if counts[ALL] else ""
        rows.append([titles[name], *(f"{counts[scope]:,}" for scope in scopes), share])
        if name == "several_targets":
            number = report["sources_with_several_targets"]
            rows.append(["  number of such sources", *(f"{number[scope]:,}" for scope in scopes), ""])
    yield from aligned(rows, left=1)
    if (band := report["length_ratio"]) is not None:
        yield (
            f"target characters for each source character: median {band['median']:.2f}; suspicious outside of "
            f"{band['lowest']:.2f} to {band['highest']:.2f}, in rows of {MIN_CHARACTERS} characters or more on a side"
        )


def _example_lines(report: dict[str, Any], titles: dict[str, str]) -> Iterator[str]:
    for name, rows in report["examples"].items():
        if rows:
            yield f"{titles[name]}:"
        for row in rows:
            place = f"{row['split']} {row['index']}"
            for side in ("source", "target"):
                near = max(row[side].find(_SIGNS[name]), 0) if name in _SIGNS else 0
                yield f"  {place if side == 'source' else '':>14}  {one_line(row[side], near=near)}"
            if (kind := name.removeprefix("lost_")) in CODE:
                yield f"  {'':>14}  ({visible(', '.join(lost(row['source'], row['target'], [kind])))})"


def one_line(text: str, *, near: int = 0, longest: int = 100) -> str:
    """Return a text as one line for a terminal: invisible characters escaped, and quoted if it has outer spaces.

    Args:
        text: The text.
        near: The position that must be visible if the text is truncated.
        longest: The longest text that is not truncated, in characters.
    """
    start = 0 if near < longest * 3 // 4 else near - longest // 2
    cut = text[start : start + longest]
    line = ("... " if start else "") + visible(cut) + (" ..." if start + longest < len(text) else "")
    return f"'{line}'" if text != text.strip() else line


def matches(
    splits: Mapping[str, Dataset], pattern: re.Pattern[str], *, max_shown: int
) -> tuple[int, list[dict[str, Any]]]:
    """Find the rows with the pattern in the source or the target.

    Returns:
        Their number, and the first of them in the order of the rows' index: split, index, source, reference.
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
    """Return the lines of the matches: source, reference and, if there is one, hypothesis."""
    fewer = f", the first {len(rows):,} shown (--max_shown)" if len(rows) < num_found else ""
    lines = [f"{pattern.pattern!r}: {num_found:,} of {num_rows:,} rows{fewer}"]
    for row in rows:
        lines += ["", f"{row['split']} {row['index']}"]
        for name in ("source", "reference", "hypothesis"):
            if name in row:
                place = pattern.search(row[name])
                lines.append(
                    f"  {name:<10}  {one_line(row[name], near=place.start() if place else 0, longest=_LONGEST_MATCH)}"
                )
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share == 0 or share >= 0.0005 else "< 0.1 %"


def draw(path: Path, measures: Measures, band: Band | None, limits: dict[str, int] | None) -> bool:
    """Draw the lengths of both sides and their ratio into a PNG file; return False if matplotlib is not installed.

    The other arguments are those of figure_of.
    """
    try:
        figure = figure_of(measures, band, limits)
    except ImportError:
        return False
    figure.savefig(path, dpi=110, format="png")
    return True


def figure_of(measures: Measures, band: Band | None, limits: dict[str, int] | None) -> Figure:
    """Draw the lengths of both sides, what is beyond the limits, and the ratio of the lengths.

    Args:
        measures: Of N rows.
        band: The usual ratios.
        limits: max_source_length and max_target_length if tokens were counted; None draws words.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure  # not pyplot: a notebook may have chosen its backend
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(14, 4), layout="constrained")
    *sides, right = figure.subplots(1, 3)
    unit = "words" if limits is None else "tokens"
    for side, axes in zip(("source", "target"), sides, strict=True):
        values = getattr(measures, f"{side}_{unit}")
        axes.hist(values, bins=_whole_bins(int(values.max())), color=_BLUE)
        axes.set(xlabel=f"{side} {unit}", ylabel="rows", xscale="log", yscale="log")
        axes.set_xlim(left=max(0.5, int(values.min()) - 0.5) * 0.9)
        if limits is not None:
            limit = limits[f"max_{side}_length"]
            num_over = int((values > limit).sum())
            end = max(axes.get_xlim()[1], 1.3 * limit)
            axes.set_xlim(right=end)
            axes.axvline(limit + 0.5, color=_RED)  # between the lengths that fit and the others
            axes.axvspan(limit + 0.5, end, color=_RED, alpha=0.15, linewidth=0)
            share = f"{_percent(num_over / len(values))}, {num_over:,} of {len(values):,} rows"
            axes.set_title(f"over --max_{side}_length {limit:,}: {share}", fontsize="medium")
    right.set(ylabel="rows", xlabel="target / source characters")
    if band is not None:
        ratio = length_ratio(measures)[is_measurable(measures)]
        right.hist(ratio, bins=np.geomspace(ratio.min() * 0.999, ratio.max() * 1.001, 80).tolist(), color=_BLUE)
        right.set(xscale="log", yscale="log", xlim=(min(right.get_xlim()[0], band.lowest * 0.9), None))
        right.set_xlim(right=max(right.get_xlim()[1], band.highest * 1.1))
        for edge, end in zip((band.lowest, band.highest), right.get_xlim(), strict=True):
            right.axvline(edge, color=_RED)
            right.axvspan(edge, end, color=_RED, alpha=0.15, linewidth=0)
        right.axvline(band.median, color="black", linewidth=0.8)
        num_odd = int(((ratio < band.lowest) | (ratio > band.highest)).sum())
        right.set_title(f"suspicious length ratio: {num_odd:,} of {len(ratio):,} rows", fontsize="medium")
        right.set_xlabel(f"target / source characters, rows of {MIN_CHARACTERS} or more")
    for axes in (*sides, right):
        axes.grid(alpha=0.3)
        left_end, right_end = axes.get_xlim()
        for axis, marks in ((axes.xaxis, (1, 2, 5) if right_end < 100 * left_end else (1, 3)), (axes.yaxis, (1,))):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=marks))
                axis.set_major_formatter("{x:,g}")
                axis.set_minor_formatter(NullFormatter())
    return figure


def _whole_bins(longest: int) -> NDArray[np.float64]:
    """Return about 50 edges between whole numbers, as equally wide on a logarithmic axis as possible."""
    return np.unique(np.geomspace(1, longest + 1, 50).round()) - 0.5
