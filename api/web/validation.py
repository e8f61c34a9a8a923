"""What a caller may send: bodies are decoded strictly, and every broken rule is reported at once."""

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from core.batches.payout_batch import REFERENCE_MAX_CHARACTERS
from core.emails import EMAIL_MAX_CHARACTERS, normalise_email
from core.money import ALLOCATION_MAX_CENTS

FieldErrors = dict[str, list[str]]

_REQUIRED = "The {} field is required."
_EMAIL_STRING = "The {} must be a string."
_EMAIL_FORMAT = "The {} must be a valid email address."
_EMAIL_MAX = f"The {{}} may not be greater than {EMAIL_MAX_CHARACTERS} characters."
_AMOUNT_INTEGER = "The {} must be an integer."
_AMOUNT_MIN = "The {} must be at least 1."
_AMOUNT_MAX = f"The {{}} may not be greater than {ALLOCATION_MAX_CENTS}."
_REFERENCE_STRING = "The {} must be a string."
_REFERENCE_MAX = f"The {{}} may not be greater than {REFERENCE_MAX_CHARACTERS} characters."
_REFERENCE_CONTROL = "The {} may not contain control characters."
_GIVEN_ONCE = "The {} field must be given once."

EMAIL_REQUIRED = _REQUIRED.format("email")
EMAIL_STRING = _EMAIL_STRING.format("email")
EMAIL_FORMAT = _EMAIL_FORMAT.format("email")
EMAIL_MAX = _EMAIL_MAX.format("email")
AMOUNT_REQUIRED = _REQUIRED.format("amount")
AMOUNT_INTEGER = _AMOUNT_INTEGER.format("amount")
AMOUNT_MIN = _AMOUNT_MIN.format("amount")
AMOUNT_MAX = _AMOUNT_MAX.format("amount")
REFERENCE_STRING = _REFERENCE_STRING.format("reference")
REFERENCE_MAX = _REFERENCE_MAX.format("reference")
REFERENCE_CONTROL = _REFERENCE_CONTROL.format("reference")

_EXPONENT_DIGITS_MAX = 6
# Halves of characters outside the Basic Multilingual Plane, which JSON can name alone, are no characters either.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FIELDS = ("email", "amount", "reference")
_NAMES = tuple(f'"{name}"'.encode() for name in _FIELDS)


class PayoutRequest(msgspec.Struct, frozen=True):
    """A valid body of `POST /payout/create`; the e-mail is normalised, the amount in cents, the reference trimmed."""

    email: str
    amount: int
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class NotAnObject:
    """The body is not a JSON object."""


