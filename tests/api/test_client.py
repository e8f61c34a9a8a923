"""The client for integrators: on a running server, behind a proxy that breaks calls, and on answers by hand."""

import copy
import json
import pickle
import socket
import struct
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import pytest

from api import client as module
from api.client import (
    Balance,
    GaveUpError,
    IdempotencyKeyReusedError,
    InsufficientBalanceError,
    InvalidRequestError,
    NotFoundError,
    NotReachedError,
    Payouts,
    PayoutsDisabledError,
    PayoutsError,
    RequestTooLargeError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
)
from api.local.ports import find_free_port
from core.credentials import KeyKind, payout_hash
from core.parties import api_keys, businesses
from tests.servers import HASH_SECRET, Account, System, open_account, verify_books

KEY = "sk_live_" + "k" * 40
HASH = "h" * 64
EMAIL = "user@example.com"
REQUEST_ID = "req-1"
BACKOFF_MAX_S = 10.0


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the seconds for which the client would have waited before each further attempt."""
    waited: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def payouts(system: System, account: Account) -> Iterator[Payouts]:
    with Payouts(system.base_url, account.secret_key) as opened:
        yield opened


def hash_of(account: Account, email: str = EMAIL) -> str:
    return payout_hash(HASH_SECRET.encode(), account.business.id, email)


def refusal_of(call: Callable[..., object], *arguments: object) -> PayoutsError:
    with pytest.raises(PayoutsError) as raised:
        call(*arguments)
    return raised.value


# Answers by hand


class Answers:
    """Answers by hand: one after another, the last one for ever; keeps what was asked."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if isinstance(answer, httpx.TransportError):
            raise answer
        return answer

    def client(self, *, key: str = KEY, attempts: int = 5) -> Payouts:
        return Payouts("http://payouts.test", key, attempts=attempts, transport=httpx.MockTransport(self))

    @property
    def idempotency_keys(self) -> list[str | None]:
        return [request.headers.get("idempotency-key") for request in self.requests]


def error_text(status_code: int) -> str:
    """Return the server's own words for 500, which alone are certain; for all else, any."""
    return "Internal server error" if status_code == 500 else f"error {status_code}"


