"""Who calls: from an `Authorization` header to a business and one of its secret keys."""

import asyncio
import hmac
from dataclasses import dataclass
from uuid import UUID

from core.api_keys import find_secret_key
from core.credentials import digest_of, looks_like_secret_key
from core.database import Database

_CACHE_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Identity:
    """The business and the key that a call was made with. Whether the key is still live, the transaction decides."""

    business_id: UUID
    api_key_id: UUID


class Authenticator:
    """Looks secret keys up, and remembers whose they are.

    The memory only lets a call through to the transaction, which reads the key again behind the business's row
    lock. Nobody is refused from memory: an unknown key is looked up every time.
    """

    def __init__(self, database: Database, *, timeout_s: float) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._known: dict[bytes, Identity] = {}

    async def identify(self, authorization: str | None) -> Identity | None:
        """Return who sent this `Authorization` header; None where it names no secret key that is live.

        Raises:
            TimeoutError: the database did not answer in time.

        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not looks_like_secret_key(key):
            return None
        digest = digest_of(key)
        identity = self._known.get(digest)
        if identity is None:
            identity = await asyncio.wait_for(asyncio.to_thread(self._look_up, digest), self._timeout_s)
            if identity is not None:
                self._remember(digest, identity)
        return identity

    def _look_up(self, digest: bytes) -> Identity | None:
        found = self._database.read(lambda connection: find_secret_key(connection, digest))
        if found is None:
            return None
        business_id, api_key_id, stored_digest = found
        return Identity(business_id, api_key_id) if hmac.compare_digest(digest, stored_digest) else None

    def _remember(self, digest: bytes, identity: Identity) -> None:
        if len(self._known) >= _CACHE_MAX:
            del self._known[next(iter(self._known))]
        self._known[digest] = identity
