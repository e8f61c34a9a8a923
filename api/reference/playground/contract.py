"""The contract by example: calls with their answers, as the page at `/docs/contract` shows them.

The tests read the page and make every call in it against a running server. What stands between the lines of two
examples is in `before`; what the business or the server must be like, in `situation`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from api.reference.playground.operations import write_json
from api.resources.payout_users import STATUS_INVALID
from api.web import responses
from api.web.responses import Refusal
from api.web.validation import (
    AMOUNT_INTEGER,
    AMOUNT_MAX,
    AMOUNT_MIN,
    AMOUNT_REQUIRED,
    EMAIL_FORMAT,
    EMAIL_MAX,
    EMAIL_REQUIRED,
    EMAIL_STRING,
    REFERENCE_CONTROL,
    REFERENCE_MAX,
    REFERENCE_STRING,
)

KEY = "sk_test_…"
LONG = "…"
"""Stands for more than fits a page, inside a body."""

_HASH = "6ba7b7c74572e4e4ac38e32cd523cdcb3cb3a49cff14624f2aa798530c00c4a7"
_BATCH = "bat_0199f6d2c5aa7d22c3d4e5f607182930"
_TIME = "2026-11-01T12:00:00.123456Z"
_BODY = '{"email": "user@example.com", "amount": 10000}'
_NAMED = '{"email": "user@example.com", "amount": 10000, "reference": "order-1234"}'
_ROWS = '{"allocations": [{"email": "user@example.com", "amount": 10000, "reference": "order-1234"}]}'


class Situation(StrEnum):
    """What must be the case for an example's answer."""

    READY = "ready"
    """The business has money, payouts are enabled, the key is live."""
    EMPTY = "empty"
    """Its payout balance is 0."""
    DISABLED = "disabled"
    """Payouts are disabled."""
    KEYS_REQUIRED = "keys required"
    """The business asks for an idempotency key or a reference with every payment."""
    REVOKED = "revoked"
    """The key has just been revoked."""
    INACTIVE = "inactive"
    """The payout user has been deactivated."""
    LIMITED = "limited"
    """The key has used up its rate limit."""
    NO_WORKERS = "no workers"
    """Nothing works off what is in the queue."""


@dataclass(frozen=True, slots=True)
class Example:
    """One call with its answer."""

    title: str
    method: str
    path: str
    status_code: int
    answer: Any
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    answer_headers: dict[str, str] = field(default_factory=dict)
    authorization: str | None = f"Bearer {KEY}"
    situation: Situation = Situation.READY
    before: str | None = None
    """The example whose call was made just before, by the same business."""

    @property
    def request_text(self) -> str:
        """The call as lines of HTTP."""
        headers = {"Authorization": self.authorization} if self.authorization else {}
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        return _write_lines(f"{self.method} {self.path}", {**headers, **self.headers}, self.body)

    @property
    def answer_text(self) -> str:
        """The answer as lines of HTTP."""
        first = f"{self.status_code} {HTTPStatus(self.status_code).phrase}"
        answer = self.answer if isinstance(self.answer, str) else write_json(self.answer)
        return _write_lines(first, self.answer_headers, answer)


def _write_lines(first: str, headers: dict[str, str], body: str | None) -> str:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return "\n".join(lines if body is None else [*lines, "", body])


def _pay(title: str, status_code: int, answer: Any, body: str = _BODY, **more: Any) -> Example:
    return Example(title, "POST", "/payout/create", status_code, answer, body, **more)


def _refused(title: str, refusal: Refusal, method: str = "POST", path: str = "/payout/create", **more: Any) -> Example:
    if method == "POST":
        more.setdefault("body", _BODY)
    answer, headers = {"error": refusal.error}, more.pop("answer_headers", refusal.headers)
    return Example(title, method, path, refusal.status_code, answer, answer_headers=headers, **more)


_OWN_USER = {
    "email": "user@example.com",
    "balance": 10000,
    "currency": "USD",
    "status": "active",
    "created_at": _TIME,
    "updated_at": _TIME,
}
_QUEUED = {
    "id": _BATCH,
    "status": "queued",
    "total": 1,
    "amount": 10000,
    "processed": 0,
    "allocated_amount": 0,
    "created_at": _TIME,
    "updated_at": _TIME,
    "finished_at": None,
    "already_paid": 0,
}
_ALREADY_PAID = {
    **_QUEUED,
    "status": "completed",
    "amount": 0,
    "processed": 1,
    "finished_at": _TIME,
    "already_paid": 1,
}