def answer(status_code: int, body: object = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        body = {"hash": HASH} if status_code == 201 else {"error": error_text(status_code)}
    return httpx.Response(status_code, json=body, headers={"X-Request-Id": REQUEST_ID} | named)


# Success


def test_create_pays_and_returns_the_hash(system: System, account: Account, payouts: Payouts) -> None:
    assert payouts.create(EMAIL, 10_000) == hash_of(account)
    assert system.read_paid(account) == (1, 10_000)
    assert verify_books(system.database).balanced


def test_same_user_has_the_same_hash_in_any_spelling(account: Account, payouts: Payouts) -> None:
    assert payouts.create(EMAIL, 1) == payouts.create(" USER@Example.COM ", 2) == hash_of(account)
    assert payouts.create("other@example.com", 3) == hash_of(account, "other@example.com")


def test_balance_is_read_in_cents(account: Account, payouts: Payouts) -> None:
    assert payouts.balance() == Balance(0, 1_000_000)
    payouts.create(EMAIL, 10_000)
    assert payouts.balance() == Balance(balance=0, payout_balance=990_000)


def test_test_key_moves_play_money_only(system: System, account: Account) -> None:
    with system.database.transaction() as connection:
        _, test_key = api_keys.create_api_key(connection, account.business.twin_id, KeyKind.SECRET)
    with Payouts(system.base_url, test_key) as payouts:
        before = payouts.balance().payout_balance
        payouts.create(EMAIL, 10_000)
        assert payouts.balance().payout_balance == before - 10_000
    assert system.read_paid(account) == (0, 0)


def test_url_may_end_in_a_slash(system: System, account: Account) -> None:
    with Payouts(f"{system.base_url}/", account.secret_key) as payouts:
        assert payouts.create(EMAIL, 1) == hash_of(account)


def test_without_a_key_two_calls_pay_twice(system: System, account: Account, payouts: Payouts) -> None:
    assert payouts.create(EMAIL, 100) == payouts.create(EMAIL, 100)
    assert system.read_paid(account) == (2, 200)


def test_own_key_pays_once(system: System, account: Account, payouts: Payouts) -> None:
    hashes = {payouts.create(EMAIL, 100, idempotency_key="order-1") for _ in range(3)}
    assert hashes == {hash_of(account)}
    assert system.read_paid(account) == (1, 100)


def test_own_key_pays_once_from_another_client(system: System, account: Account) -> None:
    for _ in range(2):
        with Payouts(system.base_url, account.secret_key) as payouts:
            payouts.create(EMAIL, 100, "order-1")
    assert system.read_paid(account) == (1, 100)


def test_own_key_is_free_after_a_refusal(system: System, account: Account, payouts: Payouts) -> None:
    with pytest.raises(InsufficientBalanceError):
        payouts.create(EMAIL, 1_000_001, "order-1")
    with system.database.transaction() as connection:
        businesses.fund_business(connection, account.business.id, 1)
    payouts.create(EMAIL, 1_000_001, "order-1")
    assert system.read_paid(account) == (1, 1_000_001)


def test_threads_share_a_client(system: System, account: Account, payouts: Payouts) -> None:
    with ThreadPoolExecutor(8) as threads:
        hashes = set(threads.map(lambda number: payouts.create(f"u{number % 4}@example.com", 1), range(40)))
    assert hashes == {hash_of(account, f"u{number}@example.com") for number in range(4)}
    assert system.read_paid(account) == (40, 40)


# Refusals: one exception for each documented error, raised at once


def assert_refused(refusal: PayoutsError, kind: type[PayoutsError], status_code: int, text: str) -> None:
    assert (type(refusal), refusal.status_code, str(refusal)) == (kind, status_code, text)
    assert refusal.request_id is not None
    assert len(bytes.fromhex(refusal.request_id)) == 16


@pytest.mark.parametrize("key", ["nonsense", KEY, "pk_live_" + "k" * 40, "sk_test_" + "k" * 40])
def test_unknown_key_is_unauthorized(system: System, waits: list[float], key: str) -> None:
    with Payouts(system.base_url, key) as payouts:
        assert_refused(refusal_of(payouts.create, EMAIL, 1), UnauthorizedError, 401, "Unauthorized")
        assert_refused(refusal_of(payouts.balance), UnauthorizedError, 401, "Unauthorized")
    assert waits == []


def test_revoked_key_is_unauthorized(system: System, account: Account, payouts: Payouts, waits: list[float]) -> None:
    payouts.create(EMAIL, 1)
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    assert_refused(refusal_of(payouts.create, EMAIL, 1), UnauthorizedError, 401, "Unauthorized")
    assert_refused(refusal_of(payouts.balance), UnauthorizedError, 401, "Unauthorized")
    assert waits == []
    assert system.read_paid(account) == (1, 1)


def test_public_key_is_unauthorized(system: System, account: Account) -> None:
    with system.database.transaction() as connection:
        _, public = api_keys.create_api_key(connection, account.business.id, KeyKind.PUBLIC)
    with Payouts(system.base_url, public) as payouts:
        assert_refused(refusal_of(payouts.create, EMAIL, 1), UnauthorizedError, 401, "Unauthorized")


def test_disabled_payouts_are_told(system: System, waits: list[float]) -> None:
    account = open_account(system.database, payouts_enabled=False)
    text = "Payouts are currently disabled. Please enable them in Settings."
    with Payouts(system.base_url, account.secret_key) as payouts:
        assert_refused(refusal_of(payouts.create, EMAIL, 1), PayoutsDisabledError, 403, text)
        assert payouts.balance() == Balance(0, 1_000_000)
    assert waits == []


def test_field_errors_are_told_by_field(system: System, account: Account, payouts: Payouts, waits: list[float]) -> None:
    refusal = refusal_of(payouts.create, "nobody", 0, "order-1")
    text = "The email must be a valid email address. The amount must be at least 1."
    assert_refused(refusal, InvalidRequestError, 400, text)
    assert isinstance(refusal, InvalidRequestError)
    assert refusal.errors == {
        "email": ["The email must be a valid email address."],
        "amount": ["The amount must be at least 1."],
    }
    assert refusal.idempotency_key == "order-1"
    assert waits == []
    assert system.read_paid(account) == (0, 0)


def test_several_errors_of_one_field_are_all_told(payouts: Payouts) -> None:
    refusal = refusal_of(payouts.create, EMAIL, 0.5)
    assert isinstance(refusal, InvalidRequestError)
    assert refusal.errors == {"amount": ["The amount must be an integer.", "The amount must be at least 1."]}


def test_missing_funds_are_told(system: System, account: Account, payouts: Payouts, waits: list[float]) -> None:
    refusal = refusal_of(payouts.create, EMAIL, 1_000_001)
    assert_refused(refusal, InsufficientBalanceError, 400, "Insufficient payout balance")
    assert waits == []
    assert system.read_paid(account) == (0, 0)


def test_key_used_for_another_payment_is_told(
    system: System, account: Account, payouts: Payouts, waits: list[float]
) -> None:
    payouts.create(EMAIL, 100, "order-1")
    for email, amount in ((EMAIL, 101), ("other@example.com", 100)):
        refusal = refusal_of(payouts.create, email, amount, "order-1")
        text = "Idempotency-Key was already used with different parameters"
        assert_refused(refusal, IdempotencyKeyReusedError, 422, text)
        assert refusal.idempotency_key == "order-1"
    assert waits == []
    assert system.read_paid(account) == (1, 100)


def test_body_beyond_the_limit_is_told(payouts: Payouts, waits: list[float]) -> None:
    refusal = refusal_of(payouts.create, "x" * 100_000 + "@example.com", 1)
    assert_refused(refusal, RequestTooLargeError, 413, "Request body too large")
    assert waits == []


def test_url_that_leads_elsewhere_is_not_found(system: System, account: Account, waits: list[float]) -> None:
    with Payouts(f"{system.base_url}/elsewhere", account.secret_key) as payouts:
        assert_refused(refusal_of(payouts.create, EMAIL, 1), NotFoundError, 404, "Not found")
        assert_refused(refusal_of(payouts.balance), NotFoundError, 404, "Not found")
    assert waits == []


@pytest.mark.parametrize("key", ["", "a b", "a\n", "ä", "\x7f", "x" * 256])
def test_malformed_idempotency_key_is_refused_without_a_call(key: str) -> None:
    answers = Answers(answer(201))
    with answers.client() as payouts, pytest.raises(ValueError, match="1 to 255 visible ASCII"):
        payouts.create(EMAIL, 1, key)
    assert answers.requests == []


def test_longest_idempotency_key_pays_once(system: System, account: Account, payouts: Payouts) -> None:
    for _ in range(2):
        payouts.create(EMAIL, 1, "~" * 255)
    assert system.read_paid(account) == (1, 1)


def test_400_with_a_text_has_no_field_errors() -> None:
    with Answers(answer(400, {"error": "The request body must be a JSON object."})).client() as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert isinstance(refusal, InvalidRequestError)
    assert (str(refusal), refusal.errors) == ("The request body must be a JSON object.", {})


@pytest.mark.parametrize(("path", "method"), [("/payout/create", "post"), ("/balance", "get")])
def test_every_documented_error_has_an_exception_of_its_own(client: httpx.Client, path: str, method: str) -> None:
    documented = client.get("/schema/openapi.json").json()["paths"][path][method]["responses"]
    status_codes = [int(each) for each in documented if int(each) >= 400]
    assert {401, 429, 500} <= set(status_codes)
    kinds = set()
    for status_code in status_codes:
        with Answers(answer(status_code)).client() as payouts:
            refusal = refusal_of(payouts.balance) if method == "get" else refusal_of(payouts.create, EMAIL, 1)
        assert (refusal.status_code, str(refusal)) == (status_code, error_text(status_code))
        assert refusal.request_id == REQUEST_ID
        kinds.add(type(refusal))
    assert kinds.isdisjoint({PayoutsError, GaveUpError})
    assert len(kinds) == len(status_codes)


@pytest.mark.parametrize("status_code", [301, 302, 307, 400, 401, 403, 404, 405, 413, 418, 422])
def test_refusal_is_not_tried_again(waits: list[float], status_code: int) -> None:
    answers = Answers(answer(status_code, location="http://elsewhere.test/"), answer(201))
    with answers.client() as payouts:
        assert not isinstance(refusal_of(payouts.create, EMAIL, 1), GaveUpError)
    # Nor is the API key sent to where a redirect points.
    assert [request.url.host for request in answers.requests] == ["payouts.test"]
    assert waits == []


NO_OBJECTS = [b"", b"<html>", b"[]", b'"text"', b"null", b"\xff", b"1" * 5000, b"[" * 100_000, b'{"a":' * 100_000]
named_in_short = pytest.mark.parametrize("body", NO_OBJECTS, ids=lambda body: repr(body[:10]))


@named_in_short
@pytest.mark.parametrize(
    ("status_code", "kind"), [(400, InvalidRequestError), (404, NotFoundError), (418, PayoutsError)]
)
def test_refusal_that_is_not_an_object_is_an_error_with_its_status(
    status_code: int, kind: type[PayoutsError], body: bytes
) -> None:
    answers = Answers(httpx.Response(status_code, content=body))
    with answers.client() as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert type(refusal) is kind
    assert (refusal.status_code, str(refusal)) == (status_code, f"the server answered {status_code}")
    assert (refusal.request_id, refusal.errors, refusal.may_have_paid) == (None, {}, False)
    assert len(answers.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"error": None},
        {"error": 5},
        {"error": ["text"]},
        {"error": {"email": ["text"]}},
        {"error": None, "email": ["text"]},
        {"error": 5, "email": ["text"]},
        {"email": None},
        {"email": "text"},
        {"email": 5},
        {"email": [5]},
        {"email": [None, "text"]},
        {"email": [["text"]]},
        {"email": {"text": "text"}},
        {"email": ["text"], "amount": None},
    ],
)
@pytest.mark.parametrize("status_code", [400, 401, 403, 404, 413, 418, 422])
def test_refusal_in_another_form_is_an_error_with_its_status(status_code: int, body: object) -> None:
    with Answers(answer(status_code, body)).client() as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert (refusal.status_code, str(refusal)) == (status_code, f"the server answered {status_code}")
    assert (refusal.request_id, refusal.errors, refusal.may_have_paid) == (REQUEST_ID, {}, False)


