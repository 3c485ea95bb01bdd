"""Configure the Hub's client with a timeout and without output, and classify its errors.

Of mtloop it imports errors alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any
from urllib.parse import unquote

from huggingface_hub import get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging
from huggingface_hub.utils._http import default_client_factory  # has no public name in huggingface_hub 1.33 to 2.4

from mtloop.errors import without_passwords

REQUEST_TIMEOUT_S = 60.0  # of each connect, read and write: an upload that makes progress is not interrupted

# The verdict on a failed push: try again as long as there is time, try again a few times, or stop pushing.
RETRY, DOUBTFUL, STOP = "retry", "doubtful", "stop"
# 409 and 412: there is a newer commit, which the next attempt finds.
RETRIED = (408, 409, 412, 425, 429)
STOPPING = (401, 403, 404, 413)


def configure_client(request_timeout_s: float | None = None) -> None:
    """Set the timeout of requests, and keep progress bars and warnings of retries out of the output.

    Args:
        request_timeout_s: None for REQUEST_TIMEOUT_S.
    """

    def client_with_timeout() -> Any:
        client = default_client_factory()
        client.timeout = request_timeout_s or REQUEST_TIMEOUT_S  # the default client has none
        return client

    set_client_factory(client_with_timeout)
    disable_progress_bars()
    logging.set_verbosity_error()


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error; None if there was no response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def verdict_of(error: BaseException) -> tuple[str, float]:
    """Return RETRY, DOUBTFUL or STOP for the error of a push, and the seconds of its Retry-After header, 0 without."""
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError) or status in STOPPING:
        return STOP, 0.0
    if status is not None:
        is_transient = status in RETRIED or status >= 500
        return (RETRY if is_transient else DOUBTFUL), _retry_after(error) if is_transient else 0.0
    if type(error) is RuntimeError and error.__cause__ is not None:
        # "Error while uploading FILE": an expired storage URL answers 403, and the next attempt gets a new one.
        verdict, wait_s = verdict_of(error.__cause__)
        return (DOUBTFUL if verdict == STOP and status_of(error.__cause__) != 413 else verdict), wait_s
    # Connection errors: the HTTP library has other classes in huggingface_hub 1 than in 2.
    is_network = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("http")
    return (RETRY if is_network else DOUBTFUL), 0.0


def answer(verdict: str, reason: str, wait_s: float = 0.0) -> dict[str, Any]:
    """Return the answer of a push as JSON; `wait_s` is what the server asks for."""
    return {"verdict": verdict, "reason": reason, "wait_s": wait_s}


def _retry_after(error: BaseException) -> float:
    assert isinstance(error, HfHubHTTPError)
    with contextlib.suppress(ValueError, KeyError):
        return max(0.0, float(error.response.headers["Retry-After"]))
    return 0.0


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line, without the token."""
    # The client's "Error while uploading FILE" does not contain the reason.
    text = f"{error} {error.__cause__ or ''}" if type(error) is RuntimeError else str(error)
    line = " ".join(without_token(text).split())[:300] or type(error).__name__
    status = status_of(error)
    return line if status is None or str(status) in line else f"{line} (status {status})"


def without_token(text: str) -> str:
    """Replace the token and anything that looks like one, and remove the passwords in URLs."""
    user_info = os.environ.get("HF_ENDPOINT", "").partition("://")[2].rpartition("@")[0]
    if user_info:
        text = text.replace(f"{user_info}@", "")
    # A password with a slash makes an invalid URL, of which the client's error quotes a part.
    password = user_info.partition(":")[2]
    for secret in (password, unquote(password), *re.split(r"[:/?#@]", password)):
        text = text.replace(secret, "(password)") if len(secret) > 3 else text
    text = without_passwords(text)
    text = re.sub(r"hf_[A-Za-z0-9]{16,}", "(token)", text)
    with contextlib.suppress(Exception):  # get_token may itself use the network
        text = text.replace(get_token() or "(token)", "(token)")
    return text
