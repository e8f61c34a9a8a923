"""The statements that carry allocations out: set-based, as many for any group size.

Those of the hot path go to the driver itself, which can send several before it waits (`Database.pipeline`).
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import digest_of, payout_hash
from core.database.arrays import integer_array, text_array, uuid_array
from core.database.connection import driver_of, send_all
from core.database.waits import limited_wait
from core.ids import new_id
from core.ledger.allocation import BusinessState, Claim, Entry, LockedState, Use, decide
from core.ledger.references import READ_REFERENCE_USES
from core.messages import Allocation, Outcome


class LedgerError(Exception):
    """The books are not what every transaction of ours leaves behind; whatever was begun is rolled back."""


# In id order, so that two groups can never wait for each other in a circle.
_LOCK_BUSINESSES = """
    SELECT id, payout_balance, payouts_enabled, last_sequence, requires_keys, fence_us
    FROM businesses
    WHERE id = ANY(%(business_ids)s::uuid[])
    ORDER BY id
    FOR NO KEY UPDATE
"""

# A row that another transaction holds is left out.
_LOCK_FREE_BUSINESSES = f"{_LOCK_BUSINESSES} SKIP LOCKED"
_FIND_BUSINESSES = "SELECT id FROM businesses WHERE id = ANY(%(business_ids)s::uuid[])"

# A statement of its own, so that its snapshot is taken when the locks are held: whoever held them before has
# committed, and revoking a key takes the same lock. `OFFSET 0` makes every look-up one of an index; from a young
# table's statistics, the planner would rather read all of it, and keep that plan while the table grows.
_READ_STATE = """
    SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint),
        ARRAY(
            SELECT position
            FROM unnest(%(key_business_ids)s::uuid[], %(api_key_ids)s::uuid[])
                WITH ORDINALITY AS wanted (business_id, id, position)
            WHERE EXISTS (
                SELECT FROM api_keys
                WHERE api_keys.business_id = wanted.business_id AND api_keys.id = wanted.id
                    AND kind = 'secret' AND (revoked_at IS NULL OR revoked_at > clock_timestamp())
                OFFSET 0
            )
        ),
        ARRAY(
            SELECT position
            FROM unnest(%(business_ids)s::uuid[], %(ids)s::uuid[])
                WITH ORDINALITY AS wanted (business_id, id, position)
            WHERE EXISTS (
                SELECT FROM payout_transactions
                WHERE payout_transactions.business_id = wanted.business_id AND payout_transactions.id = wanted.id
                OFFSET 0
            )
        )
"""

# A key's latest attempt counts; the earlier ones were all reversed. A key may also have accepted a payout batch, which
# is never what a single call asks for: no e-mail is empty.
_READ_IDEMPOTENCY_USES = """
    SELECT latest.business_id, latest.idempotency_key, latest.id, email, amount, idempotency_attempt,
        EXISTS (
            SELECT FROM payout_transactions AS reversal
            WHERE reversal.business_id = latest.business_id AND reversal.reversed_id = latest.id
        )
    FROM unnest(%(business_ids)s::uuid[], %(idempotency_keys)s::text[]) AS wanted (business_id, idempotency_key)
    CROSS JOIN LATERAL (
        SELECT payout_transactions.*
        FROM payout_transactions
        WHERE payout_transactions.business_id = wanted.business_id
            AND payout_transactions.idempotency_key = wanted.idempotency_key
        ORDER BY idempotency_attempt DESC
        LIMIT 1
    ) AS latest
    JOIN payout_users ON payout_users.business_id = latest.business_id AND payout_users.id = payout_user_id
    UNION ALL
    SELECT business_id, idempotency_key, id, '', amount, 0, FALSE
    FROM unnest(%(business_ids)s::uuid[], %(idempotency_keys)s::text[]) AS wanted (business_id, idempotency_key)
    JOIN payout_batches USING (business_id, idempotency_key)
"""

_READ_CLAIMS = """
    SELECT business_id, id, withdrawn_at IS NOT NULL
    FROM unnest(%(business_ids)s::uuid[], %(ids)s::uuid[]) AS wanted (business_id, id)
    JOIN claims USING (business_id, id)
"""

_READ_COMMITTED = """
    SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint), id, EXISTS (
        SELECT FROM payout_transactions
        WHERE payout_transactions.business_id = wanted.business_id AND payout_transactions.id = wanted.id
        OFFSET 0
    )
    FROM unnest(%(business_ids)s::uuid[], %(ids)s::uuid[]) AS wanted (business_id, id)
