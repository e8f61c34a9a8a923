"""Sealing: without the hash secret nobody can read, forge or move what lies outside the database (broker, Redis)."""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class ForgeryError(Exception):
    """Something is not what this installation sealed for its place: it is damaged, copied from elsewhere, or forged."""


class Seal:
    """Encrypts and authenticates (AES-256-GCM), with a key for one purpose that is derived from the hash secret.

    `place` says where the content belongs: sealed for one place, it cannot be opened at another.
    """

    def __init__(self, hash_secret: bytes, purpose: str) -> None:
        self._cipher = AESGCM(hmac.digest(hash_secret, b"payouts " + purpose.encode() + b"\0", "sha256"))

    def seal(self, content: bytes, place: bytes) -> bytes:
        """Return nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """Return the content.

        Raises:
            ForgeryError: it was not sealed by this installation, for this purpose and place.

        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            text = "it is damaged, copied, forged, or sealed with another PAYOUTS_HASH_SECRET"
            raise ForgeryError(text) from None
