"""The run folder: the files other programs read, and whether a folder belongs to this run.

Owns the names in a run folder. Must not know models, tensors or ranks: callers on the
main process write, all ranks may read. The format is described in the README.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtloop.config import Config, RunFailed, UserError, differences, parse_config, to_yaml


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its small files."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def data_path(self) -> Path:
        return self.path / "data.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def hypotheses_dir(self) -> Path:
        return self.path / "hypotheses"

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final_dir(self) -> Path:
        return self.path / "final"

    def create(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            UserError: naming --output_dir and the reason.
        """
        try:
            self.checkpoints_dir.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--output_dir {self.path}: cannot be written ({error.strerror or error}); give a folder that can"
            ) from error

    def stored_config(self) -> Config | None:
        """Read the configuration that the folder's run was started with; None in a new folder."""
        if not self.config_path.exists():
            return None
        return parse_config([str(self.config_path)])

    def check_config(self, asked: Config) -> Config | None:
        """Return the stored configuration if the folder holds the run that `asked` describes, None in a new folder.

        Raises:
            UserError: for a folder of another run, with every setting that differs.
        """
        stored = self.stored_config()
        if stored is None:
            return None
        if different := differences(stored, asked):
            raise UserError(
                f"--output_dir {self.path} holds another run: {'; '.join(different)}; give the same settings to go on "
                "with it, or another --output_dir"
            )
        return stored

    def check_data(self, fingerprint: str) -> None:
        """Refuse data that is not what the folder's run was trained on.

        Raises:
            UserError: when the stored fingerprint is another.
        """
        stored = read_json(self.data_path)
        if stored and stored.get("fingerprint") != fingerprint:
            raise UserError(
                f"--output_dir {self.path} holds a run on other data ({str(stored.get('fingerprint'))[:12]}, "
                f"now {fingerprint[:12]}): a data file or the tokenizer has changed; give another --output_dir"
            )

    def write_config(self, config: Config) -> None:
        write_atomically(self.config_path, to_yaml(config))

    def write_data(self, report: dict[str, Any]) -> None:
        write_atomically(self.data_path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

    def write_status(self, status: str, *, exit_status: int | None = None, message: str = "", step: int = 0) -> None:
        """Say how the run stands: `status` is running, finished, stopped or failed."""
        record = {"status": status, "exit_status": exit_status, "message": message, "step": step, "pid": os.getpid()}
        write_atomically(self.status_path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    @property
    def is_finished(self) -> bool:
        return read_json(self.status_path).get("status") == "finished" and self.final_dir.is_dir()

    def drop_after(self, step: int) -> None:
        """Drop metrics lines and hypothesis files beyond `step`, so that each step stands once after a resume.

        -1 drops all: a run that starts over.
        """
        if self.metrics_path.exists():
            # A kill may cut a line within a character; splitlines would also cut at what JSON leaves as it is (U+2028).
            lines = self.metrics_path.read_text(encoding="utf-8", errors="replace").split("\n")
            kept = [line for line in lines if _step_of(line) <= step]
            write_atomically(self.metrics_path, "".join(line + "\n" for line in kept))
        for path in self.hypotheses_dir.glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()


def _step_of(line: str) -> float:
    try:
        record = json.loads(line)
        # Test rows are scored after the last checkpoint: a run that resumes scores them again.
        return float("inf") if record.get("split") == "test" else int(record["step"])
    except (ValueError, KeyError, TypeError, AttributeError):  # a line cut short by a kill
        return float("inf")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file.

    Raises:
        RunFailed: naming the file and the reason.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a folder that is gone or read-only refuses this too
            beside.unlink()
        raise RunFailed(f"{path}: cannot be written ({error.strerror or error})") from error
