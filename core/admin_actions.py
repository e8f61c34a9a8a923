"""What people change, at the command line and in the dashboard: each change with its line in the audit log.

Each function runs inside the caller's transaction, but `accept_invitation`, which hashes. Where it names a business, it
touches nothing of another one.
"""

from dataclasses import asdict
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from core.batches import payment
from core.batches.payout_batch import PayoutBatch
from core.credentials import KeyKind
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.ledger import day_sums
from core.ledger.day_sums import Difference
from core.parties import api_keys, businesses, invitations, members, payout_users
from core.parties.accounts import Account
from core.parties.api_keys import ApiKey, NoSuchApiKeyError
from core.parties.audit import Action, Actor, record
from core.parties.businesses import Business
from core.parties.members import Member, Role
from core.parties.payout_users import PayoutUser, UserStatus


def create_business(connection: Connection, actor: Actor, name: str, *, payouts_enabled: bool) -> Business:
    """Create a business and its test twin."""
    created = businesses.create_business(connection, name, payouts_enabled=payouts_enabled)
    record(connection, created.id, actor, Action.BUSINESS_CREATED, details={"name": created.name})
    return created


def set_payouts_enabled(connection: Connection, actor: Actor, business_id: UUID, *, enabled: bool) -> Business:
    """Switch payouts on or off; it holds from the commit on. What is so already is no change."""
    before = businesses.get_business(connection, business_id)
    changed = businesses.set_payouts_enabled(connection, business_id, enabled=enabled)
    if before.payouts_enabled != enabled:
        record(connection, business_id, actor, Action.PAYOUTS_ENABLED if enabled else Action.PAYOUTS_DISABLED)
    return changed


def set_requires_keys(connection: Connection, actor: Actor, business_id: UUID, *, required: bool) -> Business:
    """Require an idempotency key or a reference with every payment, or not. What is so already is no change."""
    before = businesses.get_business(connection, business_id)
    changed = businesses.set_requires_keys(connection, business_id, required=required)
    if before.requires_keys != required:
        record(connection, business_id, actor, Action.KEYS_REQUIRED if required else Action.KEYS_NOT_REQUIRED)
    return changed


def fund_business(connection: Connection, actor: Actor, business_id: UUID, amount_cents: int) -> Business:
    """Add cents from outside to the payout balance."""
    changed = businesses.fund_business(connection, business_id, amount_cents)
    record(connection, business_id, actor, Action.BUSINESS_FUNDED, details={"amount": amount_cents})
    return changed


def deposit(connection: Connection, actor: Actor, business_id: UUID, amount_cents: int) -> Business:
    """Add cents from outside to the main balance."""
    changed = businesses.deposit(connection, business_id, amount_cents)
    record(connection, business_id, actor, Action.BUSINESS_DEPOSITED, details={"amount": amount_cents})
    return changed


def add_funds(connection: Connection, actor: Actor, business_id: UUID, amount_cents: int) -> Business:
    """Move cents from the main balance to the payout balance.

    Raises:
        BusinessError: the main balance is smaller than that.

    """
    changed = businesses.add_funds(connection, business_id, amount_cents)
    record(connection, business_id, actor, Action.BUSINESS_FUNDS_ADDED, details={"amount": amount_cents})
    return changed


def set_low_balance_threshold(
    connection: Connection, actor: Actor, business_id: UUID, threshold_cents: int | None
) -> Business:
    """Set below which payout balance the dashboard warns, or that it does not (None)."""
    changed = businesses.set_low_balance_threshold(connection, business_id, threshold_cents)
    details = {"threshold": threshold_cents}
    record(connection, business_id, actor, Action.LOW_BALANCE_THRESHOLD_SET, details=details)
    return changed


def recount_sums(connection: Connection, actor: Actor, business_id: UUID) -> list[Difference]:
    """Have the sums by day counted anew; return which were wrong. The log keeps what they were."""
    differences = day_sums.forget_sums(connection, business_id)
    details = {"differences": [asdict(each) | {"day": each.day.isoformat()} for each in differences]}
    record(connection, business_id, actor, Action.SUMS_RECOUNTED, details=details)
    return differences


def create_api_key(
    connection: Connection, actor: Actor, business_id: UUID, kind: KeyKind, name: str = ""
) -> tuple[ApiKey, str]:
    """Create an API key; return it with the key itself, which cannot be read again."""
    created, text = api_keys.create_api_key(connection, business_id, kind, name)
    _record_key(connection, actor, Action.KEY_CREATED, created)
    return created, text


def roll_api_key(
    connection: Connection, actor: Actor, business_id: UUID | None, api_key_id: UUID, *, grace: timedelta
) -> tuple[ApiKey, str, ApiKey]:
    """Replace a key by a new one; return the new key, its text, and the old one, which works for `grace` longer.

    Only an administrator names no business.

    Raises:
        ApiKeyError: the business has no such key, or it was revoked or rolled before.

    """
    _check_owner(connection, business_id, api_key_id)
    created, text, old = api_keys.roll_api_key(connection, api_key_id, grace=grace)
    details = {"replaced_by": format_id(IdKind.API_KEY, created.id), "grace_s": round(grace.total_seconds())}
    _record_key(connection, actor, Action.KEY_ROLLED, old, details)
    return created, text, old


