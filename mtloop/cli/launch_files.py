"""Find the launch files: accelerate_configs/ of the clone, or its copy in the installed package."""

from __future__ import annotations

import re
from pathlib import Path

import mtloop
from mtloop.errors import UserError

FOLDER = "accelerate_configs"
PURPOSE = re.compile(r"Pick this for (.+?)\.(?=\s)")


def launch_folder() -> Path:
    """Return the folder of the launch files.

    Raises:
        UserError: The package was copied without them.
    """
    package = Path(mtloop.__file__).resolve().parent
    for folder in (package / FOLDER, package.parent / FOLDER):  # pyproject.toml puts it into the wheel
        if folder.is_dir():
            return folder
    raise UserError(f"{package}: the folder {FOLDER} is missing. Install the package, or use a whole clone.")


def launch_files() -> dict[str, Path]:
    """Return the launch files, and the script for SLURM, by their names without the ending."""
    paths = [path for path in launch_folder().iterdir() if path.suffix in (".yaml", ".sh")]
    return {path.stem: path for path in sorted(paths)}


def launch_file(flag: str, given: str) -> Path:
    """Return the launch file of this name, or the user's own at this path.

    Raises:
        UserError: naming the flag and the names.
    """
    known = {name: path for name, path in launch_files().items() if path.suffix == ".yaml"}
    path = known.get(given) or Path(given)
    if not path.is_file():
        raise UserError(f"{flag}: no such launch file (got {given}). Give a path, or one of {', '.join(known)}.")
    return path


def purpose_of(path: Path) -> str:
    """Return what a launch file is for: the first sentence of its comment."""
    comment = [line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("# ")]
    found = PURPOSE.search(f"{' '.join(comment)} ")
    assert found is not None, path
    return found[1]
