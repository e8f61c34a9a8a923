"""Records of what is in doubt, sealed with a key derived from the hash secret.

A forged record could have a payment reversed that was answered 201, so a record counts only if its seal is right. One
that is copied and kept changes nothing when it returns: what it asks for has been done.
"""

import base64
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol
from uuid import UUID

import msgspec

from core.ids import IdKind, format_id
from core.sealing import ForgeryError, Seal


class Doubt(StrEnum):
    """What was answered, and about what."""

    CALL_FAILED = "call_failed"
    """`POST /payout/create` was answered 500 before it was resolved: never pay it, or reverse it."""
    BATCH_FAILED = "batch_failed"
    """A payout batch was answered 500, and its commit may yet go through: cancel it before a row is paid."""
    BATCH_ACCEPTED = "batch_accepted"
    """A payout batch was answered 202, and workers may not know it: release it to them."""


class InDoubt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One call or payout batch in doubt. There is no e-mail, amount or key in it.

    `deadline_us` is a call's, by the database's clock; `answered_at_s` is for people, in seconds since 1970.
    """

    doubt: Doubt
    business_id: UUID
    id: UUID
    deadline_us: int = 0
    answered_at_s: int = 0

    @property
    def name(self) -> str:
        """The id as the API writes it."""
        return format_id(IdKind.TRANSACTION if self.doubt is Doubt.CALL_FAILED else IdKind.BATCH, self.id)


class RecordStore(Protocol):
    """Where records are kept."""

    def add(self, records: Sequence[InDoubt]) -> None:
        """Keep records: when it returns, they outlive the process."""

    def read(self) -> list[InDoubt]:
        """Return all that are kept."""

    def discard(self, records: Sequence[InDoubt]) -> None:
        """Forget what is finished."""


_VERSION = "1"
_PLACE = b"record 1"
_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(InDoubt)


class RecordCodec:
    """Seals and opens records. A sealed one is ASCII text without spaces."""

    def __init__(self, hash_secret: bytes) -> None:
        self._seal = Seal(hash_secret, "in doubt")

    def seal(self, record: InDoubt) -> str:
        """Encode and encrypt a record."""
        return f"{_VERSION}:{base64.b64encode(self._seal.seal(_encoder.encode(record), _PLACE)).decode()}"

    def open(self, text: str) -> InDoubt | None:
        """Return the record; None where it is damaged, not ours, or of another version."""
        version, _, body = text.partition(":")
        if version != _VERSION:
            return None
        try:
            return _decoder.decode(self._seal.open(base64.b64decode(body, validate=True), _PLACE))
        except (ValueError, ForgeryError, msgspec.DecodeError):
            return None
