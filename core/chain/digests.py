"""How rows are sealed: a tag for each row, and digests that go on from one to the next. All are keyed.

The key is derived from the hash secret, which the database does not hold: with SQL alone no tag or digest can be made.
What is sealed is text that PostgreSQL writes of a row: JSON without its nulls, so that a new nullable column changes
nothing of what was sealed before.
"""

import hashlib
from uuid import UUID

ROWS = 1_000
"""The rows of one stretch of a history: stretch n has the numbers n * ROWS + 1 to (n + 1) * ROWS."""
TAG_BYTES = 16
DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
"""What the first digest goes on from."""

HISTORY_TEXT = "jsonb_strip_nulls(to_jsonb(history))::text"
"""Of a row `history` of `payout_transactions`; the session's time zone is UTC."""


def tag_of(key: bytes, *parts: bytes) -> bytes:
    """Return a row's tag. Each part is framed by its length, so that nothing moves from one to the next."""
    mac = hashlib.blake2b(key=key, digest_size=TAG_BYTES, person=b"row")
    for part in parts:
        mac.update(len(part).to_bytes(4))
        mac.update(part)
    return mac.digest()


def stretch_digest(key: bytes, business_id: UUID, first_sequence: int, previous: bytes, tags: bytes) -> bytes:
    """Return the digest of a business's history up to the last of these rows."""
    head = previous + business_id.bytes + first_sequence.to_bytes(8)
    return hashlib.blake2b(head + tags, key=key, digest_size=DIGEST_BYTES, person=b"history").digest()


def row_digest(key: bytes, business_id: UUID, number: int, previous: bytes, content: bytes) -> bytes:
    """Return the digest of a business's other rows up to this one."""
    head = previous + business_id.bytes + number.to_bytes(8)
    return hashlib.blake2b(head + content, key=key, digest_size=DIGEST_BYTES, person=b"rows").digest()
