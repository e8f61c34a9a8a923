"""The competitor *textbook Celery*: one task per request, awaited in a thread, one Redis lock per business."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from celery import Celery
from litestar import Litestar, Response, get, post
from redis import Redis

from api.web import responses
from api.web.request import HttpRequest
from api.web.validation import NotAnObject, PayoutRequest, parse_payout_request
from core.credentials import digest_of, looks_like_secret_key, payout_hash
from core.ids import new_id
from core.parties.api_keys import find_secret_keys
from tests.bench.one_allocation import (
    CREDIT_USER,
    DEBIT_BUSINESS,
    ENGINE_OPTIONS,
    LOCK_BUSINESS,
    WRITE_HISTORY,
    database_url,
    hash_secret,
)

THREADS = 32
"""Requests of the process that wait for their results at once."""
_LOCK_TIMEOUT_S = 10.0
_LOCK_SLEEP_S = 0.01
_RESULT_TIMEOUT_S = 30.0

celery = Celery("textbook", broker=os.environ["PAYOUTS_REDIS_URL"], backend=os.environ["PAYOUTS_REDIS_URL"])
celery.conf.update(task_default_queue="textbook", result_expires=60, broker_connection_retry_on_startup=True)


@cache
def _engine() -> sa.Engine:
    """One engine for each process, made after the pool has forked."""
    return sa.create_engine(database_url(), pool_size=4, **ENGINE_OPTIONS)


@cache
def _redis() -> Redis:
    return Redis.from_url(os.environ["PAYOUTS_REDIS_URL"])


@celery.task(name="textbook.allocate")  # type: ignore[untyped-decorator]
def allocate(business_id: str, digest: str, email: str, amount_cents: int) -> dict[str, object]:
    lock = _redis().lock(f"textbook:{business_id}", timeout=_LOCK_TIMEOUT_S, sleep=_LOCK_SLEEP_S)
    with lock, _engine().begin() as connection:
        row = connection.execute(LOCK_BUSINESS, {"digest": bytes.fromhex(digest)}).one_or_none()
        if row is None:
            return {"status": 401, "error": responses.UNAUTHORIZED.error}
        if not row.payouts_enabled:
            return {"status": 403, "error": responses.PAYOUTS_DISABLED.error}
        if amount_cents > row.payout_balance:
            return {"status": 400, "error": responses.INSUFFICIENT_BALANCE.error}
        hash_ = payout_hash(hash_secret(), row.id, email)
        amount = {"business_id": row.id, "amount": amount_cents}
        payout_balance_after, sequence = connection.execute(DEBIT_BUSINESS, amount).one()
        user = {"id": new_id(), "email": email, "hash_digest": digest_of(hash_)}
        user_id, user_balance_after = connection.execute(CREDIT_USER, amount | user).one()
        entry = {
            "id": new_id(),
            "payout_user_id": user_id,
            "payout_balance_after": payout_balance_after,
            "user_balance_after": user_balance_after,
            "sequence": sequence,
        }
        connection.execute(WRITE_HISTORY, amount | entry)
    return {"status": 201, "hash": hash_}


def create_app() -> Litestar:
    waiting = ThreadPoolExecutor(int(os.environ.get("BENCH_THREADS", THREADS)))
    business_ids: dict[bytes, UUID] = {}  # the task reads the key again, in its transaction

    def find_business_id(digest: bytes) -> UUID | None:
        with _engine().connect() as connection:
            found = find_secret_keys(connection, [digest]).get(digest)
        return None if found is None else found[0]

    def run_task(business_id: UUID, digest: bytes, payout: PayoutRequest) -> dict[str, Any]:
        result = allocate.delay(str(business_id), digest.hex(), payout.email, payout.amount)
        answer: dict[str, Any] = result.get(timeout=_RESULT_TIMEOUT_S)
        return answer

    @post("/payout/create")
    async def create_payout(request: HttpRequest) -> Response[Any]:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not looks_like_secret_key(key):
            return responses.UNAUTHORIZED.response()
        digest = digest_of(key)
        if digest not in business_ids:
            business_id = await asyncio.to_thread(find_business_id, digest)
            if business_id is None:
                return responses.UNAUTHORIZED.response()
            business_ids[digest] = business_id
        parsed = parse_payout_request(await request.body())
        if isinstance(parsed, NotAnObject):
            return responses.NOT_AN_OBJECT.response()
        if not isinstance(parsed, PayoutRequest):
            return Response(parsed, status_code=400)
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(waiting, run_task, business_ids[digest], digest, parsed)
        status = answer.pop("status")
        return Response(answer, status_code=status)

    @get("/health/ready", sync_to_thread=True)
    def ready() -> None:
        with _engine().connect():
            pass

    return Litestar([create_payout, ready], logging_config=None, openapi_config=None)
