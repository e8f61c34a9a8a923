"""`X-Request-Id`: the caller's own, where it sent a sane one, or else ours."""

import re
from collections.abc import Iterable
from uuid import UUID

from core.ids import new_id
from core.logging.masking import holds_secret

NAME = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:=;/+@-]{1,128}\Z")


def choose_request_id(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, UUID | None]:
    """Return a request's id, and its value where it is ours. A sane one holds nothing that a log must not."""
    for name, value in headers:
        if name == NAME:
            if _SANE.match(value) and not holds_secret(text := value.decode()):
                return text, None
            break
    own = new_id()
    return own.hex, own
