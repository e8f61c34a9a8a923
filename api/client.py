"""A client for integrators: `Payouts(url, key).create(email, amount)` pays once, whatever breaks on the way.

    from api.client import InsufficientBalanceError, Payouts

    with Payouts("https://payouts.example.com", "sk_live_…") as payouts:
        hash = payouts.create("user@example.com", 10000)  # cents

Errors, one for each that the HTTP contract documents:

    PayoutsError
    ├── UnauthorizedError               401
    ├── PayoutsDisabledError            403
    ├── InvalidRequestError             400, with `errors` by field
    ├── InsufficientBalanceError        400
    ├── NotFoundError                   404
    ├── RequestTooLargeError            413
    ├── IdempotencyKeyReusedError       422
    ├── ReferenceReusedError            422
    └── GaveUpError                     nothing but passing errors until the last attempt:
        ├── TooManyRequestsError        429
        ├── ServerError                 500
        └── NotReachedError             an attempt got no answer, and may have paid

Where `may_have_paid` is true, call again with the error's `idempotency_key`: the call pays once in all.
"""

import json
import re
import time
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from api.retries import choose_backoff_s, may_be_api_key, parse_server_url, read_retry_after_s

_BACKOFF_MAX_S = 10.0
_RETRY_AFTER_MAX_S = 60.0
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


class PayoutsError(Exception):
    """The call was not carried out; or, where `may_have_paid` is true, nobody knows."""

    def __init__(
        self,
        text: str,
        *,
        status_code: int | None = None,
        request_id: str | None = None,
        idempotency_key: str | None = None,
        errors: dict[str, list[str]] | None = None,
    ) -> None:
        super().__init__(text)
        self.status_code = status_code
        self.request_id = request_id
        """Name it when you ask for help."""
        self.idempotency_key = idempotency_key
        """Call again with it, and you pay once."""
        self.errors = errors or {}
        """What is wrong with each field."""
        self.may_have_paid = False
        """An attempt got no answer, so that it may have paid, or may still."""


class UnauthorizedError(PayoutsError):
    """The API key is missing, unknown, revoked, or not a secret one."""


class PayoutsDisabledError(PayoutsError):
    """Payouts are switched off for the business."""


class InvalidRequestError(PayoutsError):
    """Something sent is not valid; `errors` has the texts by field."""


class InsufficientBalanceError(PayoutsError):
    """The payout balance does not cover the amount."""


class NotFoundError(PayoutsError):
    """There is no such thing at this URL."""


class RequestTooLargeError(PayoutsError):
    """The request's body is too large."""


class IdempotencyKeyReusedError(PayoutsError):
    """The idempotency key has paid another e-mail or amount before."""


class ReferenceReusedError(PayoutsError):
    """The reference names a payment of another e-mail or amount."""


class GaveUpError(PayoutsError):
    """All attempts failed in a way that passes by itself."""


class TooManyRequestsError(GaveUpError):
    """Too many calls, with this key or in all. Nothing was moved, and no attempt went unanswered."""


class ServerError(GaveUpError):
    """The server failed. Nothing was debited, nothing ever will be, and no attempt went unanswered."""


class NotReachedError(GaveUpError):
    """An attempt got no answer that the server itself gave. It may have paid."""


