"""Say how a run goes on: the command that continues it, or the commands that use its model."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mtloop

if TYPE_CHECKING:
    from mtloop.run_folder import RunFolder

# What may stand before the program: accelerate launch, torchrun, python -m torch.distributed.run, mtloop launch.
LAUNCHERS = ("accelerate", "torchrun", "torch", "mtloop")
# A sentence that a person recognizes and a line has room for.
MIN_CHARACTERS, MAX_CHARACTERS = 15, 60


def next_steps(folder: RunFolder) -> list[str]:
    """Return the lines that come last of a run: commands that work when they are pasted; none after a failure."""
    status = folder.status
    if status.get("status") == "stopped":
        command = status.get("command")
        return ["continue with:", f"  {command}"] if command else ["the same call continues it"]
    if status.get("status") != "finished":
        return []
    run = shlex.quote(str(folder.path))
    commands = [
        f"translate --model {run} --text {_sentence(folder, status['step'])}",
        f"evaluate --model {run}",
    ]
    if status["exit_status"] != 0 or not folder.journal:
        commands.append(f"push {run}")
    elif find_spec("ctranslate2") is not None:
        target = shlex.quote(f"{folder.path}-ctranslate2")
        commands.append(f"export --model {run} --format ctranslate2 -o {target}")
    return ["next:", *(f"  {mtloop.program()} {command}" for command in commands)]


def _sentence(folder: RunFolder, step: int) -> str:
    """Return a sentence of the validation rows, quoted, with the flags of its languages where there are several."""
    rows = [row for row in folder.hypotheses(f"step_{step}") if row["source"].isprintable()]
    rows = [row for row in rows if MIN_CHARACTERS <= len(row["source"]) <= MAX_CHARACTERS and row["source"][0] != "-"]
    row: dict[str, Any] = rows[0] if rows else {"source": "SENTENCE"}
    source, _, target = row.get("pair", "").partition("-")
    languages = f" --source_lang {source} --target_lang {target}" if target else ""
    return shlex.quote(row["source"]) + languages


@cache
def own_command() -> str:
    """Return the command line that started this training, quoted for a shell; "" where Python code did.

    A launcher puts its own words before those of the program. The launchers are asked for them while they live: the
    first call must be early.
    """
    program = os.path.basename(sys.argv[0])
    if program == "train.py":
        words, own = ["python", *sys.argv], sys.argv
    elif program in ("mtloop", "__main__.py") and sys.argv[1:2] == ["train"]:
        words, own = [*mtloop.program().split(), *sys.argv[1:]], sys.argv[1:]
    else:
        return ""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process()
        for ancestor in (process, *process.parents()):
            line = ancestor.cmdline()
            is_own = line[-len(own) :] == own and os.path.basename(line[0]).lower().startswith("python")
            if not is_own or (ancestor != process and _program_of(line) not in LAUNCHERS):
                break
            words = _as_typed(line)
    return shlex.join(words)


def _program_of(line: list[str]) -> str:
    """Return the name of the script or the package that Python runs."""
    word = next(word for word in line[1:] if not word.startswith("-"))
    return re.split(r"[.-]", Path(word).name)[0]


def _as_typed(line: list[str]) -> list[str]:
    """Return the words of a process as a person types them: a script of the PATH without its interpreter."""
    interpreter, *words = line
    words = words[1:] if words[0] == "-u" else words  # the launcher's
    name = Path(words[0]).name
    if words[0] == shutil.which(name):
        return [name, *words[1:]]
    found = shutil.which("python")
    is_first = found is not None and os.path.realpath(found) == os.path.realpath(interpreter)
    return ["python" if is_first else interpreter, *words]
