"""People who sign in to the dashboard: accounts, the businesses of which they are members, and invitations.

Hashing a password takes long on purpose, so what hashes takes the database, and hashes between its transactions. All
else runs inside the caller's transaction. A test twin has the members of its live business.
"""

import secrets
import threading
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from uuid import UUID

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.credentials import Mode, digest_of
from core.database.connection import Database
from core.database.tables import accounts, businesses, invitations, members
from core.emails import normalise_email
from core.errors import UserError
from core.ids import new_id

PASSWORD_CHARACTERS_MIN = 12
PASSWORD_CHARACTERS_MAX = 128
INVITATION_LIFE = timedelta(days=7)
_HASHES_AT_ONCE_MAX = 2  # 64 MiB each
_TOKEN_BYTES = 32

_hasher = PasswordHasher()
_hashing = threading.BoundedSemaphore(_HASHES_AT_ONCE_MAX)


class AccountError(UserError):
    """Something asked of an account or a member cannot be done; the text says what, for people."""


class PasswordError(AccountError):
    """A password cannot be taken; the text says why, for people."""


class Role(StrEnum):
    """A viewer sees everything of a business, but what is secret; an admin changes it too."""

    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Account:
    """Someone who can sign in. Sessions from before `password_changed_at` are over."""

    id: UUID
    email: str
    password_changed_at: datetime


