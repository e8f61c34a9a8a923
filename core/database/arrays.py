"""PostgreSQL's array literals: psycopg adapts lists element by element, which cost more than all our rules together."""

from collections.abc import Iterable
from uuid import UUID


def uuid_array(values: Iterable[UUID]) -> str:
    """Return a literal for `uuid[]`."""
    return "{" + ",".join([value.hex for value in values]) + "}"


def integer_array(values: Iterable[int]) -> str:
    """Return a literal for `bigint[]` or `smallint[]`."""
    return "{" + ",".join(map(str, values)) + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Return a literal for `text[]`; None becomes NULL. PostgreSQL refuses U+0000, as in any text."""
    return "{" + ",".join(["NULL" if value is None else _quote(value) for value in values]) + "}"


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
