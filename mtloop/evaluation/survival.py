"""Count the placeholders of sources that survive in translations, by kind. Must not know metrics. N rows.

A kind counts in a row if the reference has the same placeholders of it as the source, and the source or the hypothesis
has any. It survives if the hypothesis has the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mtloop.placeholders import CODE, KINDS, keys, lost

SURVIVAL = "survival"
NAMES = {f"{SURVIVAL}_{kind}": kind for kind in KINDS}


@lru_cache(maxsize=64)  # evaluation sets of a process: the same ones at every evaluation
def _expected(
    sources: tuple[str, ...], references: tuple[str, ...]
) -> tuple[list[dict[str, Counter[str]]], list[frozenset[str]], frozenset[str]]:
    """Return what each source has, by kind; the kinds that its reference changes; and the kinds of all rows to count.

    The last do not depend on hypotheses: every evaluation of the rows has the same scores.
    """
    there, changed, counted = [], [], set()
    for source, reference in zip(sources, references, strict=True):
        of_source, of_reference = keys(source), keys(reference)
        kinds = of_source.keys() | of_reference.keys()
        there.append(of_source)
        changed.append(frozenset(kind for kind in kinds if of_source.get(kind) != of_reference.get(kind)))
        counted |= of_source.keys() - changed[-1]
    return there, changed, frozenset(counted)


def survivals(sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[dict[str, bool]]:
    """Return of each row which of the kinds that count in it survive."""
    there, changed, counted = _expected(tuple(sources), tuple(references))
    rows = []
    for hypothesis, of_source, left_out in zip(hypotheses, there, changed, strict=True):
        here = keys(hypothesis)
        kinds = ((of_source.keys() | here.keys()) & counted) - left_out
        rows.append({kind: of_source.get(kind) == here.get(kind) for kind in kinds})
    return rows


def survival_statistics(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return [N, 2] by the metric's name: 100 for a row that survives, and 1 for one that counts.

    `survival` is that of all kinds that a program reads (CODE): a row survives if all of them do. A kind is left out if
    no row counts for it, and so is `survival` if none counts for a kind of CODE.
    """
    rows = survivals(sources, hypotheses, references)
    *_, counted = _expected(tuple(sources), tuple(references))
    found = {
        name: np.array([(100.0 * row[kind], 1.0) if kind in row else (0.0, 0.0) for row in rows])
        for name, kind in NAMES.items()
        if kind in counted
    }
    if counted.isdisjoint(CODE):
        return found
    of_code = [[survives for kind, survives in row.items() if kind in CODE] for row in rows]
    return {SURVIVAL: np.array([(100.0 * all(one), 1.0) if one else (0.0, 0.0) for one in of_code]), **found}


def lost_placeholders(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
) -> list[dict[str, list[str]]]:
    """Describe of each row what did not survive, by kind in the order of KINDS; {} for a row that survived.

    All are {} if no row counts for a kind that a program reads (CODE), as in texts of news.
    """
    *_, counted = _expected(tuple(sources), tuple(references))
    if counted.isdisjoint(CODE):
        return [{} for _ in sources]
    return [
        {kind: lost(source, hypothesis, [kind]) for kind in KINDS if not row.get(kind, True)}
        for source, hypothesis, row in zip(sources, hypotheses, survivals(sources, hypotheses, references), strict=True)
    ]
