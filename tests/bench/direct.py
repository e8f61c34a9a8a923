"""The competitor *direct*: the same contract, with the transaction in the request and no queue."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, get, post
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from api.web import responses
from api.web.responses import Refusal
from api.web.validation import NotAnObject, PayoutRequest, parse_payout_request
from core.credentials import digest_of, looks_like_secret_key, payout_hash
from core.ids import new_id
from tests.bench.one_allocation import (
    CREDIT_USER,
    DEBIT_BUSINESS,
    ENGINE_OPTIONS,
    LOCK_BUSINESS,
    WRITE_HISTORY,
    database_url,
    hash_secret,
)

POOL_SIZE = 4
"""Connections of one process: more only wait for the same row (README.md has what was measured)."""


def create_app() -> Litestar:
    engine = create_async_engine(
        database_url(), pool_size=int(os.environ.get("BENCH_POOL_SIZE", POOL_SIZE)), **ENGINE_OPTIONS
    )
    secret = hash_secret()

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    @post("/payout/create")
    async def create_payout(request: Request[Any, Any, Any]) -> Response[Any]:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not looks_like_secret_key(key):
            return responses.UNAUTHORIZED.response()
        parsed = parse_payout_request(await request.body())
        if isinstance(parsed, NotAnObject):
            return responses.NOT_AN_OBJECT.response()
        if not isinstance(parsed, PayoutRequest):
            return Response(parsed, status_code=400)
        answer = await _allocate(engine, secret, digest_of(key), parsed)
        if isinstance(answer, Refusal):
            return answer.response()
        return Response({"hash": answer}, status_code=201)

    @get("/health/ready")
    async def ready() -> None:
        async with engine.connect():
            pass

    return Litestar([create_payout, ready], lifespan=[lifespan], logging_config=None, openapi_config=None)


async def _allocate(engine: AsyncEngine, secret: bytes, digest: bytes, payout: PayoutRequest) -> str | Refusal:
    async with engine.begin() as connection:
        row = (await connection.execute(LOCK_BUSINESS, {"digest": digest})).one_or_none()
        if row is None:
            return responses.UNAUTHORIZED
        business_id, payout_balance, payouts_enabled = row
        if not payouts_enabled:
            return responses.PAYOUTS_DISABLED
        if payout.amount > payout_balance:
            return responses.INSUFFICIENT_BALANCE
        hash_ = payout_hash(secret, business_id, payout.email)
        amount = {"business_id": business_id, "amount": payout.amount}
        payout_balance_after, sequence = (await connection.execute(DEBIT_BUSINESS, amount)).one()
        user = {"id": new_id(), "email": payout.email, "hash_digest": digest_of(hash_)}
        user_id, user_balance_after = (await connection.execute(CREDIT_USER, amount | user)).one()
        entry = {
            "id": new_id(),
            "payout_user_id": user_id,
            "payout_balance_after": payout_balance_after,
            "user_balance_after": user_balance_after,
            "sequence": sequence,
        }
        await connection.execute(WRITE_HISTORY, amount | entry)
    return hash_