@pytest.mark.parametrize("status_code", [None, 201, 302, 400, 401, 403, 404, 413, 418, 422, 429, 500, 502, 503, 504])
def test_errors_by_field_are_a_dict_on_every_error(status_code: int | None) -> None:
    broken = httpx.ReadError("broken") if status_code is None else answer(status_code, {"email": ["text"]})
    with Answers(broken).client() as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert refusal.errors == ({"email": ["text"]} if status_code == 400 else {})


def test_errors_do_not_share_their_fields() -> None:
    first, second = PayoutsError("text"), PayoutsError("text")
    first.errors["email"] = ["text"]
    assert second.errors == {}


@pytest.mark.parametrize("email", ["\ud800", "\udfff@example.com", "user@\ud800.com", "\ude00\ud83d@example.com"])
def test_lone_surrogate_in_an_email_is_refused_by_the_server(
    system: System, account: Account, payouts: Payouts, email: str
) -> None:
    refusal = refusal_of(payouts.create, email, 1)
    text = "The email must be a valid email address."
    assert_refused(refusal, InvalidRequestError, 400, text)
    assert refusal.errors == {"email": [text]}
    assert not refusal.may_have_paid
    assert system.read_paid(account) == (0, 0)


# What cannot be sent at all


@pytest.mark.parametrize(
    "key", ["", " ", "\n", "a b", f" {KEY}", f"{KEY} ", f"{KEY}\n", "ä", "\x7f", "\0", "\ud800", "…"]
)
def test_odd_api_key_is_refused_at_once_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match=r"^key must be an API key") as raised:
        Payouts("http://payouts.test", key)
    assert KEY not in texts_of(raised.value)


