"""The statements that carry allocations out: set-based, a fixed number of round trips for any batch size."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.allocation import BusinessState, Claim, Entry, IdempotencyUse, LockedState, decide
from core.credentials import digest_of, payout_hash
from core.database import read_clock_us
from core.ids import new_id
from core.messages import Allocation, Outcome


class LedgerError(Exception):
    """The books are not what every transaction of ours leaves behind; whatever was begun is rolled back."""


# In id order, so that two batches can never wait for each other in a circle.
_LOCK_BUSINESSES = sa.text("""
    SELECT id, payout_balance, payouts_enabled
    FROM businesses
    WHERE id = ANY(CAST(:business_ids AS uuid[]))
    ORDER BY id
    FOR NO KEY UPDATE
""")

# The clock and the keys are read after the locks are held: revoking a key takes the same lock.
_CLOCK_AND_API_KEYS = sa.text("""
    SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint), wanted.business_id, wanted.id,
        COALESCE(kind = 'secret' AND revoked_at IS NULL, false)
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:api_key_ids AS uuid[])) AS wanted (business_id, id)
    LEFT JOIN api_keys USING (business_id, id)
""")

_HISTORY_KEYS = sa.text("""
    SELECT business_id, id
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:ids AS uuid[])) AS wanted (business_id, id)
    JOIN payout_transactions USING (business_id, id)
""")

# A key's latest attempt counts; the earlier ones were all reversed.
_IDEMPOTENCY_USES = sa.text("""
    SELECT DISTINCT ON (business_id, idempotency_key)
        business_id, idempotency_key, payout_transactions.id, payout_users.email, payout_transactions.amount,
        idempotency_attempt,
        EXISTS (
            SELECT FROM payout_transactions AS reversal
            WHERE reversal.business_id = payout_transactions.business_id
                AND reversal.reversed_id = payout_transactions.id
        )
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:idempotency_keys AS text[]))
        AS wanted (business_id, idempotency_key)
    JOIN payout_transactions USING (business_id, idempotency_key)
    JOIN payout_users USING (business_id)
    WHERE payout_users.id = payout_transactions.payout_user_id
    ORDER BY business_id, idempotency_key, idempotency_attempt DESC
""")

_CREDIT_USERS = sa.text("""
    INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
    SELECT * FROM unnest(
        CAST(:business_ids AS uuid[]), CAST(:ids AS uuid[]), CAST(:emails AS text[]),
        CAST(:hash_digests AS bytea[]), CAST(:amounts AS bigint[])
    )
    ON CONFLICT (business_id, email) DO UPDATE
        SET balance = existing.balance + excluded.balance, updated_at = now()
    RETURNING business_id, email, id, balance
""")

_DEBIT_BUSINESSES = sa.text("""
    UPDATE businesses
    SET payout_balance = payout_balance - debit.amount
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:amounts AS bigint[])) AS debit (business_id, amount)
    WHERE businesses.id = debit.business_id
""")

_WRITE_HISTORY = sa.text("""
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, idempotency_key,
        idempotency_attempt
    )
    SELECT business_id, id, 'allocation', payout_user_id, amount, payout_balance_after, user_balance_after,
        idempotency_key, idempotency_attempt
    FROM unnest(
        CAST(:business_ids AS uuid[]), CAST(:ids AS uuid[]), CAST(:payout_user_ids AS uuid[]),
        CAST(:amounts AS bigint[]), CAST(:payout_balances_after AS bigint[]),
        CAST(:user_balances_after AS bigint[]), CAST(:idempotency_keys AS text[]),
        CAST(:idempotency_attempts AS smallint[])
    ) AS entry (
        business_id, id, payout_user_id, amount, payout_balance_after, user_balance_after, idempotency_key,
        idempotency_attempt
    )
""")

_CLAIMED_KEYS = sa.text("""
    SELECT business_id, id
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:ids AS uuid[])) AS wanted (business_id, id)
    JOIN claims USING (business_id, id)
    WHERE withdrawn_at IS NULL
""")

_WRITE_CLAIMS = sa.text("""
    INSERT INTO claims (business_id, id, transaction_id)
    SELECT * FROM unnest(CAST(:business_ids AS uuid[]), CAST(:ids AS uuid[]), CAST(:transaction_ids AS uuid[]))
    ON CONFLICT DO NOTHING
