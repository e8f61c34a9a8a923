"""Files that were checked and wait for a yes: in Redis for a while, sealed, since they name people.

A person has one at a time; another takes its place.
"""

import zlib
from typing import TypeVar, cast
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from api.batches.reader.reading import Reading
from api.batches.reader.summary import describe_source
from api.dashboard.file_check import UnclearFile
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
    unit: str = ""
    """What the file's amounts were read as."""
    smallest: int = 0
    largest: int = 0
    notes: list[str] = []
    """What else is to be known before it is paid."""
    batch_id: UUID | None = None
    """The payout batch that it has become."""

    @classmethod
    def of(cls, id_: UUID, business_id: UUID, file_name: str, reading: Reading) -> "Upload":
        """Sum the rows of a file up; what takes long is done here."""
        rows = reading.rows
        amounts = [row.amount_cents for row in rows]
        return cls(
            id=id_,
            business_id=business_id,
            file_name=file_name,
            count=len(rows),
            users=len({row.email for row in rows}),
            amount=sum(amounts),
            sample=list(rows[:SAMPLE_ROWS]),
            packed_rows=zlib.compress(msgspec.msgpack.encode(rows), _QUICKLY),
            unit=reading.unit,
            smallest=min(amounts),
            largest=max(amounts),
            notes=list(describe_source(reading)),
        )

    def rows(self) -> list[BatchRow]:
        """Return all rows."""
        return _rows.decode(zlib.decompress(self.packed_rows))

    def become(self, batch_id: UUID) -> "Upload":
        """Return what is left to know once it is accepted."""
        return msgspec.structs.replace(self, sample=[], packed_rows=b"", batch_id=batch_id)


_rows = msgspec.msgpack.Decoder(list[BatchRow])
_Kept = TypeVar("_Kept", bound=msgspec.Struct)


class Uploads:
    """Keeps uploads for their owners. Every call may raise what Redis raises."""

    def __init__(self, redis: "Redis", hash_secret: bytes) -> None:
        self._redis = redis
        self._seal = Seal(hash_secret, "uploads")

    def seal(self, account_id: UUID, upload: Upload | UnclearFile) -> bytes:
        """Encrypt an upload for its owner."""
        return self._seal.seal(msgspec.msgpack.encode(upload), _binding(account_id, type(upload)))

    async def keep(self, account_id: UUID, sealed: bytes) -> None:
        """Keep a sealed upload, in place of an earlier one."""
        await self._redis.set(_key(account_id), sealed, ex=WAITS_FOR_S)

    async def find(self, account_id: UUID) -> bytes | None:
        """Return somebody's sealed upload; None where it has waited too long."""
        return cast("bytes | None", await self._redis.get(_key(account_id)))

    def unseal(self, account_id: UUID, sealed: bytes, kind: type[_Kept]) -> _Kept | None:
        """Decrypt an upload; None where it is of another kind, or was sealed by another version or secret."""
        try:
            text = self._seal.open(sealed, _binding(account_id, kind))
            return msgspec.msgpack.decode(text, type=kind)
        except (ForgeryError, msgspec.DecodeError):
            return None


def _binding(account_id: UUID, kind: type[msgspec.Struct]) -> bytes:
    return account_id.bytes + kind.__name__.encode()


def _key(account_id: UUID) -> str:
    return f"payouts:upload:{account_id.hex}"
