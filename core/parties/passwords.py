"""Passwords of accounts: their rules, how they are hashed and checked.

Hashing a password takes long on purpose, so each function that hashes takes the database, and hashes between its
transactions.
"""

import secrets
import threading
import unicodedata
from functools import cache
from uuid import UUID

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from core.database.connection import Database
from core.database.tables import accounts
from core.emails import normalise_email
from core.parties.accounts import Account, AccountError, find_account

PASSWORD_CHARACTERS_MIN = 12
PASSWORD_CHARACTERS_MAX = 128
_HASHES_AT_ONCE_MAX = 2  # 64 MiB each

_hasher = PasswordHasher()
_hashing = threading.BoundedSemaphore(_HASHES_AT_ONCE_MAX)


class PasswordError(AccountError):
    """A password cannot be taken; the text says why, for people."""


def check_new_password(email: str, password: str) -> None:
    """Check the rules for a new password: its length, and that it is not the e-mail.

    Raises:
        PasswordError: it breaks one.

    """
    if not PASSWORD_CHARACTERS_MIN <= len(password) <= PASSWORD_CHARACTERS_MAX:
        text = f"A password has {PASSWORD_CHARACTERS_MIN} to {PASSWORD_CHARACTERS_MAX} characters."
        raise PasswordError(text)
    if _canonical(password) is None:
        text = "The password is not a text."
        raise PasswordError(text)
    if password.strip().lower() == email.lower() or normalise_email(password.strip()) == email:
        text = "The password must not be the e-mail."
        raise PasswordError(text)


def check_password(database: Database, email: str, password: str) -> Account | None:
    """Return the account with this e-mail, in any spelling, and this password.

    It takes the same time whether there is such an account or not.
    """
    found = _find_hash(database, normalise_email(email.strip()))
    account, hash_ = found if found is not None else (None, _hash_of_nobody())
    is_right = _matches(hash_, password)
    if account is None or not is_right:
        return None
    if _hasher.check_needs_rehash(hash_):
        renewed = hash_password(password)
        with database.transaction() as connection:
            # Unless it was changed meanwhile.
            connection.execute(
                accounts.update()
                .where(accounts.c.id == account.id, accounts.c.password_hash == hash_)
                .values(password_hash=renewed)
            )
    return account


def change_password(database: Database, account_id: UUID, current: str, new: str) -> Account | None:
    """Give an account a new password; return it, or None where `current` is not its password. Its sessions end.

    Raises:
        PasswordError: the new password breaks a rule.

    """
    with database.transaction() as connection:
        account = find_account(connection, account_id)
    if account is None or check_password(database, account.email, current) is None:
        return None
    return set_password(database, account, new)


def set_password(database: Database, account: Account, password: str) -> Account:
    """Give an account a new password without asking for the old one, for administrators. Its sessions end.

    Raises:
        PasswordError: the password breaks a rule.

    """
    check_new_password(account.email, password)
    hash_ = hash_password(password)
    with database.transaction() as connection:
        changed_at = connection.execute(
            accounts.update()
            .where(accounts.c.id == account.id)
            .values(password_hash=hash_, password_changed_at=sa.func.clock_timestamp())
            .returning(accounts.c.password_changed_at)
        ).scalar_one()
    return Account(account.id, account.email, changed_at)


def _canonical(password: str) -> str | None:
    """Return a password in the one form that all keyboards' spellings share; None for what is no text."""
    try:
        return unicodedata.normalize("NFKC", password).encode().decode()
    except UnicodeEncodeError:
        return None


def hash_password(password: str) -> str:
    """Return what the database keeps of a password; it takes long, so no transaction should be open."""
    with _hashing:
        return _hasher.hash(_canonical(password) or "")


def _matches(hash_: str, password: str) -> bool:
    canonical = _canonical(password) if len(password) <= PASSWORD_CHARACTERS_MAX else None
    try:
        with _hashing:
            _hasher.verify(hash_, canonical or "")
    except (VerificationError, InvalidHashError):
        return False
    return canonical is not None


@cache
def _hash_of_nobody() -> str:
    """Return a hash of today's parameters whose password nobody knows."""
    return hash_password(secrets.token_urlsafe())


def _find_hash(database: Database, email: str | None) -> tuple[Account, str] | None:
    query = sa.select(accounts.c.id, accounts.c.email, accounts.c.password_changed_at, accounts.c.password_hash)
    with database.transaction() as connection:
        row = connection.execute(query.where(accounts.c.email == email)).one_or_none()
    return None if row is None else (Account(*row[:3]), row.password_hash)
