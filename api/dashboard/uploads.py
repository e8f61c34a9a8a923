"""Files that were checked and wait for a yes: in Redis for a while, sealed, since they name people.

A person has one at a time; another takes its place.
"""

import zlib
from collections.abc import Sequence
from typing import cast
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from core.batches.payout_batch import BatchRow
from core.sealing import ForgeryError, Seal

WAITS_FOR_S = 15 * 60
SAMPLE_ROWS = 10

_QUICKLY = 1


class Upload(msgspec.Struct, frozen=True):
    """A file's rows, and what the preview says of them; amounts in cents."""

    id: UUID
    business_id: UUID
    file_name: str
    count: int
    users: int
    amount: int
    sample: list[BatchRow]
    packed_rows: bytes
    batch_id: UUID | None = None
    """The payout batch that it has become."""

    @classmethod
    def of(cls, id_: UUID, business_id: UUID, file_name: str, rows: Sequence[BatchRow]) -> "Upload":
        """Sum rows up; what takes long is done here."""
        return cls(
            id=id_,
            business_id=business_id,
            file_name=file_name,
            count=len(rows),
            users=len({row.email for row in rows}),
            amount=sum(row.amount_cents for row in rows),
            sample=list(rows[:SAMPLE_ROWS]),
            packed_rows=zlib.compress(msgspec.msgpack.encode(rows), _QUICKLY),
        )

    def rows(self) -> list[BatchRow]:
        """Return all rows."""
        return _rows.decode(zlib.decompress(self.packed_rows))

    def become(self, batch_id: UUID) -> "Upload":
        """Return what is left to know once it is accepted."""
        return msgspec.structs.replace(self, sample=[], packed_rows=b"", batch_id=batch_id)


_rows = msgspec.msgpack.Decoder(list[BatchRow])
_uploads = msgspec.msgpack.Decoder(Upload)


class Uploads:
    """Keeps uploads for their owners. Every call may raise what Redis raises."""

    def __init__(self, redis: "Redis", hash_secret: bytes) -> None:
        self._redis = redis
        self._seal = Seal(hash_secret, "uploads")

    def seal(self, account_id: UUID, upload: Upload) -> bytes:
        """Encrypt an upload for its owner."""
        return self._seal.seal(msgspec.msgpack.encode(upload), account_id.bytes)

    async def keep(self, account_id: UUID, sealed: bytes) -> None:
        """Keep a sealed upload, in place of an earlier one."""
        await self._redis.set(_key(account_id), sealed, ex=WAITS_FOR_S)

    async def find(self, account_id: UUID) -> bytes | None:
        """Return somebody's sealed upload; None where it has waited too long."""
        return cast("bytes | None", await self._redis.get(_key(account_id)))

    def unseal(self, account_id: UUID, sealed: bytes) -> Upload | None:
        """Decrypt an upload; None where it was sealed by a version or with a secret of before."""
        try:
            return _uploads.decode(self._seal.open(sealed, account_id.bytes))
        except (ForgeryError, msgspec.DecodeError):
            return None


def _key(account_id: UUID) -> str:
    return f"payouts:upload:{account_id.hex}"