"""

# The row is locked already. A fence is never lowered.
_RAISE_FENCES = """
    UPDATE businesses
    SET fence_us = wanted.fence_us
    FROM unnest(%(business_ids)s::uuid[], %(fences)s::bigint[]) AS wanted (id, fence_us)
    WHERE businesses.id = wanted.id AND businesses.fence_us < wanted.fence_us
"""

# Credits, history and debits are made of the same rows, so that none can be written without the others.
_WRITE = """
    WITH entry AS MATERIALIZED (
        SELECT *
        FROM unnest(
            %(business_ids)s::uuid[], %(ids)s::uuid[], %(emails)s::text[], %(hash_digests)s::text[],
            %(amounts)s::bigint[], %(payout_balances_after)s::bigint[], %(later_credits)s::bigint[],
            %(idempotency_keys)s::text[], %(idempotency_attempts)s::smallint[], %(sequences)s::bigint[],
            %(references)s::text[]
        ) AS entry (
            business_id, id, email, hash_digest, amount, payout_balance_after, later_credits, idempotency_key,
            idempotency_attempt, sequence, reference
        )
    ), credited AS (
        INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
        SELECT business_id, uuidv7(), email, decode(hash_digest, 'hex'), sum(amount)
        FROM entry
        GROUP BY business_id, email, hash_digest
        ON CONFLICT (business_id, email) DO UPDATE
            SET balance = existing.balance + excluded.balance, updated_at = now()
        RETURNING business_id, email, id, balance
    ), written AS (
        INSERT INTO payout_transactions (
            business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, idempotency_key,
            idempotency_attempt, sequence, reference
        )
        SELECT business_id, entry.id, 'allocation', credited.id, amount, payout_balance_after,
            balance - later_credits, idempotency_key, idempotency_attempt, sequence, reference
        FROM entry
        JOIN credited USING (business_id, email)
        RETURNING business_id, amount
    )
    UPDATE businesses
    SET payout_balance = payout_balance - debit.amount, last_sequence = last_sequence + debit.rows
    FROM (SELECT business_id, sum(amount) AS amount, count(*) AS rows FROM written GROUP BY business_id) AS debit
    WHERE businesses.id = debit.business_id
"""

# The unique key refuses a second payment with a reference, whatever was decided.
_WRITE_REFERENCES = """
    INSERT INTO payment_references (business_id, reference, attempt, payment_id, email, amount)
    SELECT * FROM unnest(
        %(business_ids)s::uuid[], %(references)s::text[], %(attempts)s::smallint[], %(ids)s::uuid[],
        %(emails)s::text[], %(amounts)s::bigint[]
    )
"""

_WRITE_CLAIMS = """
    INSERT INTO claims (business_id, id, transaction_id)
    SELECT * FROM unnest(%(business_ids)s::uuid[], %(ids)s::uuid[], %(transaction_ids)s::uuid[])
    ON CONFLICT DO NOTHING
"""

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
        UPDATE businesses SET payout_balance = payout_balance + :amount, last_sequence = last_sequence + 1
        WHERE id = :business_id
        RETURNING payout_balance, last_sequence
    ), payout_user AS (
        UPDATE payout_users SET balance = balance - :amount, updated_at = now()
        WHERE business_id = :business_id AND id = :payout_user_id
        RETURNING balance
    )
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, reversed_id, sequence
    )
    SELECT :business_id, :reversal_id, 'reversal', :payout_user_id, :amount, business.payout_balance,
        payout_user.balance, :id, business.last_sequence
    FROM business, payout_user
""")


def allocate(
    connection: Connection, hash_secret: bytes, allocations: Sequence[Allocation], *, wait_s: float | None = None
) -> list[Outcome]:
    """Debit, credit and write the history for a group; return the outcomes in its order.

    Runs inside the caller's transaction. Any number of deliveries of the same allocations pays once. Within
    `Database.pipeline`, what PostgreSQL refuses to write is raised at the pipeline's end.

    With `wait_s`, the business rows are waited for that long in all, and each row of a payout user that long; after
    that PostgreSQL raises an error, and nothing is written.
    """
    if not allocations:
        return []
    driver = driver_of(connection)
    business_ids = uuid_array({allocation.business_id for allocation in allocations})
    with limited_wait(driver, wait_s):
        locked = driver.execute(_LOCK_BUSINESSES, {"business_ids": business_ids})
    return _carry_out(driver, hash_secret, allocations, _read(driver, locked, allocations))


