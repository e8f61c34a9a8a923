"""The audit log: who changed what. Each function runs inside the caller's transaction, which makes the change too."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.database.tables import audit_log
from core.errors import UserError
from core.ids import new_id


class AlreadyRecordedError(UserError):
    """This was done already, when the form was sent the first time. What is shown only once has to be made anew."""


class Action(StrEnum):
    """What was done; the entry's subject says to what."""

    BUSINESS_CREATED = "business.created"
    BUSINESS_DEPOSITED = "business.deposited"
    BUSINESS_FUNDED = "business.funded"
    BUSINESS_FUNDS_ADDED = "business.funds_added"
    PAYOUTS_ENABLED = "payouts.enabled"
    PAYOUTS_DISABLED = "payouts.disabled"
    KEYS_REQUIRED = "keys.required"
    KEYS_NOT_REQUIRED = "keys.not_required"
    LOW_BALANCE_THRESHOLD_SET = "low_balance_threshold.set"
    KEY_CREATED = "key.created"
    KEY_ROLLED = "key.rolled"
    KEY_REVOKED = "key.revoked"
    USER_ACTIVATED = "user.activated"
    USER_DEACTIVATED = "user.deactivated"
    SUMS_RECOUNTED = "sums.recounted"
    BATCH_ACCEPTED = "batch.accepted"
    BATCH_CANCELLED = "batch.cancelled"
    MEMBER_INVITED = "member.invited"
    INVITATION_WITHDRAWN = "invitation.withdrawn"
    MEMBER_JOINED = "member.joined"
    MEMBER_ROLE_SET = "member.role_set"
    MEMBER_REMOVED = "member.removed"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: a member by e-mail, or an administrator at the command line."""

    name: str
    account_id: UUID | None = None
    form_id: UUID | None = None
    """The dashboard's form by which it was asked for: each makes its change once, however often it is sent."""


COMMAND_LINE = Actor("command line")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the audit log. `subject` is an id as people see it, an e-mail, or empty for the business itself."""

    id: UUID
    actor: str
    account_id: UUID | None
    action: Action | str
    subject: str
    details: dict[str, Any]
    created_at: datetime


def record(
    connection: Connection,
    business_id: UUID,
    actor: Actor,
    action: Action,
    subject: str = "",
    details: dict[str, Any] | None = None,
) -> None:
    """Write down a change of this transaction. `details` are JSON values, and never secrets.

    Raises:
        AlreadyRecordedError: the actor's form has come before, so the change is for the caller to roll back.

    """
    written = connection.execute(
        insert(audit_log)
        .values(
            business_id=business_id,
            id=new_id(),
            actor=actor.name,
            account_id=actor.account_id,
            action=action,
            subject=subject,
            details=details or {},
            form_id=actor.form_id,
        )
        .on_conflict_do_nothing(index_elements=["business_id", "form_id"], index_where=sa.text("form_id IS NOT NULL"))
        .returning(audit_log.c.id)
    )
    if written.one_or_none() is None:
        raise AlreadyRecordedError


def is_recorded(connection: Connection, business_ids: Sequence[UUID], form_id: UUID) -> bool:
    """Tell whether a form's change was made before, in one of the businesses."""
    query = sa.select(audit_log.c.id).where(audit_log.c.business_id.in_(business_ids), audit_log.c.form_id == form_id)
    return connection.execute(query).first() is not None


def list_entries(connection: Connection, business_id: UUID, limit: int, after: UUID | None = None) -> list[Entry]:
    """Return up to `limit` entries of a business, newest first, from the start or after an entry's id.

    A test twin's log is its own; what concerns members is in the live business's.
    """
    hidden = {audit_log.c.business_id, audit_log.c.form_id}
    query = sa.select(*[column for column in audit_log.c if column not in hidden]).where(
        audit_log.c.business_id == business_id
    )
    if after is not None:
        query = query.where(audit_log.c.id < after)
    rows = connection.execute(query.order_by(audit_log.c.id.desc()).limit(limit))
    return [Entry(**row._asdict() | {"action": _action(row.action)}) for row in rows]


def _action(text: str) -> Action | str:
    """Return what a later version may have written as it stands."""
    return Action(text) if text in set(Action) else text
