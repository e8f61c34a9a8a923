"""The server as `payouts push` calls it: hands batches in, asks after them, copies results, and tries again."""

import csv
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TypeVar

import httpx
import msgspec
import rich_click as click

from api.batches.files import Part, PushError, PushLimits
from api.cli.push_preview import Preview
from api.retries import choose_backoff_s, may_be_api_key, parse_server_url, read_retry_after_s
from core.batches.payout_batch import RowOutcome

_Found = TypeVar("_Found")

RESULT_COLUMNS = [
    "row", "email", "amount_cents", "amount_dollars", "reference", "outcome", "hash", "transaction",
]  # fmt: skip
_BATCHES_PATH = "/payout/batches"
_PREVIEW_PATH = "/payout/batches/preview"
_BACKOFF_MAX_S = 5.0
_RETRY_AFTER_MAX_S = 30.0
_RETRIES_BEFORE_NOTICE = 3
_TIMEOUT = httpx.Timeout(20.0, connect=10.0)
# The server itself gives up on taking a batch in after 60 s.
_SEND_TIMEOUT = httpx.Timeout(90.0, connect=10.0)


class _PassingError(Exception):
    """A call failed in a way that passes by itself; the text says how."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class RefusedError(Exception):
    """The server refused a call: the text is its own, or `errors` has its texts by field."""

    def __init__(self, text: str, errors: dict[str, list[str]]) -> None:
        super().__init__(text)
        self.errors = errors


class Batch(msgspec.Struct):
    """A payout batch, as far as a push looks at it."""

    id: str
    status: str
    total: int
    amount: int
    processed: int
    created_at: str
    finished_at: str | None
    already_paid: int


class Server:
    """Calls the API. What fails in a way that passes is tried again, for as long as patience lasts."""

    def __init__(self, url: str, key: str, limits: PushLimits) -> None:
        if not may_be_api_key(key):
            text = "--key must be an API key, such as sk_live_…"
            raise PushError(text)
        self._key = key
        self._limits = limits
        self._was_reached = False
        self._client = httpx.Client(
            base_url=_check_url(url),
            headers={"Authorization": f"Bearer {key}", "User-Agent": "payouts-push/1"},
            timeout=_TIMEOUT,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def read_batch(self, batch_id: str) -> Batch:
        """Return how far a batch is."""
        return self._ask(f"{_BATCHES_PATH}/{batch_id}", Batch)

    def send(self, body: bytes, idempotency_key: str) -> tuple[Batch, bool]:
        """Hand a batch in as NDJSON; return it, and whether an earlier call did so already."""
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key}

        def attempt() -> tuple[Batch, bool]:
            response = self._client.post(_BATCHES_PATH, content=body, headers=headers, timeout=_SEND_TIMEOUT)
            return self._decode(response, Batch), "Idempotent-Replayed" in response.headers

        return self._retry(attempt)

    def preview(self, body: bytes, idempotency_key: str) -> Preview:
        """Return what a batch would do; nothing is handed in."""
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key}

        def attempt() -> Preview:
            response = self._client.post(_PREVIEW_PATH, content=body, headers=headers, timeout=_SEND_TIMEOUT)
            return self._decode(response, Preview)

        return self._retry(attempt)

    def copy_results(self, batch_id: str, write: Callable[[Iterator[list[str]]], _Found]) -> _Found:
        """Let `write` have a batch's results, row by row; again from the first one where they break off."""

        def attempt() -> _Found:
            with self._stream(f"{_BATCHES_PATH}/{batch_id}/results", "text/csv") as response:
                return write(csv.reader(_split_lines(response.iter_bytes())))

        return self._retry(attempt)

    @contextmanager
    def _stream(self, path: str, media_type: str) -> Iterator[httpx.Response]:
        with self._client.stream("GET", path, headers={"Accept": media_type}) as response:
            if not response.is_success:
                response.read()
            self._check(response)
            yield response

    def _ask(self, path: str, kind: type[_Found]) -> _Found:
        return self._retry(lambda: self._decode(self._client.get(path), kind))

    def _retry(self, attempt: Callable[[], _Found]) -> _Found:
        give_up_at: float | None = None
        for number in itertools.count():
            try:
                found = attempt()
            except httpx.RequestError as error:
                trouble = _PassingError(f"no answer from {self._address} ({type(error).__name__})")
            except _PassingError as error:
                trouble = error
            else:
                self._was_reached = True
                return found
            patience_s = self._limits.patience_s
            if not self._was_reached:
                patience_s = min(patience_s, self._limits.first_patience_s)
            now = time.monotonic()
            give_up_at = give_up_at or now + patience_s
            if now >= give_up_at:
                text = f"Gave up after {patience_s:g} s: {trouble}."
                raise PushError(text)
            if number == _RETRIES_BEFORE_NOTICE:
                click.echo(f"Trying again for up to {patience_s:g} s: {trouble}.")
            backoff_s = choose_backoff_s(number, _BACKOFF_MAX_S)
            time.sleep(min(max(backoff_s, trouble.retry_after_s), give_up_at - now))
        raise AssertionError

    @property
    def _address(self) -> str:
        url = self._client.base_url
        return f"{url.scheme}://{url.netloc.decode()}"

    def _decode(self, response: httpx.Response, kind: type[_Found]) -> _Found:
        self._check(response)
        return self._decode_text(response.content, kind)

    @staticmethod
    def _decode_text(content: bytes | str, kind: type[_Found]) -> _Found:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = "the server's answer cannot be read"
            raise _PassingError(text) from None

    def _check(self, response: httpx.Response) -> None:
        status_code = response.status_code
        if response.is_success:
            return
        if status_code in {408, 429} or status_code >= 500:
            text = f"the server answered {status_code}"
            raise _PassingError(text, read_retry_after_s(response, _RETRY_AFTER_MAX_S))
        # A stranger may answer with what it was asked.
        said = response.text.replace(self._key, "…")
        try:
            error = msgspec.json.decode(said, type=dict[str, str | list[str]])
        except (msgspec.DecodeError, RecursionError):
            error = {}
        errors = {name: texts for name, texts in error.items() if isinstance(texts, list)}
        words = error.get("error")
        raise RefusedError(words if isinstance(words, str) else f"the server answered {status_code}", errors)


def renumber(rows: Iterator[list[str]], part: Part, file: TextIOWrapper) -> int:
    """Write a batch's results with the row numbers of the whole file; return how many rows are paid."""
    width = len(RESULT_COLUMNS)
    outcome = RESULT_COLUMNS.index("outcome")
    writer = csv.writer(file)
    count = paid = 0
    try:
        if next(rows, [])[:width] != RESULT_COLUMNS:
            raise ValueError
        for cells in rows:
            writer.writerow([part.first + int(cells[0]), *cells[1:width]])
            count += 1
            paid += cells[outcome] in {RowOutcome.ALLOCATED, RowOutcome.ALREADY_PAID}
        if count != part.end - part.first:
            raise ValueError
    except (ValueError, IndexError, csv.Error):
        text = "the results cannot be read"
        raise _PassingError(text) from None
    return paid


def _check_url(url: str) -> httpx.URL:
    parsed = parse_server_url(url)
    if parsed is None or parsed.userinfo:
        text = "--url must be that of a server, such as https://payouts.example.com"
        raise PushError(text)
    return parsed


def _split_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield lines as `csv` wants them: with their ends, and split at line feeds alone."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() + "\n" for line in lines)
    if rest:
        yield rest.decode()
