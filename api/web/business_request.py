"""Calls other than the one that pays: say who calls, then carry one thing out in a thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection

from api.web import responses
from api.web.authentication import Authenticator, Identity
from api.web.errors import TooManyWaitingError
from api.web.headers import read_header
from api.web.rate_limit import RateLimiter
from api.web.request import HttpRequest
from api.web.request_log import note_of
from api.web.responses import Refusal
from core import metrics
from core.database.connection import Database
from core.messages import Outcome
from core.parties.api_keys import find_standing

Found = TypeVar("Found")

_THREADS = 4  # of the pool's connections, so that resolving always finds one
_WAITING_MAX = 500


class DatabaseThreads:
    """The threads in which ordinary calls wait for PostgreSQL, and how many calls may."""

    def __init__(self, database: Database, *, timeout_s: float) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="calls")
        self._waiting = 0

    async def run(self, carry_out: Callable[[Connection], Found]) -> Found:
        """Carry something out in a transaction, twice where a connection turns out to be gone.

        Raises:
            TooManyWaitingError: nothing was begun.
            TimeoutError: PostgreSQL did not answer in time.

        """
        if self._waiting >= _WAITING_MAX:
            metrics.TOO_MANY_REQUESTS.labels("database").inc()
            raise TooManyWaitingError
        self._waiting += 1
        try:
            work = asyncio.get_running_loop().run_in_executor(self._executor, self._database.read, carry_out)
            return await asyncio.wait_for(work, self._timeout_s)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class BusinessRequests:
    """Calls with a secret key, which is read again in the transaction that answers."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter, threads: DatabaseThreads) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._threads = threads

    async def identify(self, request: HttpRequest) -> Identity | Refusal:
        """Return who calls, or why the call is refused: an unknown key, or too many calls with it."""
        identity = await self._authenticator.identify(read_header(request.scope["headers"], b"authorization") or "")
        if identity is None:
            return responses.UNAUTHORIZED
        note_of(request.scope).business_id = identity.business_id
        return await self._limiter.take(identity.api_key_id, request.scope) or identity

    async def carry_out(self, identity: Identity, work: Callable[[Connection, UUID], Found]) -> Found | Refusal:
        """Do what a business asks for, with its id, unless its key is not live any more."""

        def authorised(connection: Connection) -> Found | Refusal:
            if find_standing(connection, identity.business_id, identity.api_key_id) is Outcome.UNAUTHORIZED:
                return responses.UNAUTHORIZED
            return work(connection, identity.business_id)

        try:
            return await self._threads.run(authorised)
        except TooManyWaitingError:
            return responses.TOO_MANY_REQUESTS

    async def answer(
        self, request: HttpRequest, work: Callable[[Connection, UUID], responses.Answer]
    ) -> responses.HttpResponse:
        """Answer a call with what `work` returns: a document, errors by field, or a refusal."""
        identity = await self.identify(request)
        if isinstance(identity, Refusal):
            return identity.response()
        return responses.respond(await self.carry_out(identity, work))
