"""What the release before this one sends and reads, written down without today's code.

It is frozen: where a change to the messages breaks a test that uses it, the change breaks a rolling deploy.
"""

import base64
import hmac
import json
import os
from collections.abc import Sequence
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

OUTCOMES = {
    "allocated",
    "expired",
    "unauthorized",
    "replayed",
    "idempotency_key_reused",
    "payouts_disabled",
    "insufficient_balance",
    "failed",
}


class Allocation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request to move money, as the release before has it."""

    id: UUID
    business_id: UUID
    api_key_id: UUID
    email: str
    amount_cents: int
    deadline_us: int
    idempotency_key: str | None = None


def seal(allocations: Sequence[Allocation], hash_secret: bytes) -> str:
    """Encode and encrypt a group."""
    nonce = os.urandom(12)
    plain = msgspec.msgpack.Encoder(uuid_format="bytes").encode(allocations)
    return f"1:{base64.b64encode(nonce + _cipher(hash_secret).encrypt(nonce, plain, b'1')).decode()}"


def open_sealed(message: str, hash_secret: bytes) -> list[Allocation]:
    """Decrypt and decode a group."""
    version, _, body = message.partition(":")
    assert version == "1"
    data = base64.b64decode(body, validate=True)
    plain = _cipher(hash_secret).decrypt(data[:12], data[12:], b"1")
    return msgspec.msgpack.Decoder(list[Allocation]).decode(plain)


def task(task_id: str, sealed: str) -> bytes:
    """Wrap a sealed group as Celery puts it on a list of Redis."""
    body = [[sealed], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": "payouts.allocate",
                "id": task_id,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": task_id,
                "parent_id": None,
                "argsrepr": "1 allocations, 1 businesses",
                "kwargsrepr": "{}",
                "origin": "gen1@host",
                "ignore_result": False,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
            },
            "properties": {
                "correlation_id": task_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "allocations"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": task_id,
            },
        }
    ).encode()


def _cipher(hash_secret: bytes) -> AESGCM:
    return AESGCM(hmac.digest(hash_secret, b"payouts message\0", "sha256"))
