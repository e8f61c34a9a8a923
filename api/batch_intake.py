"""Taking payout batches in: check the rows, load them, reserve the money, and tell the workers."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from api import responses
from api.authentication import Identity
from api.batch_rows import BatchFormat, parse_rows
from api.idempotency import may_be_key
from api.responses import REFUSAL_BY_OUTCOME, Refusal
from api.validation import FieldErrors, NotAnObject
from core import payout_batches
from core.api_keys import find_standing
from core.database import Database
from core.ids import new_id
from core.messages import Outcome
from core.payout_batches import Accepted, Offer
from workers.app import send_chunk

logger = logging.getLogger(__name__)

_AT_ONCE_MAX = 2
TIMEOUT_S = 60.0


class _NotAcceptedError(Exception):
    """Rolls back what was loaded; carries the answer."""

    def __init__(self, answer: Accepted | Outcome) -> None:
        super().__init__()
        self.answer = answer


class BatchIntake:
    """Takes batches in, few at a time: each may be 32 MiB, and has a transaction as long as its rows take."""

    def __init__(self, database: Database, celery: Celery, hash_secret: bytes) -> None:
        self._database = database
        self._celery = celery
        self._hash_secret = hash_secret
        self._executor = ThreadPoolExecutor(_AT_ONCE_MAX, thread_name_prefix="batches")
        self.under_way = 0

    async def accept(
        self, identity: Identity, body: bytes, written_as: BatchFormat, idempotency_key: str | None
    ) -> Accepted | Refusal | FieldErrors:
        """Accept a batch as a whole, or say why not.

        Raises:
            TimeoutError: nobody knows whether it was accepted; the idempotency key tells.

        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._accept, identity, body, written_as, idempotency_key)
        return await asyncio.wait_for(work, TIMEOUT_S)

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _accept(
        self, identity: Identity, body: bytes, written_as: BatchFormat, idempotency_key: str | None
    ) -> Accepted | Refusal | FieldErrors:
        refusal = self._find_refusal(identity)
        if refusal is responses.UNAUTHORIZED:
            return refusal
        if not may_be_key(idempotency_key):
            return refusal or responses.IDEMPOTENCY_KEY_MALFORMED
        rows = parse_rows(body, written_as)
        if not isinstance(rows, list):
            return refusal or (responses.NOT_AN_OBJECT if isinstance(rows, NotAnObject) else rows)
        offer = Offer.of(identity.business_id, identity.api_key_id, rows, idempotency_key)
        answer = self._database.read(lambda connection: payout_batches.find_obstacle(connection, offer))
        if answer is None:
            answer = self._load(offer)
        if isinstance(answer, Outcome):
            return REFUSAL_BY_OUTCOME[answer]
        if not answer.is_replay:
            self._tell_workers(answer)
        return answer

    def _find_refusal(self, identity: Identity) -> Refusal | None:
        standing = self._database.read(
            lambda connection: find_standing(connection, identity.business_id, identity.api_key_id)
        )
        return None if standing is None else REFUSAL_BY_OUTCOME[standing]

    def _load(self, offer: Offer) -> Accepted | Outcome:
        batch_id = new_id()
        try:
            with self._database.transaction() as connection:
                payout_batches.load_rows(connection, self._hash_secret, offer, batch_id)
                answer = payout_batches.accept(connection, offer, batch_id)
                if isinstance(answer, Outcome) or answer.is_replay:
                    raise _NotAcceptedError(answer)
                return answer
        except _NotAcceptedError as refused:
            return refused.answer

    def _tell_workers(self, accepted: Accepted) -> None:
        """Send the first chunk's task; where that fails, the periodic task finds the batch."""
        try:
            send_chunk(self._celery, accepted.batch.business_id, accepted.batch.id, 0)
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            logger.warning("a payout batch waits for the periodic task: %s", type(error).__name__)