@dataclass(frozen=True, slots=True)
class Membership:
    """A live business of an account."""

    business_id: UUID
    business_name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Member:
    """An account of a business."""

    account_id: UUID
    email: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation that can still be accepted; `has_account` tells that its e-mail has a password already."""

    business_id: UUID
    business_name: str
    id: UUID
    email: str
    role: Role
    invited_by: str
    created_at: datetime
    expires_at: datetime
    has_account: bool


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
        renewed = _hash(password)
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
    hash_ = _hash(password)
    with database.transaction() as connection:
        changed_at = connection.execute(
            accounts.update()
            .where(accounts.c.id == account.id)
            .values(password_hash=hash_, password_changed_at=sa.func.clock_timestamp())
            .returning(accounts.c.password_changed_at)
        ).scalar_one()
    return Account(account.id, account.email, changed_at)


def find_account(connection: Connection, account_id: UUID) -> Account | None:
    """Return an account by its id."""
    return _find_account(connection, accounts.c.id == account_id)


def find_account_by_email(connection: Connection, email: str) -> Account | None:
    """Return an account by its e-mail, in any spelling."""
    return _find_account(connection, accounts.c.email == normalise_email(email.strip()))


def list_memberships(connection: Connection, account_id: UUID) -> list[Membership]:
    """Return the businesses of which an account is a member, by name."""
    query = (
        sa.select(members.c.business_id, businesses.c.name, members.c.role)
        .join(businesses, businesses.c.id == members.c.business_id)
        .where(members.c.account_id == account_id)
        .order_by(businesses.c.name, businesses.c.id)
    )
    return [Membership(row.business_id, row.name, Role(row.role)) for row in connection.execute(query)]


def find_role(connection: Connection, account_id: UUID, business_id: UUID) -> Role | None:
    """Return what an account may do in a business, or None where it is no member; a test twin counts as its owner."""
    query = (
        sa.select(members.c.role)
        .join(businesses, businesses.c.id == business_id)
        .where(members.c.account_id == account_id, members.c.business_id == _live_id())
    )
    role = connection.execute(query).scalar_one_or_none()
    return None if role is None else Role(role)


def list_members(connection: Connection, business_id: UUID) -> list[Member]:
    """Return the members of a live business, by e-mail."""
    query = (
        sa.select(members.c.account_id, accounts.c.email, members.c.role, members.c.created_at)
        .join(accounts, accounts.c.id == members.c.account_id)
        .where(members.c.business_id == business_id)
        .order_by(accounts.c.email)
    )
    return [Member(*row[:2], Role(row.role), row.created_at) for row in connection.execute(query)]


def list_invitations(connection: Connection, business_id: UUID) -> list[Invitation]:
    """Return the invitations of a live business that can still be accepted, by e-mail."""
    query = _select_invitations().where(invitations.c.business_id == business_id).order_by(invitations.c.email)
    return [_invitation(row) for row in connection.execute(query)]


def invite(connection: Connection, business_id: UUID, email: str, role: Role, invited_by: str) -> tuple[str, str]:
    """Invite an e-mail to a live business, in place of an earlier invitation; return (token, normalised e-mail).

    The token works once, and for `INVITATION_LIFE`; only its digest is kept.

    Raises:
        AccountError: the e-mail is no address, or a member's.

    """
    normalised = normalise_email(email.strip())
    if normalised is None:
        text = "The e-mail must be a valid e-mail address."
        raise AccountError(text)
    if any(member.email == normalised for member in list_members(connection, business_id)):
        text = "There is a member with this e-mail already."
        raise AccountError(text)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    values = {
        "role": role,
        "token_digest": digest_of(token),
        "invited_by": invited_by,
        "created_at": sa.func.now(),
        "expires_at": sa.func.now() + sa.literal(INVITATION_LIFE, sa.Interval),
    }
    connection.execute(
        insert(invitations)
        .values(business_id=business_id, id=new_id(), email=normalised, **values)
        .on_conflict_do_update(
            index_elements=["business_id", "email"], index_where=sa.text("accepted_at IS NULL"), set_=values
        )
    )
    return token, normalised


def withdraw_invitation(connection: Connection, business_id: UUID, invitation_id: UUID) -> str:
    """End an invitation that nobody has accepted; return its e-mail.

    Raises:
        AccountError: there is none.

    """
    email = connection.execute(
        invitations.delete()
        .where(
            invitations.c.business_id == business_id,
            invitations.c.id == invitation_id,
            invitations.c.accepted_at.is_(None),
        )
        .returning(invitations.c.email)
    ).scalar_one_or_none()
    if email is None:
        text = "There is no such invitation."
        raise AccountError(text)
    return str(email)


def read_invitation(connection: Connection, token: str) -> Invitation | None:
    """Return the invitation with this token, unless it was used, replaced or withdrawn, or has expired."""
    digest = _token_digest(token)
    row = connection.execute(_select_invitations().where(invitations.c.token_digest == digest)).one_or_none()
    return None if row is None else _invitation(row)


def prepare_to_join(database: Database, token: str, password: str) -> Account | str | None:
    """Do what takes long about accepting an invitation: return the account whose password this is, or its new hash.

    None where the token is not good, or the e-mail has an account with another password.

    Raises:
        PasswordError: the e-mail has no account, and the password breaks a rule.

    """
    with database.transaction() as connection:
        invitation = read_invitation(connection, token)
    if invitation is None:
        return None
    if invitation.has_account:
        return check_password(database, invitation.email, password)
    check_new_password(invitation.email, password)
    return _hash(password)


def join(connection: Connection, token: str, prepared: Account | str) -> tuple[Account, Invitation] | None:
    """Make a member of whom `prepare_to_join` found, or of a new account; None where the token is not good any more."""
    accepted = connection.execute(
        invitations.update()
        .where(invitations.c.token_digest == _token_digest(token), _is_open())
        .values(accepted_at=sa.func.now())
        .returning(invitations.c.id, invitations.c.business_id)
    ).one_or_none()
    if accepted is None:
        return None
    found = connection.execute(
        _select_invitations(is_open=False).where(
            invitations.c.business_id == accepted.business_id, invitations.c.id == accepted.id
        )
    ).one()
    invitation = _invitation(found)
    account = prepared if isinstance(prepared, Account) else create_account(connection, invitation.email, prepared)
    if account is None or account.email != invitation.email:
        return None
    add_member(connection, invitation.business_id, account.id, invitation.role)
    return account, invitation


def create_account(connection: Connection, email: str, password_hash: str) -> Account | None:
    """Create an account; None where the normalised e-mail has one."""
    row = connection.execute(
        insert(accounts)
        .values(id=new_id(), email=email, password_hash=password_hash)
        .on_conflict_do_nothing()
        .returning(accounts.c.id, accounts.c.email, accounts.c.password_changed_at)
    ).one_or_none()
    return None if row is None else Account(*row)


def hash_new_password(email: str, password: str) -> str:
    """Return what the database keeps of a new password; it takes long, so no transaction should be open.

    Raises:
        PasswordError: it breaks a rule.

    """
    check_new_password(email, password)
    return _hash(password)


def add_member(connection: Connection, business_id: UUID, account_id: UUID, role: Role) -> None:
    """Make an account a member; one who is a member already keeps the role."""
    connection.execute(
        insert(members).values(business_id=business_id, account_id=account_id, role=role).on_conflict_do_nothing()
    )


def set_role(connection: Connection, business_id: UUID, account_id: UUID, role: Role) -> Member:
    """Give a member another role; return the member.

    Raises:
        AccountError: there is no such member, or it is the last admin.

    """
    member = _lock_member(connection, business_id, account_id, stays_admin=role is Role.ADMIN)
    connection.execute(
        members.update()
        .where(members.c.business_id == business_id, members.c.account_id == account_id)
        .values(role=role)
    )
    return Member(member.account_id, member.email, role, member.created_at)


def remove_member(connection: Connection, business_id: UUID, account_id: UUID) -> Member:
    """Remove a member, and return who it was; the account stays, for its other businesses.

    Raises:
        AccountError: there is no such member, or it is the last admin.

    """
    member = _lock_member(connection, business_id, account_id, stays_admin=False)
    connection.execute(members.delete().where(members.c.business_id == business_id, members.c.account_id == account_id))
    return member


def _lock_member(connection: Connection, business_id: UUID, account_id: UUID, *, stays_admin: bool) -> Member:
    """Lock all members, in an order, so that two admins cannot remove each other at once."""
    connection.execute(
        sa.select(members.c.account_id)
        .where(members.c.business_id == business_id)
        .order_by(members.c.account_id)
        .with_for_update()
    )
    found = list_members(connection, business_id)
    member = next((each for each in found if each.account_id == account_id), None)
    if member is None:
        text = "There is no such member."
        raise AccountError(text)
    admins = sum(each.role is Role.ADMIN for each in found)
    if member.role is Role.ADMIN and not stays_admin and admins == 1:
        text = "The last admin can neither be removed nor become a viewer."
        raise AccountError(text)
    return member


def _canonical(password: str) -> str | None:
    """Return a password in the one form that all keyboards' spellings share; None for what is no text."""
    try:
        return unicodedata.normalize("NFKC", password).encode().decode()
    except UnicodeEncodeError:
        return None