@pytest.mark.parametrize(
    "url",
    ["", " ", "payouts.test", "payouts.test:80", "/", "//payouts.test", "ftp://payouts.test", "http:payouts.test"],
)
def test_odd_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url must be that of a server"):
        Payouts(url, KEY)


@pytest.mark.parametrize("url", ["http://", "https://", "http:///path", "http://:80", "http://a:b", "http://a\n"])
def test_url_without_a_host_that_can_be_read_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        Payouts(url, KEY)


# Trying again


@named_in_short
@pytest.mark.parametrize("status_code", [200, 201, 204])
def test_success_that_cannot_be_read_may_have_paid_and_is_tried_again(
    waits: list[float], status_code: int, body: bytes
) -> None:
    answers = Answers(httpx.Response(status_code, content=body))
    with answers.client(attempts=3) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert type(refusal) is NotReachedError
    assert (refusal.status_code, str(refusal)) == (status_code, f"the answer {status_code} cannot be read")
    assert (refusal.request_id, refusal.errors, refusal.may_have_paid) == (None, {}, True)
    assert answers.idempotency_keys == [refusal.idempotency_key] * 3
    assert len(waits) == 2


@pytest.mark.parametrize("body", [{}, {"hash": None}, {"hash": 5}, {"hash": [HASH]}, {"error": "text"}, {"Hash": HASH}])
def test_success_without_its_fields_is_tried_again_with_the_same_key(body: object) -> None:
    answers = Answers(answer(201, body), answer(201))
    with answers.client() as payouts:
        assert payouts.create(EMAIL, 1) == HASH
    first, second = answers.idempotency_keys
    assert first == second


@pytest.mark.parametrize("body", [{}, {"balance": 1}, {"balance": 1, "payout_balance": "2"}, {"hash": HASH}])
def test_balance_that_cannot_be_read_is_not_reached_and_has_paid_nothing(body: object) -> None:
    answers = Answers(answer(200, body))
    with answers.client(attempts=3) as payouts:
        refusal = refusal_of(payouts.balance)
    assert type(refusal) is NotReachedError
    assert (refusal.status_code, refusal.idempotency_key, refusal.may_have_paid) == (200, None, False)
    assert len(answers.requests) == 3


def test_429_waits_as_long_as_the_server_asks(waits: list[float]) -> None:
    answers = Answers(answer(429, retry_after="7"), answer(429, retry_after="3"), answer(201))
    with answers.client() as payouts:
        assert payouts.create(EMAIL, 1) == HASH
    assert len(answers.requests) == 3
    assert waits == [7, 3]


@pytest.mark.parametrize("asked", ["3600", "9" * 400])
def test_wait_that_the_server_asks_for_is_bounded(waits: list[float], asked: str) -> None:
    with Answers(answer(429, retry_after=asked), answer(201)).client() as payouts:
        payouts.create(EMAIL, 1)
    assert waits == [60]


@pytest.mark.parametrize("asked", ["0", "", "-5", "1.5", "soon", "inf", "nan", "²", "Sat, 21 Nov 2026 15:00:00 GMT"])
def test_wait_that_is_no_number_of_seconds_is_the_usual_one(waits: list[float], asked: str) -> None:
    headers = [(b"Retry-After", asked.encode())]
    with Answers(httpx.Response(429, headers=headers), answer(201)).client() as payouts:
        payouts.create(EMAIL, 1)
    (wait,) = waits
    assert 0 <= wait <= BACKOFF_MAX_S


@pytest.mark.parametrize("status_code", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", [b'{"error": "Internal server error"}', b"<h1>Bad Gateway</h1>", b""])
def test_passing_error_is_tried_again_with_the_same_key(status_code: int, body: bytes) -> None:
    answers = Answers(httpx.Response(status_code, content=body), answer(201))
    with answers.client() as payouts:
        assert payouts.create(EMAIL, 1) == HASH
    assert len(answers.requests) == 2
    first, second = answers.requests
    assert (first.content, first.headers) == (second.content, second.headers)
    assert None not in answers.idempotency_keys


@pytest.mark.parametrize(
    "broken", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError]
)
def test_broken_connection_is_tried_again_with_the_same_key(broken: type[httpx.TransportError]) -> None:
    answers = Answers(broken("broken"), broken("broken"), answer(201))
    with answers.client() as payouts:
        assert payouts.create(EMAIL, 1) == HASH
    assert len(answers.requests) == 3
    assert len(set(answers.idempotency_keys)) == 1
    assert None not in answers.idempotency_keys


def test_each_call_has_a_key_of_its_own() -> None:
    answers = Answers(answer(201))
    with answers.client() as payouts:
        for _ in range(100):
            payouts.create(EMAIL, 1)
    assert len(set(answers.idempotency_keys)) == 100


def test_balance_is_tried_again_and_has_no_key() -> None:
    answers = Answers(
        httpx.ReadError("broken"), answer(500), answer(429), answer(200, {"balance": 1, "payout_balance": 2})
    )
    with answers.client() as payouts:
        assert payouts.balance() == Balance(1, 2)
    assert answers.idempotency_keys == [None] * 4


