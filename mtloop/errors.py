"""Errors that end a run with one line: mistakes of the user (status 2) and failures of the run (status 1)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar


def render_line(error: BaseException) -> list[str]:
    """Return what a notebook shows of an error that explains itself: IPython calls it for the lines of a traceback."""
    return [f"{type(error).__name__}: {error}"]


class UserError(ValueError):
    """A mistake of the user: one line with the flag or file:line, the problem and the remedy. Exit status 2.

    Attributes:
        is_shared: True if every process of the run raises it: the first one reports it.
    """

    is_shared = False
    _render_traceback_ = render_line


class FieldError(UserError):
    """An invalid setting. A reader of a file adds the line of the field `name`."""

    def __init__(self, name: str, problem: str, *, got: object, remedy: str = "") -> None:
        super().__init__(f"--{name}: {problem} (got {got}). {remedy}".rstrip())
        self.name = name


class RunFailed(RuntimeError):
    """A failure of the run (disk, process, non-finite gradient): one line. Exit status 1.

    Attributes:
        is_shared: As of UserError.
    """

    is_shared = False
    _render_traceback_ = render_line


# Of a message; a text that it quotes may be longer.
MAX_CHARACTERS = 4_000

# Of a URL, user:password@.
USER_INFO = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")

E = TypeVar("E", bound=UserError | RunFailed)

# Printable characters without a glyph: fillers, blanks and variation selectors.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\U0001d159") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}


class ProcessFailed(RunFailed):
    """A failure of one process that cannot reach the others any more: each reports its own.

    Attributes:
        is_lost_peer: True if the process only found another one gone, whose error names the reason.
    """

    def __init__(self, message: str, *, is_lost_peer: bool = False) -> None:
        super().__init__(message)
        self.is_lost_peer = is_lost_peer


def shared(error: E) -> E:
    """Mark an error that every process of the run raises: the first one reports it."""
    error.is_shared = True
    return error


def is_shared(error: BaseException | None) -> bool:
    """Return True if every process of the run raises the error, or the one that it was made from."""
    while error is not None:
        if getattr(error, "is_shared", False):
            return True
        error = error.__cause__
    return False


def rename_flag(error: UserError, flag: str) -> UserError:
    """Return the error of a loader with the flag of a command instead of --model_name_or_path of train.py."""
    return UserError(re.sub(r"(--tokenizer_name / )?--model_name_or_path|--model(?= )", flag, str(error)))


def install_line(package: str, extra: str = "") -> str:
    """Return the pip command that installs an optional package.

    Args:
        package: Its name on PyPI.
        extra: The extra of mtloop that has it with its versions. It is named only where mtloop is installed: in a clone
            pip would look for a package of this name elsewhere.
    """
    with contextlib.suppress(PackageNotFoundError):
        if extra and version("mtloop"):
            return f"pip install 'mtloop[{extra}]'"
    return f"pip install {package}"


def missing_package(flag: str, package: str, extra: str = "", *, error: BaseException | None = None) -> UserError:
    """Return the error of a flag that needs an optional package; arguments as of install_line.

    Args:
        flag: The flag, or what else needs the package.
        package: Its name on PyPI.
        extra: The extra of mtloop that has it.
        error: The error of the import: it is quoted where the package is there and cannot be imported.
    """
    is_broken = error is not None and not isinstance(error, ModuleNotFoundError)
    reason = f" ({first_line(error)})" if error is not None and is_broken else ""
    return UserError(f"{flag}: {package} is not installed{reason}. Run `{install_line(package, extra)}`.")


@contextlib.contextmanager
def refused(describe: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn whatever a library raises while it loads what the user gave into a UserError.

    Args:
        describe: Returns the error's line.

    Raises:
        UserError: as described; one that is raised within stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # Errors of Rust (a tokenizer.json of another kind) derive from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(describe(error)) from error


def first_line(error: BaseException) -> str:
    """Return the system's text of an OSError, else the first line of an error's message, or its type.

    A line that ends with a colon goes on with the next.
    """
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    line, *more = text.strip().splitlines() or [type(error).__name__]
    return f"{line} {more[0].strip()}" if more and line.endswith(":") else line


def described(error: BaseException) -> str:
    """Return the first line of a library's error, after its type where that may say more than the line."""
    line, kind = first_line(error), type(error).__name__
    return line if isinstance(error, (OSError, ValueError, ImportError)) or line == kind else f"{kind}: {line}"


def visible(text: str, *, kept: str = "") -> str:
    """Return a text with every character that a reader does not see escaped, as Python writes it.

    Two texts that differ look different: a no-break space is `\\xa0`, a zero-width space `\\u200b`, and an accent that
    could be one character with its letter `\\u0301`.

    Args:
        text: Any text.
        kept: Characters that are not escaped.
    """
    shown = []
    for before, char in zip(["", *text], text, strict=False):
        # A letter and its accent have the glyph of their composition.
        is_hidden = not char.isascii() and len(unicodedata.normalize("NFC", before + char)) == len(before)
        is_seen = char in kept or (char.isprintable() and char not in _BLANKS and not is_hidden)
        shown.append(char if is_seen else ascii(char)[1:-1])
    return "".join(shown)


