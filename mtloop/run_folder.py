"""Name, read and write the files of a run folder, lock it, and check that it belongs to a run.

Must not know models, tensors or ranks: the main process writes, all ranks may read.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mtloop.atomic import checker, read_json, read_json_lines, read_record, sweep, write_json, write_text
from mtloop.config.parse import parse_config
from mtloop.config.settings import Config, differences
from mtloop.config.yaml_file import to_yaml
from mtloop.errors import UserError, check_folder, first_line, without_passwords
from mtloop.metrics_log import MetricsLog
from mtloop.run_files import DATA_REPORT, HYPOTHESIS, JOURNAL_LINE, RUN_RECORD, STATUS

# A run that was stopped may still be saving when the next one starts.
LOCK_WAIT_S = 10.0
# The start of a process, computed from the clock of the machine, may differ by this much when it is read again.
SAME_START_S = 2.0


class RunFolder:
    """The paths of a run folder and its small files; see RUN_FILES."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self.status_path = path / "status.json"
        self.data_path = path / "data.json"
        self.run_path = path / "run.json"
        self.push_path = path / "push.jsonl"
        self.curves_path = path / "curves.png"
        self.hypotheses_dir = path / "hypotheses"
        self.tokenizer_dir = path / "tokenizer"
        self.checkpoints_dir = path / "checkpoints"
        self.final_dir = path / "final"
        self.metrics = MetricsLog(path / "metrics.jsonl")
        self._locks: list[int] = []  # descriptors

    def create(self) -> None:
        """Create the folder and check that it is writable.

        Raises:
            UserError: naming --output_dir and the reason.
        """
        for folder in (self.path, self.checkpoints_dir):
            check_folder("--output_dir", folder)
        try:
            self.checkpoints_dir.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".tmp-probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--output_dir {self.path}: cannot be written ({first_line(error)}). Give a writable folder."
            ) from error

    def refuse_foreign(self) -> None:
        """Refuse a folder without a run that has files which a run would replace.

        Raises:
            UserError: naming the files.
        """
        if self.config_path.exists() or self.run_record["run_id"]:
            return
        named = (self.run_path, self.data_path, self.metrics.path, self.push_path, self.curves_path)
        foreign = [path.name for path in (*named, self.final_dir, self.hypotheses_dir) if path.exists()]
        if foreign:
            raise UserError(
                f"--output_dir {self.path}: has {', '.join(foreign)}, but is not a run folder. Give a new folder."
            )

    def lock(self, say: Callable[[str], None], *, wait_s: float = LOCK_WAIT_S) -> None:
        """Lock the folder against other processes until unlock() or the end of this process.

        Args:
            say: Called with a line while another process has the lock.
            wait_s: Seconds to wait for it.

        Raises:
            UserError: naming the process that has the lock.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return
        path = self.path / ".lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline, has_said = time.monotonic() + wait_s, False
        while True:
            try:
                # The kernel releases a POSIX lock with its process, and loader workers do not inherit it. It is also
                # released when this process closes the file elsewhere, so it is not opened anywhere else.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):  # POSIX allows either
                owner = read_json(path)
                who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise UserError(
                        f"--output_dir {self.path}: {who} is training in it. Wait for it, or give another folder. To "
                        "start one run on several processes use `accelerate launch` and a file of `mtloop configs`."
                    ) from None
                if not has_said:
                    say(f"{self.path}: {who} is training in it; waiting up to {wait_s:g} s")
                    has_said = True
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)
        self._locks.append(descriptor)

    def unlock(self) -> None:
        """Release the lock."""
        while self._locks:
            os.close(self._locks.pop())

    def stored_config(self) -> Config | None:
        """Read the configuration of the run; None in a new folder."""
        if not self.config_path.exists():
            return None
        # Nothing is said of the words of an earlier version: standard output may be that of translations.
        return parse_config([str(self.config_path)], say=lambda line: None)

    def check_config(self, asked: Config) -> Config | None:
        """Compare the configuration of the run with `asked`; return it, None in a new folder.

        Raises:
            UserError: with every setting that differs, unless --allow_changed is given.
        """
        stored = self.stored_config()
        if stored is None or asked.output.allow_changed:
            return stored
        if different := differences(stored, asked):
            raise UserError(
                f"--output_dir {self.path}: holds another run ({'; '.join(different)}). Give the same settings to "
                "resume, --allow_changed to resume with these, or another --output_dir."
            )
        return stored

    def check_data(self, report: dict[str, Any], *, allow_changed: bool = False) -> list[str]:
        """Compare the data and the tokenizer of the run with the current ones.

        Args:
            report: The current content of data.json.
            allow_changed: If True, differences are allowed.

        Returns:
            The differences in sources, kept rows and tokenizer.

        Raises:
            UserError: if there are differences that are not allowed.
        """
        stored = self.data_report
        different = _data_differences(stored, report) if stored else []
        if different and not allow_changed:
            raise UserError(
                f"--output_dir {self.path}: holds a run on other data ({'; '.join(different)}). Give the same data, "
                "--allow_changed to resume with this, or another --output_dir."
            )
        return different

    def start_run(self, config: Config, report: dict[str, Any]) -> None:
        """Write the files of a new run: its id, its data and its settings."""
        # A run that was downloaded from the Hub has an id already.
        self.update_record(run_id=self.run_record["run_id"] or uuid.uuid4().hex)
        self.write_data(report)
        self.write_config(config)  # last: it marks the folder as a run folder

    @property
    def run_record(self) -> dict[str, Any]:
        """The content of run.json."""
        return {"run_id": "", "changes": [], **read_record(self.run_path, RUN_RECORD)}

    def record_changes(self, different: list[str], *, step: int) -> None:
        """Record the settings and data that changed at `step`."""
        self.update_record(changes=[*self.run_record["changes"], {"step": step, "changed": different}])

    def update_record(self, **entries: Any) -> None:
        """Change entries of run.json."""
        write_json(self.run_path, {**self.run_record, **entries})

    def write_config(self, config: Config) -> None:
        write_text(self.config_path, to_yaml(config))

    @property
    def data_report(self) -> dict[str, Any]:
        """The content of data.json, {} without it."""
        return read_record(self.data_path, DATA_REPORT)

    def write_data(self, report: dict[str, Any]) -> None:
        write_json(self.data_path, report)

    def write_status(
        self, status: str, *, exit_status: int | None = None, message: str = "", step: int = 0, command: str = ""
    ) -> None:
        """Write status.json: `status` is running, finished, stopped or failed; `command` started the run."""
        record = {
            "status": status,
            "exit_status": exit_status,
            "message": without_passwords(message),
            "step": step,
            "command": without_passwords(command),
            **_process(os.getpid()),
        }
        write_json(self.status_path, record)

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json; {} if it is missing or corrupt: each start writes it."""
        try:
            return read_record(self.status_path, STATUS)
        except UserError:
            return {}

    @property
    def is_dead(self) -> bool:
        """Return True if the process that was training here was killed, or the machine stopped."""
        status = self.status
        if status.get("status") != "running" or status.get("host", socket.gethostname()) != socket.gethostname():
            return False
        start = _process(status["pid"])["process_start"]
        return start is None or abs(start - status.get("process_start", start)) > SAME_START_S

    @property
    def status_text(self) -> str:
        """Describe status.json in one line."""
        status = self.status
        if not status:
            return "no training has written its status here"
        text = f"{status['status']} at step {status['step']:,}"
        if status["status"] == "running":
            text = f"running, as process {status['pid']} on {status.get('host', 'an unknown machine')}"
        if self.is_dead:
            text = f"process {status['pid']} was killed, or its machine stopped; the same command continues the run"
        return text + (f": {status['message']}" if status["status"] == "failed" else "")

    @property
    def is_finished(self) -> bool:
        return self.status.get("status") == "finished" and self.final_dir.is_dir()

    @property
    def is_failed(self) -> bool:
        return self.status.get("status") == "failed"

    @property
    def journal(self) -> list[dict[str, Any]]:
        """The lines of push.jsonl. Invalid ones are left out with a warning."""
        return read_json_lines(self.push_path, checker(JOURNAL_LINE))

    def hypotheses(self, name: str) -> list[dict[str, Any]]:
        """The rows of hypotheses/NAME.jsonl. Invalid ones are left out with a warning."""
        return read_json_lines(self.hypotheses_dir / f"{name}.jsonl", checker(HYPOTHESIS))

    def sweep(self) -> None:
        """Remove partial files of killed processes, and finish their renames."""
        for parent in (self.path, self.checkpoints_dir, self.hypotheses_dir):
            sweep(parent)

    def drop_after(self, step: int) -> None:
        """Remove metrics lines and hypothesis files after `step`, which a resume writes again; -1 removes all."""
        self.metrics.drop_after(step)
        for path in self.hypotheses_dir.glob("step_*.jsonl"):
            if (step_named(path.stem) or 0) > step:
                path.unlink()


