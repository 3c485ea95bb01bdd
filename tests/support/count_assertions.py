"""Count the assertions of the tests: `assert` statements and calls of `pytest.raises`, read from the syntax tree.

    python -m tests.support.count_assertions [--files] [FOLDER]

prints two sums over all Python files under FOLDER (default: tests), helpers included. --files prints the counts of each
file first. Compare before and after a change to the tests: each assertion that disappears needs a reason. An assertion
in a loop or a parametrized test counts once.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1]


class Counts(NamedTuple):
    """The assertions of one file, or of many."""

    asserts: int
    raises: int


def count(source: str) -> Counts:
    """Count the assertions in the source of a module."""
    nodes = list(ast.walk(ast.parse(source)))
    return Counts(sum(isinstance(node, ast.Assert) for node in nodes), sum(is_raises(node) for node in nodes))


def is_raises(node: ast.AST) -> bool:
    """Return True for a call of pytest.raises."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises"


def count_folder(folder: Path) -> dict[str, Counts]:
    """Count the assertions of each Python file under a folder, by its path there."""
    files = sorted(folder.rglob("*.py"))
    return {path.relative_to(folder).as_posix(): count(path.read_text(encoding="utf-8")) for path in files}


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser("python -m tests.support.count_assertions", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=TESTS, help="folder to read (default: tests)")
    parser.add_argument("--files", action="store_true", help="print a line for each file first")
    given = parser.parse_args()
    counts = count_folder(given.folder)
    if given.files:
        for name, (asserts, raises) in counts.items():
            print(f"{asserts:6,}{raises:5,}  {name}")
    print(*(sum(column) for column in zip(*counts.values(), strict=True)))


if __name__ == "__main__":
    main()
