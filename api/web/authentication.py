"""Who calls: from an `Authorization` header to a business and one of its secret keys."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from api.web.responses import REFUSAL_BY_OUTCOME, Refusal
from core.credentials import digest_of, looks_like_secret_key
from core.database.connection import Database, describe_error
from core.parties.api_keys import find_secret_keys, find_standing, write_last_used

logger = logging.getLogger(__name__)

WRITE_USES_EVERY_S = 10.0

_WHITE_SPACE = " \t"
"""What a header may have around its value (RFC 9110, 5.6.3); Python strips more."""

_CACHE_MAX = 10_000
_LOOK_UP_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Identity:
    """The business and the key that a call was made with. Whether the key is still live, the transaction decides."""

    business_id: UUID
    api_key_id: UUID


class Authenticator:
    """Looks secret keys up, and remembers whose they are.

    The memory only lets a call through to the transaction, which reads the key again behind the business's row
    lock. Nobody is refused from memory: an unknown key is looked up every time. One look-up runs at a time, for
    all keys that were asked for meanwhile, so that a rush of calls is not one of queries.
    """

    def __init__(self, database: Database, *, timeout_s: float) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="authenticate")
        self._known: dict[bytes, Identity] = {}
        self._asked: dict[bytes, asyncio.Future[Identity | None]] = {}
        self._look_ups: asyncio.Task[None] | None = None
        self._used: set[bytes] = set()

    async def identify(self, authorization: str) -> Identity | None:
        """Return who sent this `Authorization` header; None where it names no secret key that is live.

        Raises:
            TimeoutError: the database did not answer in time.

        """
        scheme, _, key = authorization.strip(_WHITE_SPACE).partition(" ")
        key = key.strip(_WHITE_SPACE)
        if scheme.lower() != "bearer" or not looks_like_secret_key(key):
            return None
        digest = digest_of(key)
        identity = self._known.get(digest)
        if identity is None:
            identity = await asyncio.wait_for(asyncio.shield(self._ask(digest)), self._timeout_s)
        if identity is not None:
            self._used.add(digest)
        return identity

    async def keep_uses_written(self) -> None:
        """Write every few seconds which keys were used, for ever: nobody's call waits for it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WRITE_USES_EVERY_S)
            await loop.run_in_executor(self._executor, self.write_uses)

    def write_uses(self) -> None:
        """Write which keys were used since the last time; without the database, the next time."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            with self._database.transaction() as connection:
                write_last_used(connection, sorted(used))
        except Exception as error:  # noqa: BLE001 (it would end the background task)
            logger.warning("the use of %d API keys could not be written: %s", len(used), describe_error(error))
            self._used |= used

    def close(self) -> None:
        """Let go of the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, digest: bytes) -> asyncio.Future[Identity | None]:
        """Return what will be found; those who ask for the same key at the same time share it."""
        asked = self._asked.get(digest)
        if asked is None:
            asked = self._asked[digest] = asyncio.get_running_loop().create_future()
            if self._look_ups is None or self._look_ups.done():
                self._look_ups = asyncio.create_task(self._look_up())
        return asked

    async def _look_up(self) -> None:
        loop = asyncio.get_running_loop()
        while self._asked:
            digests = list(self._asked)[:_LOOK_UP_MAX]
            error: Exception | None = None
            found: dict[bytes, Identity] = {}
            try:
                found = await loop.run_in_executor(self._executor, self._find, digests)
            except Exception as raised:  # noqa: BLE001 (whoever asked is told)
                error = raised
            for digest in digests:
                asked = self._asked.pop(digest)
                if error is not None:
                    asked.set_exception(error)
                    asked.exception()  # whoever asked may have gone
                else:
                    asked.set_result(found.get(digest))
            for digest, identity in found.items():
                self._remember(digest, identity)

    def _find(self, digests: list[bytes]) -> dict[bytes, Identity]:
        found = self._database.read(lambda connection: find_secret_keys(connection, digests))
        return {digest: Identity(*ids) for digest, ids in found.items()}

    def _remember(self, digest: bytes, identity: Identity) -> None:
        if len(self._known) >= _CACHE_MAX:
            del self._known[next(iter(self._known))]
        self._known[digest] = identity


def find_refusal(database: Database, identity: Identity, *, has_name: bool) -> Refusal | None:
    """Return why key or settings refuse a call, whatever it asks for; None where they do not.

    `has_name` tells whether the call has an idempotency key or a reference.
    """
    standing = database.read(
        lambda connection: find_standing(connection, identity.business_id, identity.api_key_id, has_name=has_name)
    )
    return None if standing is None else REFUSAL_BY_OUTCOME[standing]
