"""Lost placeholders that mtloop finds beside those that the checks of translate-toolkit find.

    python tests/benchmarks/survival_checks.py kde_en_fr.jsonl.gz [--pairs 5000] [--seed 1] [--examples 3]

Takes pairs with a placeholder of any kind on both sides. Compares source and reference, and then source and a
reference in which one placeholder was removed, repeated or changed. The checks are those of the toolkit's KdeChecker;
it has none for an ellipsis. Needs translate-toolkit.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mtloop.placeholders import KINDS, lost, placeholders
from mtloop.tables import aligned
from tests.benchmarks.material import load_pairs, parser_of

# A check of the toolkit covers several kinds: `variables` those of KDE and entities, `printf` all that begin with %.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "variables": (
        ("numbered", "count", "printf", "percent", "braces", "entity"),
        ("variables", "printf", "pythonbraceformat"),
    ),
    "tags": (("tag",), ("xmltags",)),
    "URLs": (("url",), ("urls",)),
    "e-mail": (("email",), ("emails",)),
    "accelerators": (("accelerator",), ("accelerators",)),
    "newlines": (("newline",), ("newlines",)),
    "edges": (("edge_space",), ("startwhitespace", "endwhitespace")),
    "numbers": (("number",), ("numbers",)),
}
Pair = tuple[str, str]


class Toolkit:
    """The checks of KdeChecker for one target language."""

    def __init__(self, target_lang: str) -> None:
        from translate.filters.checks import CheckerConfig, KdeChecker
        from translate.storage.base import TranslationUnit

        self._unit = TranslationUnit
        self._checker = KdeChecker(checkerconfig=CheckerConfig(targetlanguage=target_lang))

    def failures(self, source: str, target: str) -> dict[str, str]:
        """Return the messages of the checks that fail, by name."""
        unit = self._unit(source)
        unit.target = target
        return {name: str(message) for name, message in self._checker.run_filters(unit).items()}


def altered(target: str, rng: random.Random) -> tuple[str, str]:
    """Remove, repeat or change one placeholder of a text; return the text and the kind."""
    found = [one for of_kind in placeholders(target).values() for one in of_kind]
    one = rng.choice(found)
    new = rng.choice(["", 2 * one.text, _changed(one.text, rng)])
    return target[: one.start] + new + target[one.end :], one.kind


def _changed(text: str, rng: random.Random) -> str:
    """Replace a character: a digit by another one, a letter by its neighbour, anything else by nothing."""
    place = rng.randrange(len(text))
    old = text[place]
    new = str((int(old) + 1) % 10) if old in "0123456789" else chr(ord(old) ^ 1) if old.isalpha() else ""
    return text[:place] + new + text[place + 1 :]


def compare(pairs: Sequence[Pair], toolkit: Toolkit, *, num_examples: int, kinds: Sequence[str] = ()) -> list[str]:
    """Return the table of a comparison, and examples of each difference.

    Args:
        pairs: Sources and targets.
        toolkit: The other side.
        num_examples: Of each difference.
        kinds: What was altered in each pair; () for targets as they are.
    """
    counts: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
    examples: dict[tuple[str, str], list[str]] = {}
    for number, (source, target) in enumerate(pairs):
        theirs = toolkit.failures(source, target)
        for group, (own_kinds, checks) in GROUPS.items():
            ours = lost(source, target, own_kinds)
            other = [f"{check}: {theirs[check]}" for check in checks if check in theirs]
            if kinds and kinds[number] in own_kinds:
                counts[group]["altered"] += 1
                counts[group]["mtloop of them"] += bool(ours)
                counts[group]["toolkit of them"] += bool(other)
            if not ours and not other:
                continue
            what = "both" if ours and other else "only mtloop" if ours else "only toolkit"
            counts[group][what] += 1
            if what != "both":
                shown = f"{source!r} -> {target!r}: {', '.join(ours) or '; '.join(other)}"
                examples.setdefault((group, what), []).append(shown)
    columns = ["both", "only mtloop", "only toolkit"]
    columns += ["altered", "mtloop of them", "toolkit of them"] if kinds else []
    rows = [
        ["", *columns],
        *([group, *(f"{of_group[name]:,}" for name in columns)] for group, of_group in counts.items()),
    ]
    lines = aligned(rows, left=1)
    for (group, what), found in sorted(examples.items()):
        few = random.Random(1).sample(found, min(num_examples, len(found)))
        lines += ["", f"{group}, {what}:", *(f"  {line}" for line in few)]
    return lines


def main() -> None:
    """Print both tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--pairs", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=3)
    given = parser.parse_args()
    pairs = [pair for pair in load_pairs(given) if placeholders(pair[0]) and placeholders(pair[1])]
    rng = random.Random(given.seed)
    pairs = rng.sample(pairs, min(given.pairs, len(pairs)))
    toolkit = Toolkit(given.target_lang)
    changes = [altered(target, rng) for _, target in pairs]
    print(f"{len(pairs):,} pairs, references as they are, {len(KINDS)} kinds")
    print("\n".join(compare(pairs, toolkit, num_examples=given.examples)))
    print("\none placeholder of each reference removed, repeated or changed")
    broken = [(source, target) for (source, _), (target, _) in zip(pairs, changes, strict=True)]
    lines = compare(broken, toolkit, num_examples=given.examples, kinds=[kind for _, kind in changes])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