@pytest.mark.parametrize("attempts", [1, 2, 7])
@pytest.mark.parametrize(
    ("status_code", "kind"),
    [
        (429, TooManyRequestsError),
        (500, ServerError),
        (502, NotReachedError),
        (503, NotReachedError),
        (504, NotReachedError),
        (None, NotReachedError),
    ],
)
def test_client_gives_up_after_its_attempts(
    waits: list[float], attempts: int, status_code: int | None, kind: type[GaveUpError]
) -> None:
    answers = Answers(httpx.ConnectError("broken") if status_code is None else answer(status_code))
    with answers.client(attempts=attempts) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1, "order-1")
    assert (type(refusal), refusal.status_code, refusal.idempotency_key) == (kind, status_code, "order-1")
    assert isinstance(refusal, GaveUpError)
    assert refusal.may_have_paid is (kind is NotReachedError)
    assert refusal.request_id == (None if status_code is None else REQUEST_ID)
    assert len(answers.requests) == attempts
    assert len(waits) == attempts - 1


def test_giving_up_tells_the_key_that_was_made_for_the_call() -> None:
    answers = Answers(httpx.ReadTimeout("broken"))
    with answers.client() as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert {refusal.idempotency_key} == set(answers.idempotency_keys)
    assert refusal.idempotency_key == str(UUID(refusal.idempotency_key))


@pytest.mark.parametrize(
    ("last", "kind"),
    [(answer(429), TooManyRequestsError), (answer(503), NotReachedError), (httpx.ReadError("broken"), NotReachedError)],
)
def test_last_error_is_the_one_that_is_told(
    last: httpx.Response | httpx.TransportError, kind: type[GaveUpError]
) -> None:
    with Answers(answer(500), answer(429), last).client(attempts=3) as payouts:
        assert type(refusal_of(payouts.create, EMAIL, 1)) is kind


def test_refusal_after_a_passing_error_ends_the_attempts() -> None:
    answers = Answers(answer(500), answer(403), answer(201))
    with answers.client() as payouts:
        assert type(refusal_of(payouts.create, EMAIL, 1)) is PayoutsDisabledError
    assert len(answers.requests) == 2


UNANSWERED: list[httpx.Response | httpx.TransportError] = [
    httpx.ConnectError("broken"),
    httpx.ReadTimeout("broken"),
    httpx.RemoteProtocolError("broken"),
    answer(201, []),
    answer(502),
    answer(503),
    answer(504),
]
after_no_answer = pytest.mark.parametrize("unanswered", UNANSWERED, ids=repr)


@after_no_answer
@pytest.mark.parametrize("status_code", [429, 500])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_passing_error_is_not_reached_once_an_attempt_went_unanswered(
    unanswered: httpx.Response | httpx.TransportError, status_code: int, place: int
) -> None:
    each: list[httpx.Response | httpx.TransportError] = [answer(status_code)] * 4
    each[place] = unanswered
    answers = Answers(*each)
    with answers.client(attempts=4) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert type(refusal) is NotReachedError
    assert str(refusal) == f"an attempt got no answer; the last one: {error_text(status_code)}"
    assert (refusal.status_code, refusal.request_id, refusal.errors) == (status_code, REQUEST_ID, {})
    assert refusal.may_have_paid is True
    assert answers.idempotency_keys == [refusal.idempotency_key] * 4


@after_no_answer
@pytest.mark.parametrize(
    ("status_code", "kind"),
    [
        (302, PayoutsError),
        (400, InvalidRequestError),
        (401, UnauthorizedError),
        (403, PayoutsDisabledError),
        (404, NotFoundError),
        (413, RequestTooLargeError),
        (418, PayoutsError),
        (422, IdempotencyKeyReusedError),
    ],
)
def test_refusal_keeps_its_class_once_an_attempt_went_unanswered(
    unanswered: httpx.Response | httpx.TransportError, status_code: int, kind: type[PayoutsError]
) -> None:
    answers = Answers(unanswered, answer(500), answer(status_code), answer(201))
    with answers.client() as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert (type(refusal), refusal.status_code, str(refusal)) == (kind, status_code, error_text(status_code))
    assert (refusal.request_id, refusal.may_have_paid) == (REQUEST_ID, True)
    assert answers.idempotency_keys == [refusal.idempotency_key] * 3


@pytest.mark.parametrize("status_code", [302, 400, 401, 403, 404, 413, 418, 422, 429, 500])
def test_nothing_may_have_been_paid_where_every_attempt_was_answered(status_code: int) -> None:
    with Answers(answer(500), answer(429), answer(status_code)).client(attempts=3) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1, "order-1")
    assert (refusal.may_have_paid, refusal.idempotency_key) == (False, "order-1")
    assert not isinstance(refusal, NotReachedError)


@after_no_answer
@pytest.mark.parametrize(("status_code", "kind"), [(401, UnauthorizedError), (429, TooManyRequestsError)])
def test_balance_never_pays(
    unanswered: httpx.Response | httpx.TransportError, status_code: int, kind: type[PayoutsError]
) -> None:
    with Answers(unanswered).client() as payouts:
        refusal = refusal_of(payouts.balance)
    assert type(refusal) is NotReachedError
    assert (refusal.may_have_paid, refusal.idempotency_key) == (False, None)
    with Answers(unanswered, answer(status_code)).client() as payouts:
        refusal = refusal_of(payouts.balance)
    assert (type(refusal), refusal.may_have_paid, refusal.idempotency_key) == (kind, False, None)