def allocate_where_free(
    connection: Connection, hash_secret: bytes, allocations: Sequence[Allocation]
) -> tuple[list[Outcome], set[UUID]]:
    """Do the same for the businesses whose rows nobody holds; return the ids of the others too.

    Nothing is written for those, whose outcome is `failed`.
    """
    driver = driver_of(connection)
    business_ids = {allocation.business_id for allocation in allocations}
    locked = driver.execute(_LOCK_FREE_BUSINESSES, {"business_ids": uuid_array(business_ids)})
    state = _read(driver, locked, allocations)
    held: set[UUID] = set()
    if missing := business_ids - state.businesses.keys():
        held = {id_ for (id_,) in driver.execute(_FIND_BUSINESSES, {"business_ids": uuid_array(missing)})}
    free = [allocation for allocation in allocations if allocation.business_id not in held]
    outcomes = iter(_carry_out(driver, hash_secret, free, state))
    return [Outcome.FAILED if each.business_id in held else next(outcomes) for each in allocations], held


def _carry_out(
    driver: psycopg.Connection, hash_secret: bytes, allocations: Sequence[Allocation], state: LockedState
) -> list[Outcome]:
    decision = decide(state, allocations)
    if decision.entries:
        _write(driver, hash_secret, decision.entries)
        _write_references(driver, [entry for entry in decision.entries if entry.allocation.reference is not None])
    if decision.claims:
        _write_claims(driver, decision.claims)
    if decision.fences_us:
        raise_fences(driver, decision.fences_us)
    send_all(driver)
    return decision.outcomes


class Call(Protocol):
    """What resolving has to know of an allocation: which one it is, and its deadline."""

    @property
    def id(self) -> UUID:
        """The allocation's id."""

    @property
    def business_id(self) -> UUID:
        """The business that is asked to pay."""

    @property
    def deadline_us(self) -> int:
        """Microseconds since 1970, by the database's clock."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What is certain about some calls behind their businesses' locks, at `now_us` by the database's clock."""

    now_us: int
    fences_us: Mapping[UUID, int]
    """By business id."""
    history_ids: Set[UUID]
    claimed_ids: Set[UUID]
    withdrawn_ids: Set[UUID]
    """Of calls that were answered 500 although they had committed, and are taken back already."""


def find_committed(connection: Connection, calls: Sequence[Call]) -> Committed:
    """Lock the businesses, then look up which calls are in the history or were replays.

    Behind the lock no worker is in the middle of one of them.
    """
    driver = driver_of(connection)
    locked = driver.execute(_LOCK_BUSINESSES, {"business_ids": uuid_array({each.business_id for each in calls})})
    keys = {
        "business_ids": uuid_array(each.business_id for each in calls),
        "ids": uuid_array(each.id for each in calls),
    }
    fences_us = {business_id: fence_us for business_id, *_, fence_us in locked}
    rows = driver.execute(_READ_COMMITTED, keys).fetchall()
    claims = driver.execute(_READ_CLAIMS, keys).fetchall()
    return Committed(
        now_us=rows[0][0] if rows else 0,
        fences_us=fences_us,
        history_ids={id_ for _, id_, is_in_history in rows if is_in_history},
        claimed_ids={id_ for _, id_, is_withdrawn in claims if not is_withdrawn},
        withdrawn_ids={id_ for _, id_, is_withdrawn in claims if is_withdrawn},
    )


def raise_fences(driver: psycopg.Connection, fences_us: Mapping[UUID, int]) -> None:
    """Raise the fences of businesses whose rows are locked: what has an earlier deadline is never paid."""
    driver.execute(_RAISE_FENCES, {"business_ids": uuid_array(fences_us), "fences": integer_array(fences_us.values())})


def withdraw(connection: Connection, call: Call) -> bool:
    """Take back what a call committed that was answered 500; return whether money moved.

    What it allocated is given back to the business, with a history row of type `reversal`, which frees the
    idempotency key and the reference; but not while another call with one of them was answered 201 for it.
    """
    business_id = call.business_id
    driver_of(connection).execute(_LOCK_BUSINESSES, {"business_ids": uuid_array([business_id])})
    withdrawn = connection.execute(_WITHDRAW, {"business_id": business_id, "id": call.id}).scalar_one_or_none()
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


