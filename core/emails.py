"""Which e-mail addresses are valid, and which are the same person."""

import re
import unicodedata

import email_validator
from email_validator import EmailSyntaxError
from email_validator.syntax import validate_email_domain_name, validate_email_local_part

EMAIL_MAX_CHARACTERS = 255
"""The HTTP contract's limit, counted after trimming."""

# What nearly all addresses look like. They are valid by every rule of the library, whose own check takes
# twenty times as long; a test compares the two.
_ORDINARY = re.compile(
    r"[A-Za-z0-9_+-]{1,30}(?:\.[A-Za-z0-9_+-]{1,30})?"
    r"@(?:[A-Za-z0-9]{1,19}(?:-[A-Za-z0-9]{1,19}){0,2}\.){1,3}[A-Za-z]{2,10}\Z"
)

# The contract checks syntax alone. Names such as `.local` or `.test` are well-formed, and the library
# documents this list as ours to change.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()


def normalise_email(email: str) -> str | None:
    """Return the identity of a trimmed address, or None where its syntax is wrong.

    Two addresses are the same payout user when this returns the same text: NFC, domain in IDNA form,
    all lower-cased. The parts are checked by email-validator; its limit of 254 bytes in all is replaced
    by the contract's 255 characters. No DNS is asked.
    """
    if _ORDINARY.match(email):
        return email.lower()
    local, at, domain = email.rpartition("@")
    if not at or len(email) > EMAIL_MAX_CHARACTERS:
        return None
    try:
        local = unicodedata.normalize("NFC", validate_email_local_part(local)["local_part"])
        validate_email_local_part(local)
        ascii_domain = validate_email_domain_name(domain)["ascii_domain"]
    except EmailSyntaxError:
        return None
    # Lower-casing can take a text out of NFC, so it is composed again.
    normalised = unicodedata.normalize("NFC", local.lower()) + "@" + ascii_domain.lower()
    # A few addresses grow; what we show must be an address that we take.
    return normalised if len(normalised) <= EMAIL_MAX_CHARACTERS else None