class Fields(dict[str, Any]):
    """The fields of a JSON object; of one that is named several times, the last value."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: set[str] = set()
        if len(self) < len(pairs):
            names = [name for name, _ in pairs]
            self.repeated = {name for name in self if names.count(name) > 1}

    def repetitions(self, *names: str) -> FieldErrors:
        """Return what is to be said of those of the fields that are named several times."""
        return {name: [_GIVEN_ONCE.format(name)] for name in names if name in self.repeated}


_decoder = msgspec.json.Decoder(PayoutRequest)


def parse_payout_request(body: bytes) -> PayoutRequest | FieldErrors | NotAnObject:
    """Decode and check a body of `POST /payout/create`."""
    try:
        if not body.isascii():
            body.decode()  # msgspec skips what it does not need, unchecked
        request = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _parse_slowly(body)
    if b"\\" in body or any(body.count(name) > 1 for name in _NAMES):
        return _parse_slowly(body)  # a name may be there twice
    email = normalise_email(request.email.strip())
    if email is None or not 1 <= request.amount <= ALLOCATION_MAX_CENTS:
        return _parse_slowly(body)
    reference = request.reference
    if reference is not None:
        reference, errors = check_reference(reference)
        if errors:
            return _parse_slowly(body)
    is_unchanged = email == request.email and reference == request.reference
    return request if is_unchanged else PayoutRequest(email, request.amount, reference)


def names_reference(body: bytes) -> bool:
    """Tell whether a body names a reference, be it a valid one or not."""
    fields = parse_object(body)
    return not isinstance(fields, NotAnObject) and not is_missing(fields.get("reference"))


def parse_object(body: bytes) -> Fields | NotAnObject:
    """Decode a JSON object without expectations. Its numbers are decimals, which are exact."""
    try:
        # Floats would not keep `1e400` and 400 digits what they are.
        fields = json.loads(
            body.decode(),
            object_pairs_hook=Fields,
            parse_int=_parse_number,
            parse_float=_parse_number,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError):
        return NotAnObject()
    return fields if isinstance(fields, Fields) else NotAnObject()


def is_missing(value: Any) -> bool:
    """Tell whether a field counts as not sent: absent, null, or nothing but white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def _parse_slowly(body: bytes) -> PayoutRequest | FieldErrors | NotAnObject:
    """Collect what every rule has to say."""
    fields = parse_object(body)
    if isinstance(fields, NotAnObject):
        return fields
    email, email_errors = check_email(fields.get("email"))
    amount, amount_errors = check_amount(fields.get("amount"))
    reference, reference_errors = check_reference(fields.get("reference"))
    errors = {"email": email_errors, "amount": amount_errors, "reference": reference_errors}
    errors |= fields.repetitions(*_FIELDS)
    errors = {field: texts for field, texts in errors.items() if texts}
    return errors or PayoutRequest(email, amount, reference)


def check_email(value: Any, name: str = "email") -> tuple[str, list[str]]:
    """Return the normalised e-mail, or what every rule that it breaks has to say."""
    if is_missing(value):
        return "", [_REQUIRED.format(name)]
    if not isinstance(value, str):
        return "", [_EMAIL_STRING.format(name), _EMAIL_FORMAT.format(name)]
    trimmed = value.strip()
    email = normalise_email(trimmed)
    errors = [_EMAIL_FORMAT.format(name)] if email is None else []
    if len(trimmed) > EMAIL_MAX_CHARACTERS:
        errors.append(_EMAIL_MAX.format(name))
    return email or "", errors


def check_amount(value: Any, name: str = "amount") -> tuple[int, list[str]]:
    """Return the amount in cents, or what every rule that it breaks has to say; numbers are decimals."""
    if is_missing(value):
        return 0, [_REQUIRED.format(name)]
    if not isinstance(value, Decimal):
        return 0, [_AMOUNT_INTEGER.format(name)]
    errors = [] if value == value.to_integral_value() else [_AMOUNT_INTEGER.format(name)]
    if value < 1:
        errors.append(_AMOUNT_MIN.format(name))
    if value > ALLOCATION_MAX_CENTS:
        errors.append(_AMOUNT_MAX.format(name))
    return 0 if errors else int(value), errors


def check_reference(value: Any, name: str = "reference") -> tuple[str | None, list[str]]:
    """Return the trimmed reference (None for none), or what every rule that it breaks has to say."""
    if is_missing(value):
        return None, []
    if not isinstance(value, str):
        return None, [_REFERENCE_STRING.format(name)]
    reference = value.strip()
    errors = [_REFERENCE_MAX.format(name)] if len(reference) > REFERENCE_MAX_CHARACTERS else []
    if _CONTROL.search(reference):
        errors.append(_REFERENCE_CONTROL.format(name))
    return (None if errors else reference), errors


def _parse_number(literal: str) -> Decimal:
    """Read a JSON number exactly; an exponent beyond a million is cut to that, for it changes no rule."""
    mantissa, e, exponent = literal.lower().partition("e")
    if len(exponent.lstrip("+-").lstrip("0")) > _EXPONENT_DIGITS_MAX:
        exponent = ("-" if exponent.startswith("-") else "") + "9" * _EXPONENT_DIGITS_MAX
    return Decimal(mantissa + e + exponent)


def _refuse_constant(name: str) -> NoReturn:
    text = f"{name} is not JSON"
    raise ValueError(text)
