"""Taking payout batches in: check the rows, load them, reserve the money, and release them to the workers."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection

from api.batches.attempt import Attempt, carry_out
from api.batches.reader.files import FileFormat
from api.batches.releasing import AGAIN_AFTER_S, FIND_OUT_WITHIN_S, BatchReleaser
from api.batches.rows import ROWS_REPORTED_MAX, parse_rows
from api.web import responses
from api.web.authentication import Identity, find_refusal
from api.web.errors import TooManyWaitingError
from api.web.idempotency import may_be_key
from api.web.responses import REFUSAL_BY_OUTCOME, Refusal
from api.web.validation import FieldErrors, NotAnObject
from core import metrics
from core.batches import acceptance, reading
from core.batches.acceptance import (
    Accepted,
    ReferencesReused,
    ReferencesTakenError,
    ReferencesUndecidedError,
    Sorting,
    Submission,
)
from core.batches.payout_batch import PayoutBatch
from core.batches.preview import Preview, look_ahead
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

    def __init__(self, answer: acceptance.Answer) -> None:
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
        self, identity: Identity, body: bytes, written_as: FileFormat | None, idempotency_key: str | None
    ) -> Accepted | Refusal | FieldErrors:
        """Accept a batch as a whole, or say why not.

        Raises:
            TimeoutError: it took too long; nothing was accepted.

        """
        return await self._attempt(lambda attempt: self._accept(identity, body, written_as, idempotency_key, attempt))

    async def accept_submission(
        self, submission: Submission, record: Callable[[Connection, PayoutBatch], None]
    ) -> Accepted | Refusal | ReferencesReused:
        """Accept rows that were checked, or say why not; `record` writes who did it, in the same transaction.

        Raises:
            TimeoutError: it took too long; nothing was accepted.
            UserError: `record` raised it; nothing was accepted.

        """
        return await self._attempt(lambda attempt: self._accept_submission(submission, attempt, record))

    async def preview(
        self, identity: Identity, body: bytes, written_as: FileFormat | None, idempotency_key: str | None
    ) -> Preview | Refusal | FieldErrors:
        """Tell what a batch would do, or why it would be refused; nothing is accepted.

        Raises:
            TimeoutError: it took too long.

        """

        def work(check_time: Callable[[], None]) -> Preview | Refusal | FieldErrors:
            submission = self._read(identity, body, written_as, idempotency_key, check_time)
            if not isinstance(submission, Submission):
                return submission
            found = self._look_ahead(submission, check_time)
            return _explain_references(found.rows) if isinstance(found, ReferencesReused) else found

        return await self.run(work)

    async def preview_submission(self, submission: Submission) -> Preview | Refusal | ReferencesReused:
        """Tell what rows that were checked would do; nothing is accepted.

        Raises:
            TimeoutError: it took too long.

        """
        return await self.run(lambda check_time: self._look_ahead(submission, check_time))

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
        written_as: FileFormat | None,
        idempotency_key: str | None,
        attempt: Attempt,
    ) -> Accepted | Refusal | FieldErrors:
        submission = self._read(identity, body, written_as, idempotency_key, attempt.check_time)
        if not isinstance(submission, Submission):
            return submission
        accepted = self._accept_submission(submission, attempt, lambda *_: None)
        return _explain_references(accepted.rows) if isinstance(accepted, ReferencesReused) else accepted

    def _look_ahead(
        self, submission: Submission, check_time: Callable[[], None]
    ) -> Preview | Refusal | ReferencesReused:
        found = _once_decided(
            lambda: self._database.read(lambda connection: look_ahead(connection, submission)), check_time
        )
        return REFUSAL_BY_OUTCOME[found] if isinstance(found, Outcome) else found

    def _read(
        self,
        identity: Identity,
        body: bytes,
        written_as: FileFormat | None,
        idempotency_key: str | None,
        check_time: Callable[[], None],
    ) -> Submission | Refusal | FieldErrors:
        """Check who hands a batch in, and all of its rows."""
        check_time()
        refusal = find_refusal(self._database, identity, has_name=idempotency_key is not None)
        if refusal is responses.UNAUTHORIZED:
            return refusal
        if not may_be_key(idempotency_key):
            return refusal or responses.IDEMPOTENCY_KEY_MALFORMED
        rows = parse_rows(body, written_as, check_time)
        if not isinstance(rows, list):
            return refusal or (responses.NOT_AN_OBJECT if isinstance(rows, NotAnObject) else rows)
        return Submission.of(identity.business_id, identity.api_key_id, rows, idempotency_key)

    def _accept_submission(
        self, submission: Submission, attempt: Attempt, record: Callable[[Connection, PayoutBatch], None]
    ) -> Accepted | Refusal | ReferencesReused:
        answer = _once_decided(lambda: self._decide(submission, attempt.check_time, record), attempt.check_time)
        if isinstance(answer, Outcome):
            return REFUSAL_BY_OUTCOME[answer]
        if isinstance(answer, Accepted):
            answer = self._release(answer, attempt)
            if not answer.is_replay:
                metrics.PAYOUT_BATCHES_ACCEPTED.inc()
                metrics.PAYOUT_BATCH_ROWS_ACCEPTED.inc(answer.batch.total - answer.batch.already_paid)
        return answer

    def _decide(
        self, submission: Submission, check_time: Callable[[], None], record: Callable[[Connection, PayoutBatch], None]
    ) -> acceptance.Answer:
        found = self._database.read(lambda connection: acceptance.sort_rows(connection, submission))
        return self._load(submission, found, check_time, record) if isinstance(found, Sorting) else found

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
        self,
        submission: Submission,
        sorting: Sorting | None,
        check_time: Callable[[], None],
        record: Callable[[Connection, PayoutBatch], None],
    ) -> acceptance.Answer:
        """Load and accept; without a sorting, the rows are sorted behind the business's lock."""
        batch_id = new_id()
        try:
            with self._database.transaction() as connection:
                if sorting is None:
                    lock_business(connection, submission.business_id)
                    found = acceptance.sort_rows(connection, submission)
                    if not isinstance(found, Sorting):
                        raise _NotAcceptedError(found)
                else:
                    found = sorting
                acceptance.load_rows(connection, self._hash_secret, submission, batch_id, found)
                answer = acceptance.accept(connection, submission, batch_id, found)
                if isinstance(answer, Outcome) or answer.is_replay:
                    raise _NotAcceptedError(answer)
                record(connection, answer.batch)
                check_time()
                return answer
        except _NotAcceptedError as refused:
            return refused.answer
        except ReferencesTakenError:
            if sorting is None:
                raise
            return self._load(submission, None, check_time, record)
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


def _once_decided(work: Callable[[], Found], check_time: Callable[[], None]) -> Found:
    """Do something once all batches with the same references are released or cancelled.

    Raises:
        TimeoutError: they were not in time.

    """
    give_up_at = time.monotonic() + FIND_OUT_WITHIN_S
    while True:
        check_time()
        try:
            return work()
        except ReferencesUndecidedError:
            if time.monotonic() >= give_up_at:
                raise TimeoutError from None
            time.sleep(AGAIN_AFTER_S)


def _explain_references(rows: list[int]) -> FieldErrors:
    names = [f"allocations.{row}.reference" for row in rows[:ROWS_REPORTED_MAX]]
    return {name: [f"The {name} was already used for another payment."] for name in names}
