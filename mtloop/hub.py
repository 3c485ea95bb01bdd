"""Publishing to the Hugging Face Hub: a check before the run, and a publisher that pushes while training goes on.

Layer 1. Owns every request of a push. Must not know models, ranks or the loop: the main process alone calls it. The
token comes from HF_TOKEN or `hf auth login` and stands in no message.
"""

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import os
import re
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id
from huggingface_hub.utils._http import default_client_factory  # has no public name in huggingface_hub 1.33 to 2.4

from mtloop.config import HubConfig, UserError

REQUEST_TIMEOUT_S = 60.0  # for each connect, read and write, so a long upload that moves is not cut
MAX_REASON_LENGTH = 300


def check_hub(config_hub: HubConfig, output_dir: str) -> str:
    """Make sure that this user can push, before anything is trained; create the repository where there is none.

    Args:
        config_hub: Its hub_model_id names the repository; None takes the run folder's name, a name without an owner
            goes to the token's user.
        output_dir: The run folder.

    Returns:
        The full name, owner/name.

    Raises:
        UserError: for a missing or read-only token, a bad name, or no way to the Hub.
    """
    if constants.is_offline_mode():
        raise UserError(
            "--push_to_hub: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it, or leave --push_to_hub out"
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
    except Exception as error:  # the HTTP client below, whose classes these are, differs between hub 1 and 2
        raise UserError(_refusal(error, name)) from error
    return name


def _refusal(error: Exception, name: str) -> str:
    """Say in one line why pushing to `name` cannot work and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return "--push_to_hub: there is no token for the Hub; set HF_TOKEN or run `hf auth login`"
    if status in (401, 403, 404):
        return (
            f"--push_to_hub: the token may not write to {name!r} (status {status}); give one that may, in HF_TOKEN or "
            "with `hf auth login`, or another --hub_model_id"
        )
    if isinstance(error, HFValidationError) or status in (400, 422):
        return f"--push_to_hub: {name!r} is no name for a repository ({_reason(error)}); give --hub_model_id OWNER/NAME"
    return (
        f"--push_to_hub: {name!r} cannot be reached at {constants.ENDPOINT} ({type(error).__name__}: {_reason(error)}); "
        "try again later; without network leave --push_to_hub out"
    )


@dataclass(frozen=True)
class _Push:
    """An export that waits for its upload."""

    message: str
    snapshot: Path


class Publisher:
    """Pushes exports in order from one background thread; what goes wrong is told and kept, never raised."""

    def __init__(self, repo_id: str, say: Callable[[str], None]) -> None:
        """Start the thread.

        Args:
            repo_id: Full name of an existing repository, as check_hub returns it.
            say: Prints a line; called from the background thread too.
        """
        _settle_client()
        self.repo_id = repo_id
        self._say = say
        self._waiting: deque[_Push] = deque()  # the first is being uploaded
        self._failed: list[str] = []
        self._is_closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._upload_all, name="mtloop-publisher", daemon=True).start()

    def push(self, folder: Path, message: str) -> None:
        """Queue an export and return at once; afterwards `folder` may be removed.

        Args:
            folder: A checkpoint or final/; its training/ is left out.
            message: The commit's message.
        """
        snapshot = folder.parent / f".push-{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns("training"), copy_function=_link_or_copy)
        except OSError as error:
            shutil.rmtree(snapshot, ignore_errors=True)
            with self._changed:
                self._fail(message, _reason(error))
            return
        with self._changed:
            self._waiting.append(_Push(message, snapshot))
            self._changed.notify_all()

    def close(self, timeout_s: float) -> list[str]:
        """Wait for the queue, at most `timeout_s` seconds; the process can exit afterwards, whatever still hangs.

        Returns:
            One line, message and reason, for each push that did not reach the Hub; none when all did.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout_s)
            self._is_closed = True
            if self._waiting:
                _let_exit_pass()
            while self._waiting:
                push = self._waiting.popleft()
                shutil.rmtree(push.snapshot, ignore_errors=True)
                self._fail(push.message, f"not uploaded {timeout_s:g} s after the end")
            self._changed.notify_all()
            return list(self._failed)

    def _upload_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                push = self._waiting[0]
            reason = self._upload(push)
            with self._changed:
                if self._is_closed:  # too late: close has reported it
                    return
                self._waiting.popleft()
                if reason is not None:
                    self._fail(push.message, reason)
                self._changed.notify_all()

    def _upload(self, push: _Push) -> str | None:
        """Upload one snapshot and remove it; return the reason if it failed."""
        try:
            HfApi(token=True).upload_folder(
                repo_id=self.repo_id, folder_path=push.snapshot, commit_message=push.message
            )
        except Exception as error:  # httpx, OSError, ValueError, RuntimeError: training goes on without the push
            return _reason(error)
        finally:
            shutil.rmtree(push.snapshot, ignore_errors=True)
        return None

    def _fail(self, message: str, reason: str) -> None:
        self._failed.append(f"{message}: {reason}")
        with contextlib.suppress(OSError, ValueError):  # standard output may be closed
            self._say(f"not pushed to the Hub: {self._failed[-1]}")


def _settle_client() -> None:
    """Make the Hub's client give up on a silent server, and keep its bars and retries out of the output."""

    def client_with_timeout() -> Any:
        client = default_client_factory()
        client.timeout = REQUEST_TIMEOUT_S  # it has none: a silent server would hang for ever
        return client

    set_client_factory(client_with_timeout)
    disable_progress_bars()
    logging.set_verbosity_error()


def _let_exit_pass() -> None:
    """Let the process exit although upload threads of the client hang.

    Without xet the client uploads several files in a ThreadPoolExecutor. Its threads inherit being daemons from ours,
    but concurrent.futures joins them at exit all the same, and only its private register says which.
    """
    register: Any = getattr(concurrent.futures.thread, "_threads_queues", {})
    for thread in list(register):
        if thread.daemon:
            register.pop(thread, None)


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, as checkpoints are never changed in place; copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _reason(error: BaseException) -> str:
    """Return an error's text in one line, without the token."""
    text = str(error)
    if type(error) is RuntimeError and error.__cause__ is not None:  # the client's "Error while uploading FILE"
        text = f"{text} {error.__cause__}"
    text = re.sub(r"Bearer .*|hf_\w+", "(token)", text)
    with contextlib.suppress(Exception):  # looking the token up may itself ask the network
        text = text.replace(get_token() or "(token)", "(token)")
    return " ".join(text.split())[:MAX_REASON_LENGTH] or type(error).__name__
