"""`X-Request-Id` on every response: the caller's own, where it sent a sane one."""

import re

from litestar.types import Message, Scope

from core.ids import new_id

_SANE = re.compile(rb"[A-Za-z0-9._:=;/+@-]{1,128}\Z")
_NAME = b"x-request-id"


async def add_request_id(message: Message, scope: Scope) -> None:
    """Add the header; runs before each message of each response is sent."""
    if message["type"] != "http.response.start":
        return
    sent = next((value for name, value in scope["headers"] if name == _NAME), b"")
    request_id = sent if _SANE.match(sent) else new_id().hex.encode()
    message["headers"] = [*message.get("headers", []), (_NAME, request_id)]
