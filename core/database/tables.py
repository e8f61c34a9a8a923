"""The tables. All but `businesses` and `accounts` lead with `business_id` in their key, to be distributed by it.

`payout_users` and `payout_transactions` carry no foreign keys: the one statement that writes them holds the
business row's lock, and `payouts verify` proves the references.
"""

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def _timestamp(name: str, *, nullable: bool = False) -> Column[object]:
    default = None if nullable else sa.func.now()
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable, server_default=default)


def _by_time(table: str) -> Index:
    """For what seals new rows: where rows come in the order of time, such an index costs next to nothing."""
    return Index(f"ix_{table}_created_at", "created_at", postgresql_using="brin")


def _cents(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


businesses = Table(
    "businesses",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("twin_id", Uuid, ForeignKey("businesses.id"), nullable=False),
    _cents("balance"),
    _cents("payout_balance"),
    _cents("reserved_balance"),
    Column("payouts_enabled", Boolean, nullable=False, server_default=sa.false()),
    _timestamp("created_at"),
    # In cents: the dashboard warns when less is free to allocate.
    Column("low_balance_threshold", BigInteger, nullable=True),
    # Of the newest row of its history, which is numbered without gaps.
    Column("last_sequence", BigInteger, nullable=False, server_default="0"),
    # Calls that pay must name an idempotency key or a reference.
    Column("requires_keys", Boolean, nullable=False, server_default=sa.false()),
    # No allocation whose deadline (microseconds since 1970) is at or before it is ever paid.
    Column("fence_us", BigInteger, nullable=False, server_default="0"),
    # Up to this number rows were numbered after they were written, by a migration or for workers of version 0.1.
    Column("numbered_later", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("mode IN ('live', 'test')", name="mode"),
    CheckConstraint("balance >= 0", name="balance"),
    CheckConstraint("payout_balance >= 0", name="payout_balance"),
    CheckConstraint("reserved_balance >= 0", name="reserved_balance"),
    # For the latest fence of all; most businesses have none.
    Index("ix_businesses_fence_us", "fence_us", postgresql_where=sa.text("fence_us > 0")),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("business_id", Uuid, ForeignKey("businesses.id"), primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("last4", Text, nullable=False),
    Column("name", Text, nullable=False, server_default=""),
    _timestamp("created_at"),
    _timestamp("last_used_at", nullable=True),
    # From then on it is refused; in the future while a key that was rolled is in its grace period.
    _timestamp("revoked_at", nullable=True),
    CheckConstraint("kind IN ('secret', 'public')", name="kind"),
    Index("ix_api_keys_digest", "digest", unique=True),
)

payout_users = Table(
    "payout_users",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    # Compared byte by byte: which e-mails are equal is decided by Python's rules alone.
    Column("email", Text(collation="C"), nullable=False),
    Column("hash_digest", LargeBinary, nullable=False),
    _cents("balance"),
    Column("status", Text, nullable=False, server_default="active"),
    _timestamp("created_at"),
    _timestamp("updated_at"),
    CheckConstraint("balance >= 0", name="balance"),
    CheckConstraint("status IN ('active', 'inactive')", name="status"),
    Index("uq_payout_users_business_id_email", "business_id", "email", unique=True),
    Index("ix_payout_users_hash_digest", "hash_digest"),
)

payout_transactions = Table(
    "payout_transactions",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("type", Text, nullable=False),
    Column("payout_user_id", Uuid, nullable=True),
    Column("amount", BigInteger, nullable=False),
    Column("payout_balance_after", BigInteger, nullable=False),
    Column("user_balance_after", BigInteger, nullable=True),
    Column("idempotency_key", Text, nullable=True),
    # 0, and one more for each allocation with the same key that was reversed: a reversal frees the key.
    Column("idempotency_attempt", SmallInteger, nullable=False, server_default="0"),
    Column("reversed_id", Uuid, nullable=True),
    _timestamp("created_at"),
    # The payout batch that paid it.
    Column("batch_id", Uuid, nullable=True),
    # 1 for a business's first row, and no gaps: whoever writes holds the business's row, so it is the order of commits.
    # Only workers of version 0.1 leave it to a trigger.
    Column("sequence", BigInteger, nullable=True),
    # The business's own name for the payment; that it pays once, `payment_references` sees to.
    Column("reference", Text(collation="C"), nullable=True),
    CheckConstraint("type IN ('funding', 'allocation', 'reversal')", name="type"),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("(type = 'funding') = (payout_user_id IS NULL)", name="payout_user_id"),
    CheckConstraint("(type = 'reversal') = (reversed_id IS NOT NULL)", name="reversed_id"),
    # For lists. Every amount is above 0; the condition hides the index from look-ups by id, for which the planner took
    # it while the table was young, and read a business's whole history for each.
    Index(
        "uq_payout_transactions_business_id_sequence",
        "business_id",
        "sequence",
        unique=True,
        postgresql_where=sa.text("amount > 0"),
    ),
    Index(
        "ix_payout_transactions_payout_user_id_sequence",
        "payout_user_id",
        "sequence",
        postgresql_where=sa.text("payout_user_id IS NOT NULL"),
    ),
    # For those who look for a funding among millions of allocations.
    Index(
        "ix_payout_transactions_business_id_sequence_but_allocations",
        "business_id",
        "sequence",
        postgresql_where=sa.text("type <> 'allocation'"),
    ),
    Index(
        "uq_payout_transactions_idempotency",
        "business_id",
        "idempotency_key",
        "idempotency_attempt",
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    Index(
        "uq_payout_transactions_business_id_reversed_id",
        "business_id",
        "reversed_id",
        unique=True,
        postgresql_where=sa.text("reversed_id IS NOT NULL"),
    ),
)

# Which payment has which reference: a call's from its commit on, a batch row's from the acceptance of the batch on.
# Rows are never updated or deleted. `payment_id` is the history row's id, once the payment is made.
payment_references = Table(
    "payment_references",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("reference", Text(collation="C"), primary_key=True),
    # 0, and one more for each payment with the same reference that was reversed, or cancelled with its batch. Below 0:
    # what an earlier release paid with the same reference again.
    Column("attempt", SmallInteger, primary_key=True, autoincrement=False),
    Column("payment_id", Uuid, nullable=False),
    Column("email", Text(collation="C"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("batch_id", Uuid, nullable=True),
)

# Calls that are answered by the history row of another call (replays), and calls of either kind that were answered
# 500 although they had committed: those have withdrawn. An allocation is reversed when nobody claims it any more.
claims = Table(
    "claims",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("transaction_id", Uuid, nullable=False),
    _timestamp("created_at"),
    _timestamp("withdrawn_at", nullable=True),
    Index("ix_claims_business_id_transaction_id", "business_id", "transaction_id"),
    _by_time("claims"),
    Index("ix_claims_withdrawn_at", "withdrawn_at", postgresql_where=sa.text("withdrawn_at IS NOT NULL")),
)

payout_batches = Table(
    "payout_batches",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("status", Text, nullable=False),
    Column("total", Integer, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("processed", Integer, nullable=False, server_default="0"),
    _cents("allocated_amount"),
    Column("idempotency_key", Text, nullable=True),
    # Of the rows, in whatever format they came: tells whether a key is used for the same again.
    Column("request_digest", LargeBinary, nullable=False),
    _timestamp("created_at"),
    _timestamp("updated_at"),
    _timestamp("finished_at", nullable=True),
    # Rows whose references were paid before; `total` counts the others.
    Column("already_paid", Integer, nullable=False, server_default="0"),
    # Who handed it in; NULL for the dashboard, and for batches accepted by an earlier release.
    Column("api_key_id", Uuid, nullable=True),
    # Workers pay what is released: its caller is not answered 500 any more. The default is for processes of the release
    # before.
    Column("released_at", TIMESTAMP(timezone=True), nullable=True, server_default=sa.func.now()),
    CheckConstraint("status IN ('queued', 'processing', 'completed', 'cancelled')", name="status"),
    CheckConstraint("processed BETWEEN 0 AND total", name="processed"),
    CheckConstraint("allocated_amount BETWEEN 0 AND amount", name="allocated_amount"),
    CheckConstraint("(status IN ('completed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished_at"),
    CheckConstraint("(status = 'completed') = (processed = total)", name="completed"),
    Index(
        "uq_payout_batches_business_id_idempotency_key",
        "business_id",
        "idempotency_key",
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    Index("ix_payout_batches_updated_at", "updated_at", postgresql_where=sa.text("finished_at IS NULL")),
    _by_time("payout_batches"),
    Index("ix_payout_batches_finished_at", "finished_at"),
)

# Rows are never updated: how many of them are paid, in their order, the batch tells.
payout_batch_items = Table(
    "payout_batch_items",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("id", Uuid, nullable=False),
    Column("email", Text(collation="C"), nullable=False),
    Column("hash_digest", LargeBinary, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("reference", Text, nullable=True),
    CheckConstraint("amount > 0", name="amount"),
)

# Rows of a batch whose references were paid before: nothing is paid for them. `row` counts in the file as it was handed
# in; the rows that the batch pays are numbered without them.
payout_batch_already_paid = Table(
    "payout_batch_already_paid",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, primary_key=True),
    Column("row", Integer, primary_key=True, autoincrement=False),
    Column("payment_id", Uuid, nullable=False),
    Column("email", Text(collation="C"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("reference", Text(collation="C"), nullable=False),
)

# People who sign in to the dashboard.
accounts = Table(
    "accounts",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("email", Text(collation="C"), nullable=False),
    Column("password_hash", Text, nullable=False),
    _timestamp("password_changed_at"),
    _timestamp("created_at"),
    Index("uq_accounts_email", "email", unique=True),
)

# Of live businesses; their test twins have the same members.
members = Table(
    "members",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("account_id", Uuid, ForeignKey("accounts.id"), primary_key=True),
    Column("role", Text, nullable=False),
    _timestamp("created_at"),
    CheckConstraint("role IN ('viewer', 'admin')", name="role"),
    Index("ix_members_account_id", "account_id"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("email", Text(collation="C"), nullable=False),
    Column("role", Text, nullable=False),
    Column("token_digest", LargeBinary, nullable=False),
    Column("invited_by", Text, nullable=False),
    _timestamp("created_at"),
    Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
    _timestamp("accepted_at", nullable=True),
    CheckConstraint("role IN ('viewer', 'admin')", name="role"),
    Index(
        "uq_invitations_business_id_email",
        "business_id",
        "email",
        unique=True,
        postgresql_where=sa.text("accepted_at IS NULL"),
    ),
    Index("uq_invitations_token_digest", "token_digest", unique=True),
)

# Who changed what; no statement of ours updates or deletes a row.
audit_log = Table(
    "audit_log",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("actor", Text, nullable=False),
    Column("account_id", Uuid, nullable=True),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", JSONB, nullable=False, server_default="{}"),
    _timestamp("created_at"),
    # Of the dashboard's form that asked for it, so that a form that is sent twice changes nothing twice.
    Column("form_id", Uuid, nullable=True),
    Index(
        "uq_audit_log_business_id_form_id",
        "business_id",
        "form_id",
        unique=True,
        postgresql_where=sa.text("form_id IS NOT NULL"),
    ),
    _by_time("audit_log"),
)

# What moved main balances. A transfer has the id of the `funding` by which the payout balance got it. So has a row of
# type `external`: that funding came from outside, and the main balance stayed as it was.
main_transactions = Table(
    "main_transactions",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("type", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    _timestamp("created_at"),
    CheckConstraint("type IN ('deposit', 'transfer', 'external')", name="type"),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("balance_after >= 0", name="balance_after"),
    _by_time("main_transactions"),
)

# The history by day (UTC) and type, of all rows up to the number `last_sequence`.
payout_day_sums = Table(
    "payout_day_sums",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("amount", Numeric, nullable=False),
)

payout_day_sums_progress = Table(
    "payout_day_sums_progress",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    # As it stands, workers of version 0.1 sum nothing more, and dashboards of that version read what is kept.
    Column(
        "summed_until",
        TIMESTAMP(timezone=True),
        CheckConstraint("summed_until = '9999-12-31 00:00:00+00'", name="summed_until"),
        nullable=False,
        server_default=sa.text("'9999-12-31 00:00:00+00'"),
    ),
    Column("last_sequence", BigInteger, nullable=False, server_default="0"),
)

# One row: which installation this is, for heads of its history that are kept elsewhere.
installation = Table(
    "installation",
    metadata,
    Column("is_here", Boolean, CheckConstraint("is_here", name="is_here"), primary_key=True, server_default=sa.true()),
    Column("id", Uuid, nullable=False),
    _timestamp("created_at"),
)

# A business's history in stretches of a thousand rows, each with a tag for each row and a digest that goes on from the
# stretch before (`previous`). The last stretch grows. `earliest` and `latest` are times of its rows.
history_seals = Table(
    "history_seals",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("tags", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("earliest", TIMESTAMP(timezone=True), nullable=False),
    Column("latest", TIMESTAMP(timezone=True), nullable=False),
    _timestamp("sealed_at"),
)

# Rows of other tables, numbered for each business in the order of their sealing; each digest goes on from the one
# before. A row whose state changes, such as a key that is revoked, is sealed again: the newest seal counts.
row_seals = Table(
    "row_seals",
    metadata,
    Column("business_id", Uuid, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("row_id", Uuid, nullable=False),
    Column("state", Text, nullable=False),
    Column("tag", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    _timestamp("sealed_at"),
    Index("ix_row_seals_row", "business_id", "kind", "row_id", "number"),
)

# The time at which all rows of a kind were sealed that could be seen.
seal_progress = Table(
    "seal_progress",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("sealed_until", TIMESTAMP(timezone=True), nullable=False),
)
