"""The messages between API and workers: a group of allocations there, a reply with an outcome for each back.

A message is a MessagePack array, sealed (AES-256-GCM) for its task id with a key derived from the hash secret. No
e-mail can be read in the broker, and nobody who reaches broker or Redis without the key can move money, or make a
caller be told what is not so. Replies are sealed likewise, with a key of their own. New fields go to the end and have
a default, so that old and new processes can run side by side.

Groups of version 2 are sealed for their task id, and get a sealed reply. Version 1 is that of the release before: a
worker carries it out, and answers without a seal.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import msgspec

from core.ids import IdKind, format_id
from core.sealing import ForgeryError, Seal


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


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What a worker answers for a group."""

    outcomes: list[Outcome]
    """One for each allocation, in the group's order."""
    untouched: list[int] = msgspec.field(default_factory=list)
    """Where in that order the outcome is `failed` and it is certain that this copy wrote nothing: others held rows of
    the business, or PostgreSQL refused what is this business's alone."""


class MessageError(Exception):
    """A message that is not ours, is damaged, or has a version that this process does not know."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group as a worker receives it."""

    allocations: list[Allocation]
    wants_sealed_reply: bool


_VERSION = "2"
_VERSION_BEFORE = "1"
_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(list[Allocation])
_reply_decoder = msgspec.msgpack.Decoder(Reply)


class GroupCodec:
    """Seals and opens groups and replies, as ASCII text: version, colon, base64 of nonce and ciphertext."""

    def __init__(self, hash_secret: bytes) -> None:
        self._groups = Seal(hash_secret, "message")
        self._replies = Seal(hash_secret, "reply")

    def seal(self, allocations: Sequence[Allocation], task_id: str) -> str:
        """Encode and encrypt a group, which can be opened under its task id alone."""
        return _write(self._groups.seal(_encoder.encode(allocations), _place(task_id)))

    def open(self, message: object, task_id: str) -> Group:
        """Decrypt and decode a group.

        Raises:
            MessageError: the message is not ours; its text says why and repeats nothing of it.

        """
        version, body = _read(message)
        if version not in {_VERSION, _VERSION_BEFORE}:
            text = "the message has an unknown version"
            raise MessageError(text)
        place = _place(task_id) if version == _VERSION else _VERSION_BEFORE.encode()
        try:
            allocations = _decoder.decode(self._groups.open(base64.b64decode(body, validate=True), place))
        except (binascii.Error, ValueError, ForgeryError, msgspec.DecodeError):
            text = "the message is damaged, copied, or sealed with another PAYOUTS_HASH_SECRET"
            raise MessageError(text) from None
        return Group(allocations, version == _VERSION)

    def seal_reply(self, reply: Reply, task_id: str) -> str:
        """Encode and encrypt a reply, which can be opened under its task id alone."""
        return _write(self._replies.seal(_encoder.encode(reply), _place(task_id)))

    def open_reply(self, message: object, task_id: str) -> Reply | None:
        """Decrypt and decode a reply; None where a newer worker answers what this process does not know.

        Raises:
            ForgeryError: no worker sealed this as the reply to this task.

        """
        try:
            version, body = _read(message)
            sealed = base64.b64decode(body, validate=True) if version == _VERSION else b""
        except (MessageError, binascii.Error, ValueError):
            text = "it is no sealed reply"
            raise ForgeryError(text) from None
        content = self._replies.open(sealed, _place(task_id))
        try:
            return _reply_decoder.decode(content)
        except msgspec.DecodeError:
            return None


def _write(sealed: bytes) -> str:
    return f"{_VERSION}:{base64.b64encode(sealed).decode()}"


def _read(message: object) -> tuple[str, str]:
    if not isinstance(message, str):
        text = "the message is not text"
        raise MessageError(text)
    version, _, body = message.partition(":")
    return version, body


def _place(task_id: str) -> bytes:
    return f"{_VERSION}:{task_id}".encode(errors="surrogatepass")  # a message's id may be anything
