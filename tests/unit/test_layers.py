"""Imports go downward only, and accelerate is known to one module below layer 2."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mtloop"

# Each line is a floor, from the ground up. A module imports only what stands before it: lower floors, and on its own
# floor what is named to its left.
FLOORS = (
    ("errors", "atomic", "languages", "placeholders", "tables", "terminal"),
    ("config", "batching", "runtime"),
    ("data", "model", "tokenization", "generation"),
    ("evaluation", "metrics_log", "run_files", "run_folder", "checkpoint", "hub"),
    ("translate",),
    ("trainer",),
    ("corpus_report", "selfcheck"),
    ("cli", "api", "__init__", "__main__"),
)
ORDER = [name for floor in FLOORS for name in floor]

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> list[str]:
    """Return every module imported anywhere in a file, inside functions too."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "mtloop" else []
    return found


def test_every_module_has_a_floor():
    assert {module_of(path) for path in FILES} == set(ORDER)


def test_imports_go_downward_only():
    upward = []
    for path in FILES:
        own = module_of(path)
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "mtloop" or len(parts) == 1 or parts[1] == own:
                continue
            if ORDER.index(parts[1]) > ORDER.index(own):
                upward.append(f"{path} imports {name}")
    assert upward == []


def test_only_runtime_knows_ranks():
    for library, floors in (("torch.distributed", FLOORS), ("accelerate", FLOORS[:3])):
        names = {name for floor in floors for name in floor} - {"runtime"}
        found = [
            f"{path} imports {name}"
            for path in FILES
            if module_of(path) in names
            for name in imports_of(path)
            if f"{name}.".startswith(f"{library}.")
        ]
        assert found == []


def test_functions_fit_on_a_screen():
    too_long = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                docstring = ast.get_docstring(node)
                length -= docstring.count("\n") + 1 if docstring else 0
                if length > 60:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def test_train_py_is_at_most_60_lines():
    assert len((PACKAGE.parent / "train.py").read_text(encoding="utf-8").splitlines()) <= 60