def revoke_api_key(connection: Connection, actor: Actor, business_id: UUID | None, api_key_id: UUID) -> ApiKey:
    """Revoke a key: it moves no money from the commit on. Only an administrator names no business.

    What is revoked already stays as it is.

    Raises:
        NoSuchApiKeyError: the business has no such key.

    """
    _check_owner(connection, business_id, api_key_id)
    before = api_keys.get_api_key(connection, api_key_id)
    revoked = api_keys.revoke_api_key(connection, api_key_id)
    if revoked.revoked_at != before.revoked_at:
        _record_key(connection, actor, Action.KEY_REVOKED, revoked)
    return revoked


def set_user_status(
    connection: Connection, actor: Actor, business_id: UUID, user_id: UUID, status: UserStatus
) -> PayoutUser | None:
    """Activate or deactivate a payout user; return the user, or None where the business has no such user."""
    before = payout_users.get_payout_user(connection, business_id, user_id)
    changed = payout_users.set_status(connection, business_id, user_id, status)
    if changed is not None and (before is None or before.status is not changed.status):
        action = Action.USER_ACTIVATED if status is UserStatus.ACTIVE else Action.USER_DEACTIVATED
        subject = format_id(IdKind.PAYOUT_USER, user_id)
        record(connection, business_id, actor, action, subject, {"email": changed.email})
    return changed


def record_batch_accepted(connection: Connection, actor: Actor, batch: PayoutBatch) -> None:
    """Write down that a member handed a payout batch in, in the transaction that accepts it."""
    details = {"total": batch.total, "amount": batch.amount}
    record(connection, batch.business_id, actor, Action.BATCH_ACCEPTED, format_id(IdKind.BATCH, batch.id), details)


def cancel_batch(connection: Connection, actor: Actor, business_id: UUID, batch_id: UUID) -> PayoutBatch:
    """Stop a payout batch: what it has not paid goes back to the payout balance.

    Raises:
        PayoutBatchError: the business has no such batch, or it is finished.

    """
    cancelled = payment.cancel(connection, business_id, batch_id)
    details = {"given_back": cancelled.amount - cancelled.allocated_amount}
    record(connection, business_id, actor, Action.BATCH_CANCELLED, format_id(IdKind.BATCH, batch_id), details)
    return cancelled


def invite_member(connection: Connection, actor: Actor, business_id: UUID, email: str, role: Role) -> str:
    """Invite an e-mail to a live business, in place of an earlier invitation; return the token, shown this once.

    Raises:
        AccountError: the e-mail is no address, or a member's.

    """
    token, normalised = invitations.invite(connection, business_id, email, role, actor.name)
    record(connection, business_id, actor, Action.MEMBER_INVITED, normalised, {"role": role})
    return token


def withdraw_invitation(connection: Connection, actor: Actor, business_id: UUID, invitation_id: UUID) -> str:
    """End an invitation that nobody has accepted; return its e-mail.

    Raises:
        AccountError: there is none.

    """
    email = invitations.withdraw_invitation(connection, business_id, invitation_id)
    record(connection, business_id, actor, Action.INVITATION_WITHDRAWN, email)
    return email


def accept_invitation(database: Database, token: str, password: str) -> Account | None:
    """Make whoever holds a token a member; an e-mail that has an account needs the account's own password.

    None where the token is not good any more, or the password is not the account's: `read_invitation` tells which.

    Raises:
        PasswordError: the e-mail has no account yet, and the password breaks a rule.

    """
    prepared = invitations.prepare_to_join(database, token, password)
    if prepared is None:
        return None
    with database.transaction() as connection:
        joined = invitations.join(connection, token, prepared)
        if joined is None:
            connection.rollback()
            return None
        account, invitation = joined
        actor = Actor(account.email, account.id)
        details = {"role": invitation.role}
        record(connection, invitation.business_id, actor, Action.MEMBER_JOINED, account.email, details)
        return account


def set_member_role(connection: Connection, actor: Actor, business_id: UUID, account_id: UUID, role: Role) -> Member:
    """Give a member of a live business another role.

    Raises:
        AccountError: there is no such member, or it is the last admin.

    """
    member = members.set_role(connection, business_id, account_id, role)
    record(connection, business_id, actor, Action.MEMBER_ROLE_SET, member.email, {"role": role})
    return member


def remove_member(connection: Connection, actor: Actor, business_id: UUID, account_id: UUID) -> Member:
    """Remove a member of a live business.

    Raises:
        AccountError: there is no such member, or it is the last admin.

    """
    member = members.remove_member(connection, business_id, account_id)
    record(connection, business_id, actor, Action.MEMBER_REMOVED, member.email)
    return member


def _check_owner(connection: Connection, business_id: UUID | None, api_key_id: UUID) -> None:
    if business_id is not None and api_keys.get_api_key(connection, api_key_id).business_id != business_id:
        raise NoSuchApiKeyError


def _record_key(
    connection: Connection, actor: Actor, action: Action, key: ApiKey, details: dict[str, Any] | None = None
) -> None:
    description = {"kind": key.kind, "last4": key.last4, "name": key.name}
    subject = format_id(IdKind.API_KEY, key.id)
    record(connection, key.business_id, actor, action, subject, description | (details or {}))
