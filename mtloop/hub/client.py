"""The Hub's client, made to give up, to be silent, and to keep the token to itself. Imports nothing of mtloop."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from huggingface_hub import get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging
from huggingface_hub.utils._http import default_client_factory  # has no public name in huggingface_hub 1.33 to 2.4

REQUEST_TIMEOUT_S = 60.0  # of each connect, read and write: an upload that moves is not cut

# What an error means for a push: try again for as long as there is time, try again a few times, or push no more.
RETRY, DOUBTFUL, STOP = "retry", "doubtful", "stop"
# 409 and 412: somebody else has committed since, the next attempt sees it.
RETRIED = (408, 409, 412, 425, 429)
STOPPING = (401, 403, 404, 413)


def settle_client(request_timeout_s: float | None = None) -> None:
    """Make the client give up on a silent server, and keep its bars and retries out of the output.

    Args:
        request_timeout_s: None for REQUEST_TIMEOUT_S.
    """

    def client_with_timeout() -> Any:
        client = default_client_factory()
        client.timeout = request_timeout_s or REQUEST_TIMEOUT_S  # it comes with none
        return client

    set_client_factory(client_with_timeout)
    disable_progress_bars()
    logging.set_verbosity_error()


def status_of(error: BaseException) -> int | None:
    """The status of the answer that an error comes from; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def verdict_of(error: BaseException) -> tuple[str, float]:
    """Say what a push that failed should do next.

    Returns:
        RETRY, DOUBTFUL or STOP, and the seconds that the server asks to wait, 0 where it does not.
    """
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError) or status in STOPPING:
        return STOP, 0.0
    if status is not None:
        is_passing = status in RETRIED or status >= 500
        return (RETRY if is_passing else DOUBTFUL), _retry_after(error) if is_passing else 0.0
    if type(error) is RuntimeError and error.__cause__ is not None:
        # "Error while uploading FILE": a storage address that has expired answers 403 and is renewed by the next try.
        verdict, wait_s = verdict_of(error.__cause__)
        return (DOUBTFUL if verdict == STOP and status_of(error.__cause__) != 413 else verdict), wait_s
    # Errors of the connection: the client library's have other classes in huggingface_hub 1 than in 2.
    is_network = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("http")
    return (RETRY if is_network else DOUBTFUL), 0.0


def _retry_after(error: BaseException) -> float:
    assert isinstance(error, HfHubHTTPError)
    with contextlib.suppress(ValueError, KeyError):
        return max(0.0, float(error.response.headers["Retry-After"]))
    return 0.0


def reason_of(error: BaseException) -> str:
    """Return an error's text in one line, without the token."""
    # The client's "Error while uploading FILE" keeps the reason to itself.
    text = f"{error} {error.__cause__ or ''}" if type(error) is RuntimeError else str(error)
    line = " ".join(without_token(text).split())[:300] or type(error).__name__
    status = status_of(error)
    return line if status is None or str(status) in line else f"{line} (status {status})"


def without_token(text: str) -> str:
    """Strike out what is, or looks like, a token."""
    text = re.sub(r"hf_[A-Za-z0-9]{16,}", "(token)", text)
    with contextlib.suppress(Exception):  # looking the token up may itself ask the network
        text = text.replace(get_token() or "(token)", "(token)")
    return text