def _read(
    driver: psycopg.Connection,
    locked: psycopg.Cursor[Any],
    allocations: Sequence[Allocation],
) -> LockedState:
    """Read all that a decision depends on, behind the locks; in a pipeline, in the round trip that takes those."""
    api_keys = list({(allocation.business_id, allocation.api_key_id) for allocation in allocations})
    keys = [allocation.key for allocation in allocations]
    # Only calls with an idempotency key or a reference can be replays.
    keyed = [allocation for allocation in allocations if allocation.idempotency_key is not None]
    referenced = [allocation for allocation in allocations if allocation.reference is not None]

    state = driver.execute(
        _READ_STATE,
        {
            "key_business_ids": uuid_array(business_id for business_id, _ in api_keys),
            "api_key_ids": uuid_array(api_key_id for _, api_key_id in api_keys),
            "business_ids": uuid_array(business_id for business_id, _ in keys),
            "ids": uuid_array(id_ for _, id_ in keys),
        },
    )
    claims: Iterable[tuple[UUID, UUID, bool]] = ()
    key_uses: Iterable[tuple[Any, ...]] = ()
    reference_uses: Iterable[tuple[Any, ...]] = ()
    if keyed or referenced:
        named = keyed if not referenced else [*{each.id: each for each in [*keyed, *referenced]}.values()]
        claims = driver.execute(
            _READ_CLAIMS,
            {
                "business_ids": uuid_array(each.business_id for each in named),
                "ids": uuid_array(each.id for each in named),
            },
        )
    if keyed:
        key_uses = driver.execute(
            _READ_IDEMPOTENCY_USES,
            {
                "business_ids": uuid_array(each.business_id for each in keyed),
                "idempotency_keys": text_array(each.idempotency_key for each in keyed),
            },
        )
    if referenced:
        reference_uses = driver.execute(
            READ_REFERENCE_USES,
            {
                "business_ids": uuid_array(each.business_id for each in referenced),
                "references": text_array(each.reference for each in referenced),
            },
        )

    send_all(driver)

    now_us, live_positions, committed_positions = state.fetchall()[0]
    claimed_keys: set[tuple[UUID, UUID]] = set()
    withdrawn_keys: set[tuple[UUID, UUID]] = set()
    for business_id, id_, is_withdrawn in claims:
        (withdrawn_keys if is_withdrawn else claimed_keys).add((business_id, id_))
    return LockedState(
        now_us=now_us,
        businesses={id_: BusinessState(*values) for id_, *values in locked},
        live_api_keys={api_keys[position - 1] for position in live_positions},
        history_keys={keys[position - 1] for position in committed_positions},
        claimed_keys=claimed_keys,
        withdrawn_keys=withdrawn_keys,
        idempotency_uses={(business_id, key): Use(*use) for business_id, key, *use in key_uses},
        reference_uses={(business_id, reference): Use(*use) for business_id, reference, *use in reference_uses},
    )


def _write(driver: psycopg.Connection, hash_secret: bytes, entries: Sequence[Entry]) -> None:
    allocations = [entry.allocation for entry in entries]
    # What each user gets after an entry, in the same group: the balance at the end is known only to PostgreSQL.
    later_credits: list[int] = []
    total_credits: dict[tuple[UUID, str], int] = {}
    for allocation in reversed(allocations):
        user = (allocation.business_id, allocation.email)
        later = total_credits.get(user, 0)
        later_credits.append(later)
        total_credits[user] = later + allocation.amount_cents
    later_credits.reverse()

    driver.execute(
        _WRITE,
        {
            "business_ids": uuid_array(each.business_id for each in allocations),
            "ids": uuid_array(each.id for each in allocations),
            "emails": text_array(each.email for each in allocations),
            "hash_digests": text_array(
                digest_of(payout_hash(hash_secret, each.business_id, each.email)).hex() for each in allocations
            ),
            "amounts": integer_array(each.amount_cents for each in allocations),
            "payout_balances_after": integer_array(entry.payout_balance_after_cents for entry in entries),
            "later_credits": integer_array(later_credits),
            "idempotency_keys": text_array(each.idempotency_key for each in allocations),
            "idempotency_attempts": integer_array(entry.idempotency_attempt for entry in entries),
            "sequences": integer_array(entry.sequence for entry in entries),
            "references": text_array(each.reference for each in allocations),
        },
    )


def _write_references(driver: psycopg.Connection, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    allocations = [entry.allocation for entry in entries]
    driver.execute(
        _WRITE_REFERENCES,
        {
            "business_ids": uuid_array(each.business_id for each in allocations),
            "references": text_array(each.reference for each in allocations),
            "attempts": integer_array(entry.reference_attempt for entry in entries),
            "ids": uuid_array(each.id for each in allocations),
            "emails": text_array(each.email for each in allocations),
            "amounts": integer_array(each.amount_cents for each in allocations),
        },
    )


def _write_claims(driver: psycopg.Connection, claims: Sequence[Claim]) -> None:
    driver.execute(
        _WRITE_CLAIMS,
        {
            "business_ids": uuid_array(claim.allocation.business_id for claim in claims),
            "ids": uuid_array(claim.allocation.id for claim in claims),
            "transaction_ids": uuid_array(claim.committed_id for claim in claims),
        },
    )
