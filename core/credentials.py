"""API keys and payout hashes: how they are made, and the digests that the database keeps of them."""

import hashlib
import hmac
import re
import secrets
import string
from enum import StrEnum
from uuid import UUID


class Mode(StrEnum):
    """Live moves the business's funds; test moves the play money of its twin."""

    LIVE = "live"
    TEST = "test"


class KeyKind(StrEnum):
    """Secret keys authenticate calls. Public keys only name a business, and are refused everywhere."""

    SECRET = "secret"  # noqa: S105 (a kind, not a password)
    PUBLIC = "public"


_PREFIXES = {KeyKind.SECRET: "sk", KeyKind.PUBLIC: "pk"}
_ALPHABET = string.ascii_letters + string.digits
_RANDOM_CHARACTERS = 40  # 40 * log2(62) = 238 bits
_SECRET_KEY = re.compile(rf"sk_(?:live|test)_[0-9A-Za-z]{{{_RANDOM_CHARACTERS}}}\Z")


def make_api_key(kind: KeyKind, mode: Mode) -> str:
    """Make a key such as `sk_live_…`: 238 random bits behind a prefix that says what it is."""
    random = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return f"{_PREFIXES[kind]}_{mode}_{random}"


def looks_like_secret_key(key: str) -> bool:
    """Tell whether a text has the shape of a secret key, so that nothing else costs a look-up."""
    return _SECRET_KEY.match(key) is not None


def digest_of(credential: str) -> bytes:
    """Return the SHA-256 that the database keeps in place of a key or hash (both have full entropy)."""
    return hashlib.sha256(credential.encode()).digest()


def payout_hash(hash_secret: bytes, business_id: UUID, normalised_email: str) -> str:
    """Return a payout user's hash: HMAC-SHA256 of business and normalised e-mail, 64 lower-case hex digits."""
    message = b"payout user\0" + business_id.bytes + normalised_email.encode()
    return hmac.digest(hash_secret, message, "sha256").hex()


def email_digest(hash_secret: bytes, normalised_email: str) -> str:
    """Return a short name for a user in logs; without the hash secret, no list of e-mails finds it."""
    return hmac.digest(hash_secret, b"email in logs\0" + normalised_email.encode(), "sha256")[:6].hex()


def seal_key(hash_secret: bytes) -> bytes:
    """Derive the key that seals the history; it reveals nothing of the hash secret."""
    return hmac.digest(hash_secret, b"payouts seal\0", "sha256")


def head_key(hash_secret: bytes) -> bytes:
    """Derive the key that signs the head of the history."""
    return hmac.digest(hash_secret, b"payouts head\0", "sha256")
