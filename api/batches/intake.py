"""Taking payout batches in: check the rows, load them, reserve the money, and release them to the workers."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection

from api.batches.attempt import Attempt, carry_out
from api.batches.releasing import AGAIN_AFTER_S, FIND_OUT_WITHIN_S, BatchReleaser
from api.batches.rows import BatchFormat, parse_rows
from api.web import responses
from api.web.authentication import Identity, find_refusal
from api.web.errors import TooManyWaitingError
from api.web.idempotency import may_be_key
from api.web.responses import REFUSAL_BY_OUTCOME, Refusal
from api.web.validation import FieldErrors, NotAnObject
from core import metrics
from core.batches import acceptance, reading
from core.batches.acceptance import Accepted, Submission
from core.batches.payout_batch import PayoutBatch
from core.database.connection import DATABASE_ERRORS, Database
from core.ids import new_id
from core.messages import Outcome
from core.parties.businesses import lock_business

Found = TypeVar("Found")

_AT_ONCE_MAX = 2
_ENTERED_MAX = 12  # of 32 MiB each at most
TIMEOUT_S = 60.0


class _NotAcceptedError(Exception):
    """Rolls back what was loaded; carries the answer."""

    def __init__(self, answer: Accepted | Outcome) -> None:
        super().__init__()
        self.answer = answer


class BatchIntake:
    """Takes batches in, few at a time: each may be 32 MiB, and has a transaction as long as its rows take.

    A batch is answered 202 once its commit was seen, and released to the workers before that. One that is answered 500
    was not released, whatever becomes of its commit.
    """

    def __init__(
        self, database: Database, releaser: BatchReleaser, hash_secret: bytes, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._database = database
        self._releaser = releaser
        self._hash_secret = hash_secret
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(_AT_ONCE_MAX, thread_name_prefix="batches")
        self._entered = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Make room for one more upload, before its body is read.

        Raises:
            TooManyWaitingError: there is none.

        """
        if self._entered >= _ENTERED_MAX:
            metrics.TOO_MANY_REQUESTS.labels("uploads").inc()
            raise TooManyWaitingError
        self._entered += 1
        try:
            yield
        finally:
            self._entered -= 1

    async def accept(
        self, identity: Identity, body: bytes, written_as: BatchFormat, idempotency_key: str | None
    ) -> Accepted | Refusal | FieldErrors:
        """Accept a batch as a whole, or say why not.

        Raises:
            TimeoutError: it took too long; nothing was accepted.

        """
        return await self._attempt(lambda attempt: self._accept(identity, body, written_as, idempotency_key, attempt))

    async def accept_submission(
        self, submission: Submission, record: Callable[[Connection, PayoutBatch], None]
    ) -> Accepted | Refusal:
        """Accept rows that were checked, or say why not; `record` writes who did it, in the same transaction.

        Raises:
            TimeoutError: it took too long; nothing was accepted.
            UserError: `record` raised it; nothing was accepted.

        """
        return await self._attempt(lambda attempt: self._accept_submission(submission, attempt, record))

    async def run(self, work: Callable[[Callable[[], None]], Found]) -> Found:
        """Do something that takes as long as the rows of a batch; it is given what ends it when its time is over."""
        return await self._attempt(lambda attempt: work(attempt.check_time))

    async def _attempt(self, work: Callable[[Attempt], Found]) -> Found:
        return await carry_out(self._executor, Attempt(self._timeout_s), work)

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _accept(
        self,
        identity: Identity,
        body: bytes,
        written_as: BatchFormat,
        idempotency_key: str | None,
        attempt: Attempt,
    ) -> Accepted | Refusal | FieldErrors:
        attempt.check_time()
        refusal = find_refusal(self._database, identity)
        if refusal is responses.UNAUTHORIZED:
            return refusal
        if not may_be_key(idempotency_key):
            return refusal or responses.IDEMPOTENCY_KEY_MALFORMED
        rows = parse_rows(body, written_as, attempt.check_time)
        if not isinstance(rows, list):
            return refusal or (responses.NOT_AN_OBJECT if isinstance(rows, NotAnObject) else rows)
        submission = Submission.of(identity.business_id, identity.api_key_id, rows, idempotency_key)
        return self._accept_submission(submission, attempt, lambda *_: None)

    def _accept_submission(
        self, submission: Submission, attempt: Attempt, record: Callable[[Connection, PayoutBatch], None]
    ) -> Accepted | Refusal:
        attempt.check_time()
        answer = self._database.read(lambda connection: acceptance.find_obstacle(connection, submission))
        if answer is None:
            answer = self._load(submission, attempt.check_time, record)
        if isinstance(answer, Outcome):
            return REFUSAL_BY_OUTCOME[answer]
        answer = self._release(answer, attempt)
        if not answer.is_replay:
            metrics.PAYOUT_BATCHES_ACCEPTED.inc()
            metrics.PAYOUT_BATCH_ROWS_ACCEPTED.inc(answer.batch.total)
        return answer

    def _release(self, accepted: Accepted, attempt: Attempt) -> Accepted:
        """Release a batch unless its caller is answered 500; also one that an earlier call left unreleased."""
        batch = accepted.batch
        if batch.released_at is not None or batch.finished_at is not None:
            return accepted
        if not attempt.decide_to_accept():
            if not accepted.is_replay:
                self._releaser.refuse(batch.business_id, batch.id)
            raise TimeoutError
        return Accepted(self._releaser.release(batch), is_replay=accepted.is_replay)

    def _load(
        self, submission: Submission, check_time: Callable[[], None], record: Callable[[Connection, PayoutBatch], None]
    ) -> Accepted | Outcome:
        batch_id = new_id()
        try:
            with self._database.transaction() as connection:
                acceptance.load_rows(connection, self._hash_secret, submission, batch_id)
                answer = acceptance.accept(connection, submission, batch_id)
                if isinstance(answer, Outcome) or answer.is_replay:
                    raise _NotAcceptedError(answer)
                record(connection, answer.batch)
                check_time()
                return answer
        except _NotAcceptedError as refused:
            return refused.answer
        except DATABASE_ERRORS as error:
            return self._find_out(submission, batch_id, error)

    def _find_out(self, submission: Submission, batch_id: UUID, error: Exception) -> Accepted:
        """Return the batch if it was committed after all: an answer of 500 says that nothing was debited.

        Behind the business's lock, what was under way when the connection broke has ended.
        """
        give_up_at = time.monotonic() + FIND_OUT_WITHIN_S
        while True:
            try:
                with self._database.transaction() as connection:
                    lock_business(connection, submission.business_id)
                    batch = reading.find_batch(connection, submission.business_id, batch_id)
            except DATABASE_ERRORS:
                if time.monotonic() >= give_up_at:
                    self._releaser.refuse(submission.business_id, batch_id)
                    raise error from None
                time.sleep(AGAIN_AFTER_S)
            else:
                if batch is None:
                    raise error
                return Accepted(batch, is_replay=False)