def _process(pid: int) -> dict[str, Any]:
    """Describe a process of this machine; the time of its start distinguishes it from a later one with its number."""
    try:
        start = psutil.Process(pid).create_time()
    except (psutil.Error, OverflowError, ValueError):
        start = None
    return {"pid": pid, "host": socket.gethostname(), "process_start": start}


def step_named(name: str, prefix: str = "step_") -> int | None:
    """Return N of the name step_N as a run writes it; None for any other name."""
    found = re.fullmatch(re.escape(prefix) + r"(0|[1-9][0-9]{0,17})", name)
    return int(found[1]) if found else None


def _data_differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if stored.get("fingerprint") == now["fingerprint"]:
        return []
    lines = []
    for split in dict.fromkeys([*stored.get("sources", {}), *now["sources"]]):
        before, after = (report.get("sources", {}).get(split) for report in (stored, now))
        if before != after:
            lines.append(f"the source of {split} has changed ({_source_text(before)}, now {_source_text(after)})")
    for name, text in (("tokenizer", "the tokenizer"), ("data", "the rows")):
        before, after = (report.get("fingerprints", {}).get(name) for report in (stored, now))
        if before != after and not (name == "data" and lines):
            lines.append(f"{text} changed (fingerprint {str(before)[:12]}, now {str(after)[:12]})")
    # Other differences come from settings (lengths, prefix), which check_config names.
    return lines or [f"fingerprint {str(stored.get('fingerprint'))[:12]}, now {now['fingerprint'][:12]}"]


def _source_text(origins: Any) -> str:
    """Return the files or the data set of a split, with the first digits of the hashes."""
    texts = []
    for origin in origins or []:
        name = next((str(origin[key]) for key in ("path", "name", "cut_from") if key in origin), "?")
        texts.append(f"{name} {str(origin['sha256'])[:12]}" if "sha256" in origin else name)
    return ", ".join(texts) or "none"


def run_above(folder: Path) -> RunFolder | None:
    """Return the run that a folder is final/ or a checkpoint of; None for any other folder."""
    path = folder.parent if folder.name == "final" else folder.parent.parent
    is_of_run = folder.name == "final" or folder.parent.name == "checkpoints"
    run = RunFolder(path)
    return run if is_of_run and run.config_path.is_file() else None


def stored_config(model: str) -> Config | None:
    """Return the configuration that a model was trained with; None if it is unknown.

    Args:
        model: A run folder, its final/, a checkpoint, or any other name.
    """
    folder = RunFolder(Path(model))
    if not folder.path.is_dir():
        return None
    run = folder if folder.config_path.is_file() else run_above(folder.path)
    return None if run is None else run.stored_config()