def one_line(text: str) -> str:
    """Return a message as one line that a terminal shows as it is; the middle of a very long one is left out.

    Passwords in URLs are removed.
    """
    line = visible(without_passwords(text))
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS // 2]} ... {line[-MAX_CHARACTERS // 2 :]}"


def without_passwords(text: str) -> str:
    """Remove user and password from the URLs in a text."""
    return USER_INFO.sub("", text)


def check_folder(flag: str, path: Path) -> None:
    """Check that an output folder exists or can be created.

    Raises:
        UserError: naming the file, or the link to no folder, at its place or above.
    """
    place = next((place for place in (path, *path.parents) if os.path.lexists(place)), None)
    if place is not None and not place.is_dir():
        raise _occupied(flag, path, place)


def check_file(flag: str, path: Path) -> Path:
    """Check that an output file can be created or replaced; return it, or the file that a link at its place leads to.

    Raises:
        UserError: naming what is at its place or above.
    """
    place = next((place for place in (path, *path.parents) if os.path.lexists(place)), None)
    if place is not None and not (place.is_file() if place == path else place.is_dir()):
        raise _occupied(flag, path, place)
    return behind_link(path)


def _occupied(flag: str, path: Path, place: Path) -> UserError:
    kind = "a folder" if place.is_dir() else "a file" if place.is_file() else "not a regular file"
    if place.is_symlink():
        kind = f"a link to {os.readlink(place)}, {kind if place.exists() else 'which leads nowhere'}"
    return UserError(f"{flag} {path}: cannot be written ({place} is {kind}). Give another place.")


def behind_link(path: Path) -> Path:
    """Return where a link leads; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def unwritable(path: Path, error: BaseException) -> RunFailed:
    """Return the error of a run that cannot write a file or folder."""
    return RunFailed(f"{path}: cannot be written ({first_line(error)}). {write_remedy(error)}.")


def write_remedy(error: BaseException) -> str:
    """Return what helps against an error of writing, whatever its type."""
    is_limit = os.strerror(errno.EFBIG) in str(error)
    return "Raise `ulimit -f`" if is_limit else "Free disk space, or make the folder writable"


# What the system refuses, by the number of its error: problem and remedy. The text of the number is in the message of
# each library, whatever the type of its error.
ELSEWHERE = "Free disk space, or name a folder elsewhere (--output_dir, HF_HOME, TMPDIR)"
FEWER = "or start fewer: --dataloader_num_workers 0, --preprocessing_num_workers 1, --cpu_threads 1"
LIMITS = {
    errno.EMFILE: ("too many open files", f"Raise `ulimit -n`, {FEWER}"),
    errno.ENFILE: ("too many open files in the system", "Close other programs, or raise fs.file-max"),
    errno.EAGAIN: ("no more processes and threads", f"Raise `ulimit -u`, `ulimit -v` or the pids limit, {FEWER}"),
    errno.ENOMEM: (
        "no more memory",
        "Raise `ulimit -v` or the memory limit, or use a smaller model or data",
    ),
    errno.EFBIG: ("a file is too large", "Raise `ulimit -f`"),
    errno.ENOSPC: ("no space left on device", ELSEWHERE),
    errno.EDQUOT: ("disk quota exceeded", ELSEWHERE),
    errno.EROFS: ("read-only file system", "Name a folder elsewhere (--output_dir, HF_HOME, TMPDIR)"),
}
# Messages of Python, the dynamic loader and C++ that do not say which error of the system they are.
OTHER_TEXTS = {
    "can't start new thread": errno.EAGAIN,
    "failed to map segment from shared object": errno.ENOMEM,
    "No usable temporary directory": errno.EROFS,
    "returned NULL without setting an exception": errno.ENOMEM,
    "bad_alloc": errno.ENOMEM,
}


def out_of_resources(error: BaseException | None) -> ProcessFailed | None:
    """Return the error of a process that the system refused a file, a process, memory or space; None for another."""
    while error is not None:
        text = " ".join(str(error).split())
        number = next((number for words, number in OTHER_TEXTS.items() if words in text), None)
        number = number or next((number for number in LIMITS if os.strerror(number) in text), None)
        number = errno.ENOMEM if isinstance(error, MemoryError) else number
        if number is not None:
            problem, remedy = LIMITS[number]
            where = getattr(error, "filename", None) or "limit of the system"
            return ProcessFailed(f"{where}: {problem} ({type(error).__name__}: {text[:150]}). {remedy}.")
        error = error.__cause__
    return None
