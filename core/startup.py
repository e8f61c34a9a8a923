"""Waiting, for a bounded time, for the servers that a starting process needs."""

import logging
import time
from collections.abc import Callable

from core.errors import UserError
from core.settings.server_urls import UrlError, read_url

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_SAY_FIRST_AFTER_S = 1.0
_SAY_AGAIN_AFTER_S = 5.0


class ServerNotReadyError(UserError):
    """A server cannot be reached, or not be used, within the time to wait."""


class WaitingEndedError(Exception):
    """Who waits was asked to stop."""


def wait_until_ready(
    find_problem: Callable[[], str | None], timeout_s: float, is_to_end: Callable[[], bool] = lambda: False
) -> None:
    """Wait until there is no problem any more, with a line in the log now and then.

    Raises:
        ServerNotReadyError: not within `timeout_s`.
        WaitingEndedError: it is to end.

    """
    started_at = time.monotonic()
    say_at = started_at + _SAY_FIRST_AFTER_S
    while problem := find_problem():
        if is_to_end():
            raise WaitingEndedError
        now = time.monotonic()
        if now >= started_at + timeout_s:
            text = f"{problem}; gave up after {timeout_s:g} s"
            raise ServerNotReadyError(text)
        if now >= say_at:
            logger.warning("waiting, for at most %.0f s more: %s", started_at + timeout_s - now, problem)
            say_at = now + _SAY_AGAIN_AFTER_S
        time.sleep(_POLL_S)


def address_of(url: str) -> str:
    """Return where a server is, without names and passwords: `host:5432`; several are one after the other."""
    return ", ".join(filter(None, (_address_of(part) for part in url.split(";")))) or "its socket"


def _address_of(url: str) -> str:
    try:
        parts = read_url(url)
    except UrlError:
        return ""
    return parts.hosts or parts.path
