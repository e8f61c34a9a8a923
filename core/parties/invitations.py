"""Invitations: an e-mail becomes a member of a business through a link that works once."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.credentials import digest_of
from core.database.connection import Database
from core.database.tables import accounts, businesses, invitations
from core.emails import normalise_email
from core.ids import new_id
from core.parties.accounts import Account, AccountError, create_account
from core.parties.members import Role, add_member, list_members
from core.parties.passwords import check_new_password, check_password, hash_password

INVITATION_LIFE = timedelta(days=7)
_TOKEN_BYTES = 32


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
    return hash_password(password)


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