""")

# What a call was answered by: its own history row, or the one that it claims.
_WITHDRAW = sa.text("""
    INSERT INTO claims (business_id, id, transaction_id, withdrawn_at)
    SELECT business_id, id, id, now()
    FROM payout_transactions
    WHERE business_id = :business_id AND id = :id AND type = 'allocation'
    UNION ALL
    SELECT business_id, id, transaction_id, now()
    FROM claims
    WHERE business_id = :business_id AND id = :id AND id <> transaction_id
    ON CONFLICT (business_id, id) DO UPDATE SET withdrawn_at = now()
    RETURNING transaction_id
""")

_UNCLAIMED_ALLOCATION = sa.text("""
    SELECT payout_user_id, amount
    FROM payout_transactions AS allocation
    WHERE business_id = :business_id AND id = :id AND type = 'allocation'
        AND EXISTS (
            SELECT FROM claims
            WHERE claims.business_id = allocation.business_id AND claims.id = allocation.id
        )
        AND NOT EXISTS (
            SELECT FROM claims
            WHERE claims.business_id = allocation.business_id AND transaction_id = allocation.id
                AND withdrawn_at IS NULL
        )
        AND NOT EXISTS (
            SELECT FROM payout_transactions AS reversal
            WHERE reversal.business_id = allocation.business_id AND reversal.reversed_id = allocation.id
        )
""")

_REVERSE = sa.text("""
    WITH business AS (
        UPDATE businesses SET payout_balance = payout_balance + :amount
        WHERE id = :business_id
        RETURNING payout_balance
    ), payout_user AS (
        UPDATE payout_users SET balance = balance - :amount, updated_at = now()
        WHERE business_id = :business_id AND id = :payout_user_id
        RETURNING balance
    )
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, reversed_id
    )
    SELECT :business_id, :reversal_id, 'reversal', :payout_user_id, :amount, business.payout_balance,
        payout_user.balance, :id
    FROM business, payout_user
