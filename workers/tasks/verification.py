"""Proving now and then that the books balance, in a thread: it may take minutes, and payout batches go on meanwhile."""

import logging
import threading
import time

import redis
from celery import Celery

from core.chain.proof import prove
from core.database.connection import Database, describe_error, read_clock_us
from core.ledger.verification import Verdict
from core.sealing import ForgeryError
from core.settings.loader import Settings
from workers.app import VERDICT_KEY, VERIFY_TASK

logger = logging.getLogger(__name__)

_BEGUN_KEY = "payouts:verification-begun"
TIMEOUT_S = 3600.0
"""After this PostgreSQL ends it: an old snapshot keeps dead rows from being cleaned up."""


class BooksVerifier:
    """Verifies where it was not done for a while, by whomever; the verdict is left in Redis."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self._settings = settings
        self._client = client
        self._every_s = settings.verify_every_s

    def begin_if_due(self) -> threading.Thread | None:
        """Begin to verify, in a thread that ends with the process, unless another has done so lately."""
        with self._make_database() as database:
            try:
                now_us = database.read(read_clock_us)
                last = self._read_last()
                is_due = last is None or now_us - last.ended_at_us >= self._every_s * 1_000_000
                # One that failed is tried again after this, and two never run at the same time.
                again_after_ms = max(round(min(self._every_s, TIMEOUT_S) * 1000), 1)
                if not is_due or not self._client.set(_BEGUN_KEY, 1, nx=True, px=again_after_ms):
                    return None
            except Exception as error:  # noqa: BLE001 (the next periodic task tries again)
                logger.warning("the books are not verified now: %s", describe_error(error))
                return None
        thread = threading.Thread(target=self._verify, name="verify", daemon=True)
        thread.start()
        return thread

    def _verify(self) -> None:
        began_at = time.monotonic()
        try:
            with self._make_database() as database:
                with database.snapshot() as connection:
                    found = prove(connection, self._settings.hash_secret_bytes)
                ended_at_us = database.read(read_clock_us)
            verdict = Verdict(found.places, ended_at_us, time.monotonic() - began_at)
            self._client.set(VERDICT_KEY, verdict.seal(self._settings.hash_secret_bytes))
        except Exception as error:  # noqa: BLE001 (an alert says that it was not done for long)
            logger.error("the books could not be verified: %s", describe_error(error))
            return
        if found.balanced:
            logger.info("the books balance: %d transactions, %.1f s", found.verification.transactions, verdict.took_s)
        else:
            logger.error("the books do not balance in %d places: `payouts verify` names them", verdict.discrepancies)

    def _read_last(self) -> Verdict | None:
        try:
            return Verdict.open(self._client.get(VERDICT_KEY), self._settings.hash_secret_bytes)  # type: ignore[arg-type]
        except ForgeryError as error:
            logger.error("the last verdict was dropped: %s", error)
            return None

    def _make_database(self) -> Database:
        return Database.from_settings(self._settings, transaction_timeout_s=TIMEOUT_S, pool_size=1)


def register_verification_task(celery: Celery, verifier: BooksVerifier) -> None:
    """Make the task known to the worker."""

    @celery.task(name=VERIFY_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def verify_books(*_: object, **__: object) -> None:
        verifier.begin_if_due()