def test_one_call_s_lost_answer_is_not_told_of_the_next() -> None:
    with Answers(httpx.ReadError("broken"), answer(201), answer(500)).client(attempts=2) as payouts:
        assert payouts.create(EMAIL, 1) == HASH
        refusal = refusal_of(payouts.create, EMAIL, 1)
    assert (type(refusal), refusal.may_have_paid) == (ServerError, False)


def test_so_many_attempts_do_not_overflow(waits: list[float]) -> None:
    # 2^1024 is no float any more.
    answers = Answers(answer(500))
    with answers.client(attempts=1100) as payouts:
        assert type(refusal_of(payouts.balance)) is ServerError
    assert len(answers.requests) == 1100
    assert len(waits) == 1099
    assert all(0 <= wait <= BACKOFF_MAX_S for wait in waits)


def test_attempts_without_end_are_made_until_an_answer() -> None:
    with Answers(answer(500), httpx.ReadError("broken"), answer(201)).client(attempts=10**30) as payouts:
        assert payouts.create(EMAIL, 1) == HASH


def copies_of(refusal: PayoutsError) -> list[PayoutsError]:
    pickled = [pickle.dumps(refusal, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    return [copy.copy(refusal), copy.deepcopy(refusal), *map(pickle.loads, pickled)]


ERRORS: list[httpx.Response | httpx.TransportError] = [
    httpx.ReadError("broken"),
    answer(400, {"email": ["text", "other"]}),
    answer(400, {"error": "Insufficient payout balance"}),
    *map(answer, (401, 403, 404, 413, 418, 422, 429, 500, 503)),
]


@pytest.mark.parametrize("first", [answer(500), httpx.ReadError("broken")], ids=repr)
@pytest.mark.parametrize("last", ERRORS, ids=repr)
def test_errors_can_be_pickled_and_copied(
    first: httpx.Response | httpx.TransportError, last: httpx.Response | httpx.TransportError
) -> None:
    with Answers(first, last).client(attempts=2) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
    for other in copies_of(refusal):
        assert other is not refusal
        assert (type(other), str(other), other.args) == (type(refusal), str(refusal), refusal.args)
        assert vars(other) == vars(refusal)


@pytest.mark.parametrize("attempts", [0, -1])
def test_less_than_one_attempt_is_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match="attempts"):
        Payouts("http://payouts.test", KEY, attempts=attempts)


def test_backoff_grows_is_spread_and_is_bounded(waits: list[float]) -> None:
    with Answers(answer(500)).client(attempts=12) as payouts:
        for _ in range(200):
            refusal_of(payouts.create, EMAIL, 1)
    by_attempt = [waits[number::11] for number in range(11)]
    longest = [max(each) for each in by_attempt]
    assert all(0 <= wait <= BACKOFF_MAX_S for wait in waits)
    # Of 200 draws up to twice as much, one is longer than all before (but for a chance of 2^-200).
    assert longest[:5] == sorted(longest[:5])
    assert longest[0] < 1
    assert longest[-1] > BACKOFF_MAX_S / 2
    # Callers who failed together do not come back together.
    assert all(len(set(each)) == 200 and min(each) < max(each) / 2 for each in by_attempt)


# Behind a proxy that breaks calls


class Breakage(Enum):
    """What becomes of a call."""

    DROPPED = auto()
    """It never reaches the server: the connection is closed."""
    UNANSWERED = auto()
    """The server answers, and the connection is closed in place of its answer."""
    RESET = auto()
    """The same, with a reset."""
    CUT = auto()
    """Half of the server's answer arrives."""
    SILENT = auto()
    """The server answers, and nothing arrives for longer than the client waits."""
    UNAVAILABLE = auto()
    """The server answers, and the proxy says 503."""


REACHES_THE_SERVER = [each for each in Breakage if each is not Breakage.DROPPED]


class Proxy(ThreadingHTTPServer):
    """Stands before the real server; breaks the first calls, one as each breakage says, and lets all later ones by.

    A status in place of a breakage is answered without a call to the server.
    """

    def __init__(self, target: str, breakages: list[Breakage | int]) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.target = target
        self.breakages = breakages
        self.idempotency_keys: list[str | None] = []
        self.end = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base's)
        """Say nothing."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: self.headers[name] for name in ("Authorization", "Idempotency-Key") if name in self.headers}
        self.server.idempotency_keys.append(headers.get("Idempotency-Key"))
        breakage = self.server.breakages.pop(0) if self.server.breakages else None
        if breakage is Breakage.DROPPED:
            return
        if isinstance(breakage, int):
            self._answer(breakage, json.dumps({"error": error_text(int(breakage))}).encode())
            return
        real = httpx.request(self.command, self.server.target + self.path, content=body, headers=headers, timeout=30)
        if breakage is Breakage.RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif breakage is Breakage.SILENT:
            self.server.end.wait(60)
        elif breakage is Breakage.UNAVAILABLE:
            self._answer(503, b"<h1>Service Unavailable</h1>")
        elif breakage is Breakage.CUT:
            self._answer(real.status_code, real.content, cut_at=len(real.content) // 2)
        elif breakage is None:
            self._answer(real.status_code, real.content)

    def _answer(self, status_code: int, content: bytes, cut_at: int | None = None) -> None:
        self.send_response(status_code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut_at])


@contextmanager
def run_proxy(system: System, *breakages: Breakage | int) -> Iterator[Proxy]:
    with Proxy(system.base_url, list(breakages)) as proxy:
        thread = Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.end.set()
            proxy.shutdown()
            thread.join()


def open_client(proxy: Proxy, account: Account, *, attempts: int = 5) -> Payouts:
    """Open a client that waits long enough for an honest answer, and not for ever where none will come."""
    return Payouts(proxy.url, account.secret_key, attempts=attempts, timeout_s=1)


def test_proxy_that_breaks_nothing_lets_everything_by(system: System, account: Account) -> None:
    with run_proxy(system) as proxy, open_client(proxy, account) as payouts:
        assert payouts.create(EMAIL, 100) == hash_of(account)
        assert payouts.balance() == Balance(0, 999_900)
        assert type(refusal_of(payouts.create, EMAIL, 0)) is InvalidRequestError
    assert len(proxy.idempotency_keys) == 3


@pytest.mark.parametrize("breakage", Breakage)
def test_call_that_breaks_pays_once(system: System, account: Account, waits: list[float], breakage: Breakage) -> None:
    with run_proxy(system, breakage) as proxy, open_client(proxy, account) as payouts:
        assert payouts.create(EMAIL, 100) == hash_of(account)
    assert system.read_paid(account) == (1, 100)
    assert len(waits) == 1
    first, second = proxy.idempotency_keys
    assert first == second
    assert first is not None
    assert verify_books(system.database).balanced


def test_call_that_breaks_again_and_again_pays_once(system: System, account: Account) -> None:
    breakages = [each for each in Breakage if each is not Breakage.SILENT]
    with run_proxy(system, *breakages) as proxy, open_client(proxy, account, attempts=6) as payouts:
        assert payouts.create(EMAIL, 100, "order-1") == hash_of(account)
    assert proxy.idempotency_keys == ["order-1"] * 6
    assert system.read_paid(account) == (1, 100)


def test_calls_of_many_threads_that_break_pay_once_each(system: System, account: Account) -> None:
    breakages = [Breakage.UNANSWERED, Breakage.RESET, Breakage.CUT, Breakage.UNAVAILABLE, Breakage.DROPPED] * 4
    # So many attempts that no call can draw all the breakages that it needs to fail.
    with (
        run_proxy(system, *breakages) as proxy,
        open_client(proxy, account, attempts=21) as payouts,
        ThreadPoolExecutor(4) as threads,
    ):
        hashes = set(threads.map(lambda number: payouts.create(f"u{number}@example.com", 5), range(16)))
    assert hashes == {hash_of(account, f"u{number}@example.com") for number in range(16)}
    assert system.read_paid(account) == (16, 80)
    assert len(proxy.idempotency_keys) == 36
    assert len(set(proxy.idempotency_keys)) == 16


@pytest.mark.parametrize("breakage", [Breakage.UNANSWERED, Breakage.RESET, Breakage.CUT])
def test_call_that_was_given_up_can_be_made_again_with_its_key(
    system: System, account: Account, breakage: Breakage
) -> None:
    with run_proxy(system, *[breakage] * 3) as proxy, open_client(proxy, account, attempts=3) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 100)
        assert type(refusal) is NotReachedError
        assert system.read_paid(account) == (1, 100)
        assert payouts.create(EMAIL, 100, refusal.idempotency_key) == hash_of(account)
    assert system.read_paid(account) == (1, 100)
    assert set(proxy.idempotency_keys) == {refusal.idempotency_key}


PAID_AND_LOST = [Breakage.UNANSWERED, Breakage.RESET, Breakage.CUT, Breakage.UNAVAILABLE]


@pytest.mark.parametrize("breakage", PAID_AND_LOST)
@pytest.mark.parametrize(
    ("status_code", "kind"),
    [
        (429, NotReachedError),
        (500, NotReachedError),
        (401, UnauthorizedError),
        (403, PayoutsDisabledError),
    ],
)
def test_payment_whose_answer_is_lost_before_errors_is_paid_once_in_all(
    system: System, account: Account, breakage: Breakage, status_code: int, kind: type[PayoutsError]
) -> None:
    tried_again = kind is NotReachedError
    rest = [status_code] * (2 if tried_again else 1)
    with run_proxy(system, breakage, *rest) as proxy, open_client(proxy, account, attempts=3) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 100)
        assert (type(refusal), refusal.status_code, refusal.may_have_paid) == (kind, status_code, True)
        assert proxy.breakages == []
        assert system.read_paid(account) == (1, 100)
        assert payouts.create(EMAIL, 100, refusal.idempotency_key) == hash_of(account)
    assert system.read_paid(account) == (1, 100)
    assert proxy.idempotency_keys == [refusal.idempotency_key] * (4 if tried_again else 3)
    assert verify_books(system.database).balanced


@pytest.mark.parametrize("status_code", [401, 403, 429, 500])
def test_payment_that_never_arrived_before_errors_is_paid_once_in_all(
    system: System, account: Account, status_code: int
) -> None:
    with run_proxy(system, Breakage.DROPPED, status_code) as proxy, open_client(proxy, account, attempts=2) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 100)
        assert refusal.may_have_paid
        assert system.read_paid(account) == (0, 0)
        assert payouts.create(EMAIL, 100, refusal.idempotency_key) == hash_of(account)
    assert system.read_paid(account) == (1, 100)


def test_key_revoked_after_a_lost_answer_may_have_paid_and_another_key_pays_once_in_all(
    system: System, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def revoke(_: float) -> None:
        with system.database.transaction() as connection:
            api_keys.revoke_api_key(connection, account.api_key_id)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=revoke))
    with run_proxy(system, Breakage.UNANSWERED) as proxy, open_client(proxy, account) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 100)
    assert (type(refusal), str(refusal), refusal.may_have_paid) == (UnauthorizedError, "Unauthorized", True)
    assert system.read_paid(account) == (1, 100)
    with system.database.transaction() as connection:
        _, key = api_keys.create_api_key(connection, account.business.id, KeyKind.SECRET)
    with Payouts(system.base_url, key) as payouts:
        assert payouts.create(EMAIL, 100, refusal.idempotency_key) == hash_of(account)
    assert system.read_paid(account) == (1, 100)


def test_call_that_was_given_up_and_is_made_anew_pays_again(system: System, account: Account) -> None:
    with run_proxy(system, Breakage.UNANSWERED) as proxy, open_client(proxy, account, attempts=1) as payouts:
        refusal_of(payouts.create, EMAIL, 100)
        payouts.create(EMAIL, 100)
    assert system.read_paid(account) == (2, 200)


@pytest.mark.parametrize("breakage", REACHES_THE_SERVER)
def test_refusal_whose_answer_is_lost_is_told_the_second_time(
    system: System, account: Account, breakage: Breakage
) -> None:
    with run_proxy(system, breakage) as proxy, open_client(proxy, account) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1_000_001)
    assert (type(refusal), refusal.may_have_paid) == (InsufficientBalanceError, True)
    assert len(proxy.idempotency_keys) == 2
    assert system.read_paid(account) == (0, 0)


@pytest.mark.parametrize("breakage", [Breakage.DROPPED, Breakage.RESET, Breakage.CUT])
def test_balance_whose_answer_is_lost_is_asked_again(system: System, account: Account, breakage: Breakage) -> None:
    with run_proxy(system, breakage) as proxy, open_client(proxy, account) as payouts:
        assert payouts.balance() == Balance(0, 1_000_000)
    assert proxy.idempotency_keys == [None, None]


def test_server_that_is_not_there_is_not_reached(waits: list[float]) -> None:
    with Payouts(f"http://127.0.0.1:{find_free_port()}", KEY, attempts=3) as payouts:
        refusal = refusal_of(payouts.create, EMAIL, 1)
        assert type(refusal) is NotReachedError
        assert (refusal.status_code, refusal.request_id) == (None, None)
        assert type(refusal_of(payouts.balance)) is NotReachedError
    assert len(waits) == 4


# Secrets


def texts_of(refusal: Exception) -> str:
    """Return everything that a log would have of an error."""
    return "\n".join([str(refusal), repr(refusal), repr(vars(refusal)), *traceback.format_exception(refusal)])


@pytest.mark.parametrize("status_code", [None, 200, 302, 400, 401, 403, 404, 413, 422, 429, 500, 503])
def test_errors_repeat_neither_key_nor_email_nor_what_a_stranger_answers(status_code: int | None) -> None:
    # As an echo server would answer, or a proxy's page for an error.
    echo = json.dumps([KEY, EMAIL]).encode()
    broken = httpx.ConnectError(f"{KEY} {EMAIL}")
    with Answers(broken if status_code is None else httpx.Response(status_code, content=echo)).client() as payouts:
        texts = texts_of(refusal_of(payouts.create, EMAIL, 1))
    assert KEY not in texts
    assert EMAIL not in texts


def test_errors_of_the_real_server_repeat_neither_key_nor_email(account: Account, payouts: Payouts) -> None:
    payouts.create(EMAIL, 1, "order-1")
    refusals = [
        refusal_of(payouts.create, EMAIL, 2, "order-1"),
        refusal_of(payouts.create, EMAIL, 10_000_000),
        refusal_of(payouts.create, EMAIL, 0),
        refusal_of(payouts.create, f"{EMAIL} {EMAIL}", 1),
    ]
    texts = "\n".join(map(texts_of, refusals))
    assert account.secret_key not in texts
    assert EMAIL not in texts


def test_client_does_not_show_its_key(payouts: Payouts, account: Account) -> None:
    payouts.create(EMAIL, 1)
    inside = vars(payouts)["_client"]
    shown = f"{payouts!r} {payouts} {vars(payouts)!r} {payouts.balance()!r} {inside.headers!r} {vars(inside)!r}"
    assert account.secret_key not in shown


@pytest.mark.parametrize("last", [answer(401), answer(429), answer(503), httpx.ReadError(KEY)])
def test_no_error_shows_the_key(last: httpx.Response | httpx.TransportError) -> None:
    with Answers(httpx.ReadError(KEY), last).client(attempts=2) as payouts:
        for refusal in (refusal_of(payouts.create, EMAIL, 1), refusal_of(payouts.balance)):
            assert KEY not in texts_of(refusal)
            assert KEY.encode() not in pickle.dumps(refusal)


def test_key_is_sent_in_its_header_and_nowhere_else() -> None:
    answers = Answers(answer(201))
    with answers.client() as payouts:
        payouts.create(EMAIL, 1)
    (request,) = answers.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    del request.headers["authorization"]
    assert KEY not in f"{request.url} {request.content!r} {list(request.headers.items())}"
    assert EMAIL not in str(request.url)