""")


def allocate(connection: Connection, hash_secret: bytes, allocations: Sequence[Allocation]) -> list[Outcome]:
    """Debit, credit and write the history for a batch; return the outcomes in its order.

    Runs inside the caller's transaction. Any number of deliveries of the same allocations pays once.
    """
    if not allocations:
        return []
    decision = decide(_lock_and_read(connection, allocations), allocations)
    if decision.entries:
        _write(connection, hash_secret, decision.entries)
    if decision.claims:
        _write_claims(connection, decision.claims)
    return decision.outcomes


@dataclass(frozen=True, slots=True)
class Committed:
    """What is certain about some allocations behind their businesses' locks, at `now_us` by the database's clock."""

    now_us: int
    history_keys: set[tuple[UUID, UUID]]
    claimed_keys: set[tuple[UUID, UUID]]


def find_committed(connection: Connection, allocations: Sequence[Allocation]) -> Committed:
    """Lock the businesses, then look up which allocations are in the history or were replays.

    Behind the lock no worker is in the middle of one of them: whatever is not here at a time past its
    deadline will never be.
    """
    business_ids = list({allocation.business_id for allocation in allocations})
    connection.execute(_LOCK_BUSINESSES, {"business_ids": business_ids})
    now_us = read_clock_us(connection)
    return Committed(now_us, _read_history_keys(connection, allocations), _read_claimed_keys(connection, allocations))


def withdraw(connection: Connection, allocation: Allocation) -> bool:
    """Take back what a call committed that was answered 500; return whether money moved.

    What it allocated is given back to the business, with a history row of type `reversal`, which frees the
    idempotency key; but not while another call with the same key counts on it, having been answered 201.
    """
    business_id = allocation.business_id
    connection.execute(_LOCK_BUSINESSES, {"business_ids": [business_id]})
    withdrawn = connection.execute(_WITHDRAW, {"business_id": business_id, "id": allocation.id}).scalar_one_or_none()
    if withdrawn is None:
        return False
    key = {"business_id": business_id, "id": withdrawn}
    row = connection.execute(_UNCLAIMED_ALLOCATION, key).one_or_none()
    if row is None:
        return False
    payout_user_id, amount = row
    parameters = {"payout_user_id": payout_user_id, "amount": amount, "reversal_id": new_id()}
    if connection.execute(_REVERSE, key | parameters).rowcount != 1:
        text = "an allocation without its user or business cannot be reversed"
        raise LedgerError(text)
    return True


def _lock_and_read(connection: Connection, allocations: Sequence[Allocation]) -> LockedState:
    named_keys = {(allocation.business_id, allocation.api_key_id) for allocation in allocations}
    business_ids = list({business_id for business_id, _ in named_keys})
    rows = connection.execute(_LOCK_BUSINESSES, {"business_ids": business_ids})
    businesses = {id_: BusinessState(balance, enabled) for id_, balance, enabled in rows}
    keys = connection.execute(
        _CLOCK_AND_API_KEYS,
        {
            "business_ids": [business_id for business_id, _ in named_keys],
            "api_key_ids": [api_key_id for _, api_key_id in named_keys],
        },
    ).all()
    return LockedState(
        now_us=max(now_us for now_us, *_ in keys),
        businesses=businesses,
        live_api_keys={(business_id, api_key_id) for _, business_id, api_key_id, is_live in keys if is_live},
        history_keys=_read_history_keys(connection, allocations),
        claimed_keys=_read_claimed_keys(connection, allocations),
        idempotency_uses=_read_idempotency_uses(connection, allocations),
    )


def _read_history_keys(connection: Connection, allocations: Sequence[Allocation]) -> set[tuple[UUID, UUID]]:
    parameters = {
        "business_ids": [allocation.business_id for allocation in allocations],
        "ids": [allocation.id for allocation in allocations],
    }
    return {(business_id, id_) for business_id, id_ in connection.execute(_HISTORY_KEYS, parameters)}


def _read_claimed_keys(connection: Connection, allocations: Sequence[Allocation]) -> set[tuple[UUID, UUID]]:
    with_key = [allocation for allocation in allocations if allocation.idempotency_key is not None]
    if not with_key:
        return set()  # only calls with an idempotency key can be replays
    parameters = {"business_ids": [each.business_id for each in with_key], "ids": [each.id for each in with_key]}
    return {(business_id, id_) for business_id, id_ in connection.execute(_CLAIMED_KEYS, parameters)}


def _write_claims(connection: Connection, claims: Sequence[Claim]) -> None:
    connection.execute(
        _WRITE_CLAIMS,
        {
            "business_ids": [claim.allocation.business_id for claim in claims],
            "ids": [claim.allocation.id for claim in claims],
            "transaction_ids": [claim.committed_id for claim in claims],
        },
    )


def _read_idempotency_uses(
    connection: Connection, allocations: Sequence[Allocation]
) -> dict[tuple[UUID, str], IdempotencyUse]:
    keys = {(each.business_id, each.idempotency_key) for each in allocations if each.idempotency_key is not None}
    if not keys:
        return {}
    parameters = {
        "business_ids": [business_id for business_id, _ in keys],
        "idempotency_keys": [key for _, key in keys],
    }
    rows = connection.execute(_IDEMPOTENCY_USES, parameters)
    return {(business_id, key): IdempotencyUse(*use) for business_id, key, *use in rows}


def _write(connection: Connection, hash_secret: bytes, entries: Sequence[Entry]) -> None:
    users: dict[tuple[UUID, str], int] = {}
    debits: dict[UUID, int] = {}
    for entry in entries:
        allocation = entry.allocation
        user = (allocation.business_id, allocation.email)
        users[user] = users.get(user, 0) + allocation.amount_cents
        debits[allocation.business_id] = debits.get(allocation.business_id, 0) + allocation.amount_cents

    rows = connection.execute(
        _CREDIT_USERS,
        {
            "business_ids": [business_id for business_id, _ in users],
            "ids": [new_id() for _ in users],
            "emails": [email for _, email in users],
            "hash_digests": [digest_of(payout_hash(hash_secret, *user)) for user in users],
            "amounts": list(users.values()),
        },
    )
    user_ids: dict[tuple[UUID, str], UUID] = {}
    balances: dict[tuple[UUID, str], int] = {}
    for business_id, email, user_id, balance_after in rows:
        user_ids[business_id, email] = user_id
        balances[business_id, email] = balance_after - users[business_id, email]

    user_balances_after = []
    for entry in entries:
        user = (entry.allocation.business_id, entry.allocation.email)
        balances[user] += entry.allocation.amount_cents
        user_balances_after.append(balances[user])

    connection.execute(_DEBIT_BUSINESSES, {"business_ids": list(debits), "amounts": list(debits.values())})
    connection.execute(
        _WRITE_HISTORY,
        {
            "business_ids": [entry.allocation.business_id for entry in entries],
            "ids": [entry.allocation.id for entry in entries],
            "payout_user_ids": [user_ids[e.allocation.business_id, e.allocation.email] for e in entries],
            "amounts": [entry.allocation.amount_cents for entry in entries],
            "payout_balances_after": [entry.payout_balance_after_cents for entry in entries],
            "user_balances_after": user_balances_after,
            "idempotency_keys": [entry.allocation.idempotency_key for entry in entries],
            "idempotency_attempts": [entry.idempotency_attempt for entry in entries],
        },
    )
