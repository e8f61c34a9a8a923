"""What a check found."""

from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from core.startup import address_of


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not for long, or not as well as it could."""
    PROBLEM = "problem"
    SKIPPED = "skipped"
    """It cannot be told, because of another problem."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found, in words, and what to do about it."""

    check: str
    status: Status
    text: str
    fix: str | None = None


def host_of(url: str, port: int | None) -> str:
    """Return host and port of a URL, without user and password."""
    try:
        parts = urlsplit(url)
        shown_port = parts.port or port
    except ValueError:
        return address_of(url)
    host = parts.hostname or ("a unix socket" if port is not None else "its address")
    return host if host == "a unix socket" or shown_port is None else f"{host}:{shown_port}"
