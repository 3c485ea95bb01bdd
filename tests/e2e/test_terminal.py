"""A run on a real terminal, as a person sees it: Ctrl-C in the middle, and the command that it prints pasted."""

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import termios
from threading import Thread

import pytest

from tests.support.launch import PROJECT, PYTHON, environment
from tests.support.lives import wait_for_step
from tests.support.runs import short_flags

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class OnTerminal:
    """A program whose standard streams are a terminal of some columns; `output` is all that it wrote."""

    def __init__(self, command, columns):
        self.output = ""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {name: value for name, value in environment(TERM="xterm").items() if name not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(command, cwd=PROJECT, env=env, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.reader = Thread(target=self._read)
        self.reader.start()

    def _read(self):
        data = b""
        try:
            while more := os.read(self.master, 65_536):
                data += more
                self.output = data.decode(errors="replace")
        except OSError:  # the last writer has closed it
            pass

    def end(self):
        status = self.process.wait(timeout=300)
        self.reader.join(timeout=30)
        os.close(self.master)
        return status

    @property
    def lines(self):
        """Return every line that the terminal showed at any moment, without colours."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[\d*m", "", self.output))]


def assert_fits(terminal, columns):
    """The table, from its one header on, and the bar fit; nothing but colours moves the cursor about."""
    (header,) = [number for number, line in enumerate(terminal.lines) if line.startswith("  epoch")]
    last = next(number for number, line in enumerate(terminal.lines) if line.startswith(("stopped by", "trained")))
    assert max(map(len, terminal.lines[header:last])) <= columns
    bars = [line for line in terminal.lines if line.endswith(" left")]
    assert bars and max(map(len, bars)) < columns
    assert re.search(r"\d/\d+  loss \d+\.\d{3}  [\d,]+ tokens/s  [\d:?]+ left", "\n".join(bars))


def test_ctrl_c_and_the_command_that_continues(tmp_path):
    folder = tmp_path / "my run"
    flags = [*short_flags(1), "--eval_steps", "10", "--output_dir", str(folder)]
    first = OnTerminal([PYTHON, "train.py", *flags], 80)
    wait_for_step(folder, 12, timeout_s=300)
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 130, first.output[-3000:]
    assert_fits(first, 80)
    *_, saved, head, command = first.output.splitlines()
    assert re.fullmatch(rf"stopped by SIGINT and saved at step \d+ in {re.escape(str(folder))}", saved)
    program, *words = shlex.split(command)
    assert head == "continue with:" and (program, words) == ("python", ["train.py", *flags])

    second = OnTerminal([PYTHON, *words], 120)
    assert second.end() == 0, second.output[-3000:]
    assert_fits(second, 120)
    assert "\nresumed from " in second.output.replace("\r", "") and second.output.count("reference   ") == 3
    *_, head, translate, evaluate, push = second.output.splitlines()
    assert head == "next:" and shlex.split(translate)[:6] == [
        "python",
        "-m",
        "mtloop",
        "translate",
        "--model",
        str(folder),
    ]
    assert shlex.split(evaluate)[3:] == ["evaluate", "--model", str(folder)]
    assert shlex.split(push)[3:] == ["push", str(folder)]
