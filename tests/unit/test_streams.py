"""streams: printing to standard streams that are closed, full, broken, or of another encoding."""

import subprocess
import sys

import pytest

# Prints on both, shows what the process has, and ends with status 7. In ASCII: a C locale reads no other -c.
PROGRAM = """
import os, sys
from mtloop.runtime.streams import make_streams_safe
make_streams_safe()
make_streams_safe()  # another main() in the process
opened = os.open(os.devnull, os.O_RDONLY)
for number in range(3000):
    print("\\xb7\\u0645\\u0631 \\ud83d", number, flush=number % 2 == 0)
print("not flushed")
print("on error \\xb7 \\ud83d", file=sys.stderr)
with open("seen", "w") as seen:
    print(opened > 2, sys.stdout is not None, sys.stderr is not None, file=seen)
sys.exit(7)
"""


def run_in(tmp_path, redirection, **environment):
    """Run PROGRAM in a shell that redirects its streams; return the shell's result."""
    command = f'"$0" -c "$1" {redirection}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        (">/dev/full", ["standard output cannot be written (No space left on device)", "on error"]),
        (">/dev/full 2>/dev/full", []),
        ("2>/dev/full", []),
        ("<&-", ["on error"]),
        (">&-", ["on error"]),
        ("2>&-", []),
        ("<&- >&- 2>&-", []),
        ("1</dev/null", ["standard output cannot be written (Bad file descriptor)", "on error"]),
        ("> >(exit)", ["on error"]),
    ],
)
@pytest.mark.slow
def test_make_streams_safe_drops_what_cannot_be_written(tmp_path, redirection, words):
    done = run_in(tmp_path, redirection)
    assert done.returncode == 7
    assert (tmp_path / "seen").read_text() == "True True True\n"
    lines = done.stderr.decode().splitlines()
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))


@pytest.mark.parametrize(
    ("environment", "dot", "arabic"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"\xb7", rb"\u0645"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xb7", rb"\u0645"),
        ({"PYTHONIOENCODING": "utf-8"}, "·".encode(), "م".encode()),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rb"\xb7", rb"\u0645"),
    ],
)
def test_make_streams_safe_escapes_what_encoding_lacks(tmp_path, environment, dot, arabic):
    done = run_in(tmp_path, "", **environment)
    assert done.returncode == 7
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(dot + arabic) and first.endswith(rb"\ud83d 0") and last == b"not flushed"
    assert done.stderr.startswith(b"on error " + dot) and done.stderr.endswith(b" \\ud83d\n")


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| true", "<&-"])
@pytest.mark.parametrize("words", ["--version", "--help", "evaluate --help", "train --help"])
@pytest.mark.slow
def test_help_ends_with_status_0_where_nobody_listens(tmp_path, redirection, words):
    command = f'"$0" -m mtloop {words} {redirection}; echo "status ${{PIPESTATUS[0]}}" >seen'
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (tmp_path / "seen").read_text() == "status 0\n"
    assert b"Traceback" not in done.stderr
