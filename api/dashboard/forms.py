"""What browsers send in forms: read within limits, and checked to come from a page of ours."""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import multipart

from api.web.request import HttpRequest
from api.web.request_body import read_body
from core.ids import new_id
from core.money import format_dollars

BODY_MAX_BYTES = 65_536
_FIELDS_MAX = 50
_CSRF_FIELD = "csrf_token"
_ID_FIELD = "form_id"
_HEX_ID = re.compile(r"[0-9a-f]{32}\Z")
_DOLLARS = re.compile(r"\$?\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,17})(\.[0-9]*)?\Z")


class FormError(Exception):
    """A field of a form is wrong; the text says how, for people."""


class ForeignFormError(Exception):
    """The form does not come from a page of ours, or from one that is out of date."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields, and the id that tells whether it was sent before."""

    id: UUID
    values: Mapping[str, str]

    def text(self, name: str) -> str:
        """Return a field without the white space around it; empty where there is none."""
        return self.values.get(name, "").strip()

    def raw(self, name: str) -> str:
        """Return a field as it was typed."""
        return self.values.get(name, "")

    def cents(self, name: str, *, least: int, most: int) -> int:
        """Return an amount that was typed in dollars.

        Raises:
            FormError: it is none, or is out of bounds.

        """
        return read_dollars(self.text(name), least=least, most=most)


class FormTokens:
    """Tokens that only a page of ours can have put into a form, for whoever holds a cookie."""

    def __init__(self, hash_secret: bytes) -> None:
        self._key = hmac.digest(hash_secret, b"payouts form tokens\0", "sha256")

    def make(self, cookie: str) -> str:
        """Make the token for a session's id, or for the visitor's who is not signed in."""
        return hmac.digest(self._key, cookie.encode(), "sha256").hex()

    def check(self, request: HttpRequest, cookie: str, values: Mapping[str, str]) -> UUID:
        """Return the form's id.

        Raises:
            ForeignFormError: the browser says that another site sent it, or the token is not this cookie's.

        """
        check_origin(request)
        token, id_ = values.get(_CSRF_FIELD, ""), values.get(_ID_FIELD, "")
        if not hmac.compare_digest(token.encode(), self.make(cookie).encode()) or not _HEX_ID.match(id_):
            raise ForeignFormError
        return UUID(hex=id_)


def new_form_id() -> str:
    """Make the id of a form on a page that is being shown."""
    return new_id().hex


def check_origin(request: HttpRequest) -> None:
    """Refuse what a browser says was sent by another site; old browsers and programs say nothing.

    Raises:
        ForeignFormError: it says so.

    """
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        raise ForeignFormError
    origin = request.headers.get("origin")
    # A server in front may speak https for us, so that only the name can be compared.
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise ForeignFormError


async def read_fields(request: HttpRequest) -> dict[str, str]:
    """Read an ordinary form; of a field that is there twice, the first counts.

    Raises:
        ForeignFormError: it is none that a page of ours would send.

    """
    body = await read_body(request)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict")
    except ValueError:
        raise ForeignFormError from None
    if any("\0" in value for _, value in pairs):
        raise ForeignFormError
    return dict(reversed(pairs))


@dataclass(frozen=True, slots=True)
class SentFiles:
    """A form that carries files: its fields, and the content and names of its files by field."""

    values: Mapping[str, str]
    files: Mapping[str, bytes]
    file_names: Mapping[str, str]


def parse_upload(body: bytes, content_type: str) -> SentFiles:
    """Read a form that carries files; all of it is in memory already.

    Raises:
        ForeignFormError: it is none that a page of ours would send.

    """
    kind, options = multipart.parse_options_header(content_type)
    if kind != "multipart/form-data" or "boundary" not in options:
        raise ForeignFormError
    values: dict[str, str] = {}
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}
    segment: multipart.MultipartSegment | None = None
    parts: list[bytes] = []
    try:
        with multipart.PushMultipartParser(options["boundary"], max_segment_count=_FIELDS_MAX) as parser:
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    segment, parts = event, []
                elif event:
                    parts.append(bytes(event))
                elif segment is not None:
                    content = b"".join(parts)
                    if segment.filename is None:
                        values.setdefault(segment.name, content.decode())
                    else:
                        files.setdefault(segment.name, content)
                        names.setdefault(segment.name, segment.filename)
                    segment = None
    except ValueError:  # multipart's errors are such
        raise ForeignFormError from None
    return SentFiles(values, files, names)


def read_dollars(text: str, *, least: int, most: int) -> int:
    """Read an amount in dollars, such as `1,234.56`, as cents; nothing is rounded.

    Raises:
        FormError: it is none, or is out of bounds.

    """
    if not text:
        error = "Enter an amount."
        raise FormError(error)
    match = _DOLLARS.match(text)
    if match is None:
        error = "Enter an amount in dollars, for instance 1,234.56."
        raise FormError(error)
    whole, decimals = match[1].replace(",", ""), (match[2] or "").lstrip(".")
    if len(decimals) > 2:
        error = "An amount has at most two decimals."
        raise FormError(error)
    cents = int(Decimal(f"{whole}.{decimals or '0'}") * 100)
    if not least <= cents <= most:
        error = f"Enter an amount from {format_dollars(least)} to {format_dollars(most)}."
        raise FormError(error)
    return cents