EXAMPLES: dict[str, Example] = {
    # Rules for every call
    "not-found": _refused("No such call", responses.NOT_FOUND, "GET", "/payout/nothing", authorization=None),
    "method-not-allowed": _refused(
        "Not with this method",
        responses.METHOD_NOT_ALLOWED,
        "GET",
        "/payout/create",
        answer_headers={"Allow": "POST"},
    ),
    "too-large": _refused(
        "The body is larger than 64 KiB (32 MiB for a batch)",
        responses.BODY_TOO_LARGE,
        body='{"email": "user@example.com", "amount": 10000, "note": "' + LONG + '"}',
    ),
    "not-an-object": _refused("The body is not a JSON object", responses.NOT_AN_OBJECT, body="[10000]"),
    # Authentication
    "no-key": _refused("No key", responses.UNAUTHORIZED, authorization=None),
    "public-key": _refused("A public key", responses.UNAUTHORIZED, authorization="Bearer pk_test_…"),
    "revoked-key": _refused("A key that was revoked", responses.UNAUTHORIZED, situation=Situation.REVOKED),
    "hash": Example(
        "With a hash that is right",
        "GET",
        "/payout/user",
        200,
        _OWN_USER,
        headers={"X-Payout-Hash": _HASH},
        authorization=None,
        before="created",
    ),
    "hash-unknown": _refused(
        "A hash that nobody has",
        responses.HASH_UNAUTHORIZED,
        "GET",
        "/payout/user",
        headers={"X-Payout-Hash": "0" * 64},
        authorization=None,
    ),
    "hash-inactive": _refused(
        "The hash of a user who was deactivated",
        responses.HASH_UNAUTHORIZED,
        "GET",
        "/payout/user",
        headers={"X-Payout-Hash": _HASH},
        authorization=None,
        situation=Situation.INACTIVE,
        before="created",
    ),
    # POST /payout/create
    "created": _pay("Paid", 201, {"hash": _HASH}),
    "disabled": _refused("Payouts are off", responses.PAYOUTS_DISABLED, situation=Situation.DISABLED),
    "insufficient": _refused("More than the payout balance", responses.INSUFFICIENT_BALANCE, situation=Situation.EMPTY),
    "failed": _refused(
        "Something broke, and nothing was debited", responses.INTERNAL_ERROR, situation=Situation.NO_WORKERS
    ),
    # Field errors
    "required": _pay(
        "Fields are missing, null or empty",
        400,
        {"email": [EMAIL_REQUIRED], "amount": [AMOUNT_REQUIRED]},
        '{"email": " ", "amount": null}',
    ),
    "format": _pay(
        "An e-mail that cannot be, an amount below 1",
        400,
        {"email": [EMAIL_FORMAT], "amount": [AMOUNT_MIN]},
        '{"email": "user@example", "amount": 0}',
    ),
    "type": _pay(
        "Not a string, not an integer",
        400,
        {"email": [EMAIL_STRING, EMAIL_FORMAT], "amount": [AMOUNT_INTEGER]},
        '{"email": 7, "amount": "10000"}',
    ),
    "long": _pay(
        "More than 255 characters, more than 1,000,000 dollars",
        400,
        {"email": [EMAIL_FORMAT, EMAIL_MAX], "amount": [AMOUNT_MAX]},
        '{"email": "' + LONG + '@example.com", "amount": 100000001}',
    ),
    "fraction": _pay(
        "Half a cent",
        400,
        {"amount": [AMOUNT_INTEGER, AMOUNT_MIN]},
        '{"email": "user@example.com", "amount": 0.5}',
    ),
    # Idempotency
    "key-first": _pay("The first call", 201, {"hash": _HASH}, headers={"Idempotency-Key": "order-1234"}),
    "key-again": _pay(
        "The same call again: nothing is moved",
        201,
        {"hash": _HASH},
        headers={"Idempotency-Key": "order-1234"},
        answer_headers={"Idempotent-Replayed": "true"},
        before="key-first",
    ),
    "key-reused": _refused(
        "The same key with another amount",
        responses.IDEMPOTENCY_KEY_REUSED,
        body='{"email": "user@example.com", "amount": 20000}',
        headers={"Idempotency-Key": "order-1234"},
        before="key-first",
    ),
    "key-malformed": _refused(
        "A key with a space in it", responses.IDEMPOTENCY_KEY_MALFORMED, headers={"Idempotency-Key": "order 1234"}
    ),
    # References
    "reference-first": _pay("The first call with a reference", 201, {"hash": _HASH}, _NAMED),
    "reference-again": _pay(
        "The same reference again, whatever its key: nothing is moved",
        201,
        {"hash": _HASH},
        _NAMED,
        headers={"Idempotency-Key": "another-key"},
        answer_headers={"Idempotent-Replayed": "true"},
        before="reference-first",
    ),
    "key-required": _refused(
        "Neither a key nor a reference, where the business requires one",
        responses.IDEMPOTENCY_KEY_REQUIRED,
        situation=Situation.KEYS_REQUIRED,
    ),
    "reference-type": _pay(
        "A reference that is no string",
        400,
        {"reference": [REFERENCE_STRING]},
        '{"email": "user@example.com", "amount": 10000, "reference": 1234}',
    ),
    "reference-text": _pay(
        "A reference of more than 255 characters, with a control character",
        400,
        {"reference": [REFERENCE_MAX, REFERENCE_CONTROL]},
        '{"email": "user@example.com", "amount": 10000, "reference": "' + LONG + '\\u0000!"}',
    ),
    "reference-reused": _refused(
        "The same reference with another amount",
        responses.REFERENCE_REUSED,
        body='{"email": "user@example.com", "amount": 20000, "reference": "order-1234"}',
        before="reference-first",
    ),
    "repeated": _pay(
        "A field that is named twice",
        400,
        {"amount": ["The amount field must be given once."]},
        '{"email": "user@example.com", "amount": 1, "amount": 10000}',
    ),
    # Rate limits
    "too-many": _refused(
        "One call too many",
        responses.TOO_MANY_REQUESTS,
        "GET",
        "/balance",
        situation=Situation.LIMITED,
    ),
    # Reading
    "balance": Example("Balances", "GET", "/balance", 200, {"balance": 0, "payout_balance": 1000000}),
    "limit": Example(
        "A page of more than 100 rows",
        "GET",
        "/payout/users?limit=101",
        400,
        {"limit": ["The limit may not be greater than 100."]},
    ),
    "user-not-found": _refused(
        "A user whom there is not", responses.NOT_FOUND, "GET", "/payout/users/usr_0199f6d2c5a87bb3a1e0c1d2e3f40516"
    ),
    "status": Example(
        "A status that there is not",
        "PATCH",
        "/payout/users/usr_0199f6d2c5a87bb3a1e0c1d2e3f40516",
        400,
        {"status": [STATUS_INVALID]},
        '{"status": "asleep"}',
        before="created",
    ),
    "parameter": Example(
        "A parameter that there is not",
        "GET",
        "/payout/transactions?form=2026-11-01",
        400,
        {"form": ["The form parameter is not known."]},
    ),
    # Batches
    "batch": Example(
        "Accepted, and funded",
        "POST",
        "/payout/batches",
        202,
        _QUEUED,
        _ROWS,
        answer_headers={"Location": f"/payout/batches/{_BATCH}"},
    ),
    "batch-rows": Example(
        "A row is wrong: nothing is accepted",
        "POST",
        "/payout/batches",
        400,
        {"allocations.1.email": ["The allocations.1.email must be a valid email address."]},
        '{"allocations": [{"email": "user@example.com", "amount": 10000}, {"email": "user", "amount": 10000}]}',
    ),
    "batch-already-paid": Example(
        "All rows are already paid: there is nothing to do",
        "POST",
        "/payout/batches",
        202,
        _ALREADY_PAID,
        _ROWS,
        answer_headers={"Location": f"/payout/batches/{_BATCH}"},
        before="reference-first",
    ),
    "batch-insufficient": _refused(
        "The total is more than the payout balance",
        responses.INSUFFICIENT_BALANCE,
        path="/payout/batches",
        body=_ROWS,
        situation=Situation.EMPTY,
    ),
    "batch-not-found": _refused("A batch that there is not", responses.NOT_FOUND, "GET", f"/payout/batches/{_BATCH}"),
}
"""By name, which is the example's anchor on the page."""
