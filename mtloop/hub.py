"""Publishing to the Hugging Face Hub: a check before the run, and a publisher that pushes while training goes on.

Layer 1. Owns every request of a push. Must not know models, ranks or the loop: the main process alone calls it. The
token comes from HF_TOKEN or `hf auth login` and stands in no message.
"""

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import json
import os
import re
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id
from huggingface_hub.utils._http import default_client_factory  # has no public name in huggingface_hub 1.33 to 2.4

from mtloop.config import HubConfig, UserError

REQUEST_TIMEOUT_S = 60.0  # of each connect, read and write: an upload that moves is not cut


def check_hub(config_hub: HubConfig, output_dir: str) -> str:
    """Make sure that this user can push, and create the repository where there is none.

    Returns:
        owner/name: of --hub_model_id or else the run folder's name; the owner, where not given, is the token's user.

    Raises:
        UserError: for a missing or read-only token, a bad name, or no way to the Hub.
    """
    if constants.is_offline_mode():
        raise UserError(
            "--push_to_hub: HF_HUB_OFFLINE is set (or TRANSFORMERS_OFFLINE); unset it, or leave --push_to_hub out"
        )
    _settle_client()
    name = config_hub.hub_model_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
        api = HfApi(token=True)
        if "/" not in name:
            name = f"{api.whoami()['name']}/{name}"
        api.create_repo(name, exist_ok=True)
        api.auth_check(name, write=True)  # create_repo lets a read-only token pass where the repository exists
    except Exception as error:  # those of the HTTP client have other classes in hub 1 than in hub 2
        raise UserError(f"--push_to_hub: {_refusal(error, name)}") from error
    return name


def _refusal(error: Exception, name: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token for the Hub; set HF_TOKEN or run `hf auth login`"
    if status in (401, 403, 404):
        remedy = "give one that may, in HF_TOKEN or with `hf auth login`, or another --hub_model_id"
        return f"the token may not write to {name!r} (status {status}); {remedy}"
    if isinstance(error, HFValidationError) or status in (400, 422):
        return f"{name!r} cannot be a repository's name ({_reason(error)}); give --hub_model_id OWNER/NAME"
    reason = f"{type(error).__name__}: {_reason(error)}"
    return f"{name!r} is out of reach at {constants.ENDPOINT} ({reason}); without network leave --push_to_hub out"


class Publisher:
    """Pushes exports in order from one background thread; what goes wrong is said and kept, never raised."""

    def __init__(self, repo_id: str, say: Callable[[str], None], journal_path: Path | None = None) -> None:
        """Start the thread.

        Args:
            repo_id: As check_hub returns it.
            say: Prints a line; called from the background thread too.
            journal_path: Gets a line of JSON for each push that arrived: checkpoint, message, commit. None for none.
        """
        _settle_client()
        self.repo_id = repo_id
        self.journal_path = journal_path
        self.say = say
        self._waiting: deque[tuple[Path, str]] = deque()  # snapshot and message; the first is being uploaded
        self._failed: list[str] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._upload_all, name="mtloop-publisher", daemon=True).start()

    def push(self, folder: Path, message: str) -> None:
        """Queue an export (a checkpoint without its training/, or final/) and return; `folder` may then be removed."""
        snapshot = folder.parent / f".push-{folder.name}-{uuid.uuid4().hex[:8]}"
        with self._changed:
            try:
                leave_out = shutil.ignore_patterns("training")
                shutil.copytree(folder, snapshot, ignore=leave_out, copy_function=_link_or_copy)
            except OSError as error:
                shutil.rmtree(snapshot, ignore_errors=True)
                return self._fail(message, _reason(error))
            self._waiting.append((snapshot, message))
            self._changed.notify_all()

    def close(self, timeout_s: float) -> list[str]:
        """Wait for the queue, at most `timeout_s` seconds; the process can exit afterwards, whatever still hangs.

        Returns:
            One line, message and reason, for each push that did not reach the Hub.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout_s)
            if self._waiting:
                _let_exit_pass()
            for snapshot, message in self._waiting:
                shutil.rmtree(snapshot, ignore_errors=True)
                self._fail(message, f"not uploaded within {timeout_s:g} s of the end")
            self._waiting.clear()
            return list(self._failed)

    def _upload_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                snapshot, message = self._waiting[0]
            reason = None
            try:
                commit = HfApi(token=True).upload_folder(
                    repo_id=self.repo_id, folder_path=snapshot, commit_message=message
                )
                self._record(snapshot, message, commit.oid)
            except Exception as error:  # of the HTTP client, OSError, ValueError, RuntimeError: training goes on
                reason = _reason(error)
            shutil.rmtree(snapshot, ignore_errors=True)
            with self._changed:
                if (snapshot, message) not in self._waiting:  # close has given it up
                    continue
                self._waiting.popleft()
                if reason is not None:
                    self._fail(message, reason)
                self._changed.notify_all()

    def _record(self, snapshot: Path, message: str, commit: str) -> None:
        if self.journal_path is None:
            return
        checkpoint = snapshot.name.removeprefix(".push-").rpartition("-")[0]
        line = json.dumps({"checkpoint": checkpoint, "message": message, "commit": commit})
        try:
            with self.journal_path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self.say(f"{self.journal_path}: cannot be written ({_reason(error)}); the push itself has arrived")

    def _fail(self, message: str, reason: str) -> None:
        self._failed.append(f"{message}: {reason}")
        with contextlib.suppress(OSError, ValueError):  # standard output may be closed
            self.say(f"not pushed to the Hub: {self._failed[-1]}")


def _settle_client() -> None:
    """Make the Hub's client give up on a silent server, and keep its bars and retries out of the output."""

    def client_with_timeout() -> Any:
        client = default_client_factory()
        client.timeout = REQUEST_TIMEOUT_S  # it comes with none
        return client

    set_client_factory(client_with_timeout)
    disable_progress_bars()
    logging.set_verbosity_error()


def _let_exit_pass() -> None:
    """Forget upload threads that hang: concurrent.futures joins at exit even the daemons that a daemon starts."""
    register: Any = getattr(concurrent.futures.thread, "_threads_queues", {})  # no public way
    for thread in [thread for thread in register if thread.daemon]:
        register.pop(thread, None)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)  # a checkpoint's files never change
    except OSError:
        shutil.copy2(source, target)


def _reason(error: BaseException) -> str:
    """Return an error's text in one line, without the token."""
    # The client's "Error while uploading FILE" keeps the reason to itself.
    text = f"{error} {error.__cause__ or ''}" if type(error) is RuntimeError else str(error)
    text = re.sub(r"hf_[A-Za-z0-9]{20,}", "(token)", text)
    with contextlib.suppress(Exception):  # looking the token up may itself ask the network
        text = text.replace(get_token() or "(token)", "(token)")
    return " ".join(text.split())[:300] or type(error).__name__