def _hash(password: str) -> str:
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
    return _hash(secrets.token_urlsafe(_TOKEN_BYTES))


def _find_hash(database: Database, email: str | None) -> tuple[Account, str] | None:
    query = sa.select(accounts.c.id, accounts.c.email, accounts.c.password_changed_at, accounts.c.password_hash)
    with database.transaction() as connection:
        row = connection.execute(query.where(accounts.c.email == email)).one_or_none()
    return None if row is None else (Account(*row[:3]), row.password_hash)


def _find_account(connection: Connection, is_wanted: sa.ColumnElement[bool]) -> Account | None:
    query = sa.select(accounts.c.id, accounts.c.email, accounts.c.password_changed_at).where(is_wanted)
    row = connection.execute(query).one_or_none()
    return None if row is None else Account(*row)


def _live_id() -> sa.ColumnElement[UUID]:
    return sa.case((businesses.c.mode == Mode.LIVE, businesses.c.id), else_=businesses.c.twin_id)


def _token_digest(token: str) -> bytes | None:
    return digest_of(token) if token.isascii() else None


def _is_open() -> sa.ColumnElement[bool]:
    return invitations.c.accepted_at.is_(None) & (invitations.c.expires_at > sa.func.now())


def _select_invitations(*, is_open: bool = True) -> sa.Select[tuple[object, ...]]:
    query = sa.select(
        invitations.c.business_id,
        businesses.c.name.label("business_name"),
        invitations.c.id,
        invitations.c.email,
        invitations.c.role,
        invitations.c.invited_by,
        invitations.c.created_at,
        invitations.c.expires_at,
        sa.exists().where(accounts.c.email == invitations.c.email).label("has_account"),
    ).join_from(invitations, businesses, businesses.c.id == invitations.c.business_id)
    return query.where(_is_open()) if is_open else query


def _invitation(row: sa.Row[tuple[object, ...]]) -> Invitation:
    values = row._asdict()
    return Invitation(**values | {"role": Role(values["role"])})
