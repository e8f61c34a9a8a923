"""Reading a request's headers, as ASGI has them."""

from collections.abc import Iterable


def read_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the value of a header, whose name is in lower case; several alike are one list (RFC 9110, 5.3).

    No list is a good `Authorization` or `Idempotency-Key`: which of two is meant, nobody can know.
    """
    values = [value for each, value in headers if each == name]
    return b", ".join(values).decode("latin-1") if values else None