_INSUFFICIENT_BALANCE = "Insufficient payout balance"
_REFERENCE_REUSED = "Reference was already used with different parameters"
_INTERNAL_ERROR = "Internal server error"
_ERROR_BY_STATUS: dict[int, type[PayoutsError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: PayoutsDisabledError,
    404: NotFoundError,
    413: RequestTooLargeError,
    422: IdempotencyKeyReusedError,
    429: TooManyRequestsError,
    500: ServerError,
}


@dataclass(frozen=True, slots=True)
class Balance:
    """A business's balances in cents; `payout_balance` is what is free to allocate now."""

    balance: int
    payout_balance: int


class Payouts:
    """Calls the API with a secret key; may be shared by threads. Connection errors, 429 and 500 are tried again."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        attempts: int = 5,
        timeout_s: float = 20.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare calls to the server at `url`.

        `attempts` are made in all, each with up to `timeout_s` for the answer; the server itself answers
        within about 10 s.
        """
        if attempts < 1:
            text = "attempts must be at least 1"
            raise ValueError(text)
        if not may_be_api_key(str(key or "")):
            text = "key must be an API key, such as sk_live_…"
            raise ValueError(text)
        if parse_server_url(url) is None:
            text = "url must be that of a server, such as https://payouts.example.com"
            raise ValueError(text)
        self._attempts = attempts
        self._client = httpx.Client(
            base_url=url,
            headers={
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/json",
                "User-Agent": "payouts-python/1",
            },
            timeout=timeout_s,
            transport=transport,
        )

    def create(
        self, email: str, amount: int, idempotency_key: str | None = None, *, reference: str | None = None
    ) -> str:
        """Pay `amount` cents to the person with this e-mail; return the payout user's hash.

        `reference` is your own name for the payment, such as an order's number: it pays once, in this call, in another,
        or in a row of a payout batch.

        Without an idempotency key one is made for this call, so that its own attempts pay once. Give one of yours,
        such as an order's number, where the call may be made again after a crash of your own.

        Raises:
            PayoutsError: nothing was paid, unless its `may_have_paid` is true.

        """
        key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        if not _IDEMPOTENCY_KEY.match(key):
            text = "idempotency_key must be 1 to 255 visible ASCII characters"
            raise ValueError(text)
        # ASCII, so that any text can be sent, also one that is no e-mail.
        named = {} if reference is None else {"reference": reference}
        body = json.dumps({"email": email, "amount": amount, **named}).encode()
        (hash_,) = self._call("POST", "/payout/create", {"hash": str}, key, content=body)
        return str(hash_)

    def balance(self) -> Balance:
        """Return what the business has.

        Raises:
            PayoutsError: it cannot be read.

        """
        return Balance(*self._call("GET", "/balance", {"balance": int, "payout_balance": int}))

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: str,
        path: str,
        shape: dict[str, type],
        idempotency_key: str | None = None,
        content: bytes | None = None,
    ) -> list[Any]:
        """Call until there is an answer; return the fields of `shape`, in its order."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        may_have_paid = False
        for attempt in range(1, self._attempts + 1):
            retry_after_s = 0.0
            try:
                response = self._client.request(method, path, headers=headers, content=content)
            except httpx.RequestError as broken:
                error: PayoutsError = NotReachedError(f"no answer from the server: {type(broken).__name__}")
            else:
                found = _read(response, shape)
                if not isinstance(found, PayoutsError):
                    return found
                error, retry_after_s = found, read_retry_after_s(response, _RETRY_AFTER_MAX_S)
            may_have_paid |= isinstance(error, NotReachedError) and idempotency_key is not None
            if not isinstance(error, GaveUpError):
                break
            if attempt < self._attempts:
                time.sleep(max(choose_backoff_s(attempt, _BACKOFF_MAX_S), retry_after_s))
        if may_have_paid and isinstance(error, GaveUpError) and not isinstance(error, NotReachedError):
            unanswered = NotReachedError(
                f"an attempt got no answer; the last one: {error}", status_code=error.status_code
            )
            unanswered.request_id = error.request_id
            error = unanswered
        error.idempotency_key = idempotency_key
        error.may_have_paid = may_have_paid
        raise error


def _read(response: httpx.Response, shape: dict[str, type]) -> list[Any] | PayoutsError:
    """Return the fields of an answer, or what went wrong."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        answer = {}
    values = [answer.get(name) for name in shape]
    if response.is_success and all(map(isinstance, values, shape.values())):
        return values
    return _make_error(response, answer)


def _make_error(response: httpx.Response, answer: dict[str, Any]) -> PayoutsError:
    status_code = response.status_code
    said = answer.get("error")
    text = said if isinstance(said, str) else f"the server answered {status_code}"
    kind = _ERROR_BY_STATUS.get(status_code, PayoutsError)
    errors: dict[str, list[str]] = {}
    if response.is_success:
        kind, text = NotReachedError, f"the answer {status_code} cannot be read"
    elif status_code == 408 or (status_code >= 500 and (status_code, said) != (500, _INTERNAL_ERROR)):
        # Not the server's own words: what stands in front of it got no answer, or lost it.
        kind = NotReachedError
    elif status_code == 400 and said == _INSUFFICIENT_BALANCE:
        kind = InsufficientBalanceError
    elif status_code == 422 and said == _REFERENCE_REUSED:
        kind = ReferenceReusedError
    elif status_code == 400 and said is None and all(map(_are_texts, answer.values())) and answer:
        errors = answer
        text = " ".join(text for texts in errors.values() for text in texts) or text
    return kind(text, status_code=status_code, request_id=response.headers.get("x-request-id"), errors=errors)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
