"""The messages between API and workers: a group of allocations there, an outcome for each back.

A message is a MessagePack array, sealed (AES-256-GCM) with a key derived from the hash secret: no e-mail can be
read in the broker, and whoever reaches the broker without the key cannot move money. (Replies are not sealed: who
can write there could make a caller be told what is not so.) New fields go to the end and have a default, so that old
and new processes can run side by side.
"""

import base64
import binascii
import os
from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.credentials import message_key
from core.ids import IdKind, format_id


class Allocation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request to move money from a business to a payout user.

    `id` is minted by the API and becomes the history row's key. `email` is normalised. `deadline_us` is
    microseconds since 1970 by the database's clock; nothing is written after it. `request_id` is the caller's
    `X-Request-Id`, for logs; empty where we made it: then it is `id` in hex. `reference` is the business's own name
    for the payment, which pays once.
    """

    id: UUID
    business_id: UUID
    api_key_id: UUID
    email: str
    amount_cents: int
    deadline_us: int
    idempotency_key: str | None = None
    request_id: str = ""
    reference: str | None = None

    def __repr__(self) -> str:
        """Name the allocation, and nothing of what is in it: libraries log what they call."""
        return f"Allocation({format_id(IdKind.TRANSACTION, self.id)})"

    @property
    def key(self) -> tuple[UUID, UUID]:
        """The history row's primary key: business id, id."""
        return (self.business_id, self.id)


class Outcome(StrEnum):
    """What became of an allocation. Refusals moved nothing; they are listed by precedence."""

    ALLOCATED = "allocated"
    """Debited, credited and in the history (also when a copy of the message arrives again)."""
    EXPIRED = "expired"
    """Past its deadline: nothing was written and nothing ever will be."""
    UNAUTHORIZED = "unauthorized"
    """The API key is revoked, or the key or its business does not exist (any more)."""
    REPLAYED = "replayed"
    """An earlier payment with this idempotency key or reference, e-mail and amount was committed or accepted."""
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    """An earlier allocation with this idempotency key had another e-mail or amount."""
    REFERENCE_REUSED = "reference_reused"
    """An earlier payment with this reference had another e-mail or amount."""
    PAYOUTS_DISABLED = "payouts_disabled"
    """The business has payouts switched off."""
    IDEMPOTENCY_KEY_REQUIRED = "idempotency_key_required"
    """The business asks for a key or a reference, and the call has neither."""
    INSUFFICIENT_BALANCE = "insufficient_balance"
    """The payout balance is smaller than the amount."""
    FAILED = "failed"
    """Something broke, perhaps while committing: only the history tells, and another copy may still be carried out."""


class MessageError(Exception):
    """A message that is not ours, is damaged, or has a version that this process does not know."""


_VERSION = "1"
_VERSION_WITH_REFERENCES = "2"
"""Of groups with a reference: workers of an earlier release would pay it and forget the reference; they drop these."""
_NONCE_BYTES = 12
_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(list[Allocation])


class GroupCodec:
    """Seals and opens groups. A sealed group is ASCII text: version, colon, base64 of nonce and ciphertext."""

    def __init__(self, hash_secret: bytes) -> None:
        self._cipher = AESGCM(message_key(hash_secret))

    def seal(self, allocations: Sequence[Allocation]) -> str:
        """Encode and encrypt a group."""
        has_references = any(allocation.reference is not None for allocation in allocations)
        version = _VERSION_WITH_REFERENCES if has_references else _VERSION
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, _encoder.encode(allocations), version.encode())
        return f"{version}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, message: object) -> list[Allocation]:
        """Decrypt and decode a group.

        Raises:
            MessageError: the message is not ours; its text says why and repeats nothing of it.

        """
        if not isinstance(message, str):
            text = "the message is not text"
            raise MessageError(text)
        version, _, body = message.partition(":")
        if version not in {_VERSION, _VERSION_WITH_REFERENCES}:
            text = "the message has an unknown version"
            raise MessageError(text)
        try:
            data = base64.b64decode(body, validate=True)
            plain = self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], version.encode())
            return _decoder.decode(plain)
        except (binascii.Error, ValueError, InvalidTag, msgspec.DecodeError):
            text = "the message is damaged, or sealed with another PAYOUTS_HASH_SECRET"
            raise MessageError(text) from None
