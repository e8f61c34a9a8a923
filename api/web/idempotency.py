"""The header `Idempotency-Key`, as all calls that move money read it."""

import re

_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


def strip_key(header: str | None) -> str | None:
    """Return a header's value without the white space around it, which is no part of it."""
    return None if header is None else header.strip(" \t")


def may_be_key(idempotency_key: str | None) -> bool:
    """Tell whether a header's value may be a key; no header is fine."""
    return idempotency_key is None or _KEY.match(idempotency_key) is not None
