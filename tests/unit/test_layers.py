"""Imports go downward only, and accelerate is known to one module below layer 2."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mtloop"

LAYERS = {
    "errors": -3, "atomic": -2, "languages": -1,
    "config": 0, "batching": 0, "loss": 0, "metrics": 0, "state": 0, "demo": 0, "recipes": 0,
    "corpus": 1, "tokenization": 1, "model": 1, "optim": 1, "loader": 1, "runtime": 1, "manifest": 1,
    "run_folder": 1, "adapters": 1,
    "generation": 2, "checkpoint": 2, "tracking": 2,
    "evaluate": 3, "hub": 3, "translate": 3,
    "trainer": 4, "evaluation": 4,
    "build": 5, "inspection": 5, "averaging": 5, "export": 5,
    "entry": 6, "selfcheck": 6,
    "__init__": 7, "__main__": 7,
}  # fmt: skip

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


def importers_of(prefix: str, *, below: int) -> list[str]:
    """Return the files of layers under `below`, runtime apart, that import a module whose name begins so."""
    return [
        f"{path} imports {name}"
        for path in FILES
        if module_of(path) != "runtime" and LAYERS[module_of(path)] < below
        for name in imports_of(path)
        if f"{name}.".startswith(f"{prefix}.")
    ]


def test_every_module_has_a_layer():
    assert {module_of(path) for path in FILES} == set(LAYERS)


def test_imports_go_downward_only():
    upward = []
    for path in FILES:
        own = module_of(path)
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "mtloop" or len(parts) == 1 or parts[1] == own:
                continue
            if not LAYERS[parts[1]] < LAYERS[own]:
                upward.append(f"{path}: {own} (layer {LAYERS[own]}) imports {name}")
    assert upward == []


def test_only_runtime_knows_ranks():
    assert importers_of("torch.distributed", below=99) == []
    assert importers_of("accelerate", below=2) == []


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
