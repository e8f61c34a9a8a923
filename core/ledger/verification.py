"""Proving that the books balance: every balance is the sum of its history, every reference leads somewhere."""

from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from core.ids import IdKind, format_id
from core.sealing import Seal


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A row that does not balance; amounts in cents."""

    id: str
    rule: str
    expected_cents: int
    actual_cents: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what was wrong."""

    businesses: int
    payout_users: int
    transactions: int
    discrepancies: list[Discrepancy]

    @property
    def balanced(self) -> bool:
        """Tell whether the books balance."""
        return not self.discrepancies


class Verdict(msgspec.Struct, frozen=True):
    """What a verification came to, for monitoring; `ended_at_us` is by the database's clock."""

    discrepancies: int
    ended_at_us: int
    took_s: float

    def seal(self, hash_secret: bytes) -> bytes:
        """Write it down so that nobody can make up another."""
        return Seal(hash_secret, "verdict").seal(msgspec.json.encode(self), b"")

    @staticmethod
    def open(data: bytes | None, hash_secret: bytes) -> "Verdict | None":
        """Read it; None where there is none, or where a release to come wrote it.

        Raises:
            ForgeryError: nobody of this installation wrote it.

        """
        if data is None:
            return None
        try:
            return msgspec.json.decode(Seal(hash_secret, "verdict").open(data, b""), type=Verdict)
        except msgspec.DecodeError:
            return None


_COUNTS = sa.text("""
    SELECT
        (SELECT count(*) FROM businesses),
        (SELECT count(*) FROM payout_users),
        (SELECT count(*) FROM payout_transactions)
""")

_BUSINESSES = sa.text("""
    SELECT COALESCE(businesses.id, history.business_id), COALESCE(expected, 0),
        COALESCE(payout_balance + reserved_balance, 0)
    FROM businesses
    FULL JOIN (
        SELECT business_id, SUM(CASE type WHEN 'allocation' THEN -amount ELSE amount END) AS expected
        FROM payout_transactions
        GROUP BY business_id
    ) AS history ON history.business_id = businesses.id
    WHERE businesses.id IS NULL OR payout_balance + reserved_balance <> COALESCE(expected, 0)
    ORDER BY 1
""")

_USERS = sa.text("""
    SELECT COALESCE(payout_users.id, history.payout_user_id), COALESCE(expected, 0), COALESCE(balance, 0)
    FROM payout_users
    FULL JOIN (
        SELECT business_id, payout_user_id, SUM(CASE type WHEN 'reversal' THEN -amount ELSE amount END) AS expected
        FROM payout_transactions
        WHERE payout_user_id IS NOT NULL
        GROUP BY business_id, payout_user_id
    ) AS history ON history.business_id = payout_users.business_id AND history.payout_user_id = payout_users.id
    WHERE payout_users.id IS NULL OR balance <> COALESCE(expected, 0)
    ORDER BY 1
""")

_OWNERLESS_USERS = sa.text("""
    SELECT payout_users.id, 0, payout_users.balance
    FROM payout_users
    LEFT JOIN businesses ON businesses.id = payout_users.business_id
    WHERE businesses.id IS NULL
    ORDER BY 1
""")

_REVERSALS = sa.text("""
    SELECT reversal.id, COALESCE(allocation.amount, 0), reversal.amount
    FROM payout_transactions AS reversal
    LEFT JOIN payout_transactions AS allocation
        ON allocation.business_id = reversal.business_id AND allocation.id = reversal.reversed_id
            AND allocation.type = 'allocation' AND allocation.payout_user_id = reversal.payout_user_id
    WHERE reversal.type = 'reversal' AND allocation.amount IS DISTINCT FROM reversal.amount
    ORDER BY 1
""")

_RESERVATIONS = sa.text("""
    SELECT COALESCE(businesses.id, batches.business_id), COALESCE(expected, 0), COALESCE(reserved_balance, 0)
    FROM businesses
    FULL JOIN (
        SELECT business_id, SUM(amount - allocated_amount) AS expected
        FROM payout_batches
        WHERE finished_at IS NULL
        GROUP BY business_id
    ) AS batches ON batches.business_id = businesses.id
    WHERE businesses.id IS NULL OR reserved_balance <> COALESCE(expected, 0)
    ORDER BY 1
""")

_BATCH_AMOUNTS = sa.text("""
    SELECT COALESCE(id, batch_id), COALESCE(history.amount, 0), COALESCE(allocated_amount, 0)
    FROM payout_batches
    FULL JOIN (
        SELECT business_id, batch_id, COUNT(*) AS rows, SUM(amount) AS amount
        FROM payout_transactions
        WHERE batch_id IS NOT NULL AND type = 'allocation'
        GROUP BY business_id, batch_id
    ) AS history
        ON history.business_id = payout_batches.business_id AND history.batch_id = payout_batches.id
    WHERE id IS NULL OR allocated_amount <> COALESCE(history.amount, 0) OR processed <> COALESCE(history.rows, 0)
    ORDER BY 1
""")

_BATCH_ITEMS = sa.text("""
    SELECT COALESCE(id, batch_id), COALESCE(items.amount, 0), COALESCE(payout_batches.amount, 0)
    FROM payout_batches
    FULL JOIN (
        SELECT business_id, batch_id, COUNT(*) AS rows, SUM(amount) AS amount
        FROM payout_batch_items
        GROUP BY business_id, batch_id
    ) AS items ON items.business_id = payout_batches.business_id AND items.batch_id = payout_batches.id
    WHERE id IS NULL OR payout_batches.amount <> COALESCE(items.amount, 0) OR total <> COALESCE(items.rows, 0)
    ORDER BY 1
""")

# An item's id is its history row's, from the moment on that it is paid.
_BATCH_ROWS = sa.text("""
    SELECT items.id, items.amount, COALESCE(history.amount, 0)
    FROM payout_batch_items AS items
    JOIN payout_batches AS batch ON batch.business_id = items.business_id AND batch.id = items.batch_id
    LEFT JOIN payout_transactions AS history ON history.business_id = items.business_id AND history.id = items.id
        AND history.batch_id = items.batch_id
    WHERE items.position < batch.processed AND history.amount IS DISTINCT FROM items.amount
    ORDER BY 1
""")

# Transfers are the fundings with their ids.
_MAIN_BALANCES = sa.text("""
    SELECT COALESCE(businesses.id, history.business_id), COALESCE(expected, 0), COALESCE(balance, 0)
    FROM businesses
    FULL JOIN (
        SELECT business_id, SUM(CASE type WHEN 'transfer' THEN -amount WHEN 'deposit' THEN amount END) AS expected
        FROM main_transactions
        GROUP BY business_id
    ) AS history ON history.business_id = businesses.id
    WHERE businesses.id IS NULL OR balance <> COALESCE(expected, 0)
    ORDER BY 1
""")

_TRANSFERS = sa.text("""
    SELECT transfer.id, transfer.amount, COALESCE(funding.amount, 0)
    FROM main_transactions AS transfer
    LEFT JOIN payout_transactions AS funding ON funding.business_id = transfer.business_id
        AND funding.id = transfer.id AND funding.type = 'funding'
    WHERE transfer.type IN ('transfer', 'external') AND funding.amount IS DISTINCT FROM transfer.amount
    ORDER BY 1
""")

_FUNDINGS = sa.text("""
    SELECT funding.id, 0, funding.amount
    FROM payout_transactions AS funding
    LEFT JOIN main_transactions AS origin ON origin.business_id = funding.business_id
        AND origin.id = funding.id AND origin.type IN ('transfer', 'external')
    WHERE funding.type = 'funding' AND origin.id IS NULL
    ORDER BY 1
""")

# One sum of each day and type: what differs in the count of rows alone shows as equal cents.
_DAY_SUMS = sa.text("""
    SELECT COALESCE(kept.business_id, history.business_id), COALESCE(history.amount, 0), COALESCE(kept.amount, 0)
    FROM payout_day_sums AS kept
    FULL JOIN (
        SELECT business_id, (created_at AT TIME ZONE 'UTC')::date AS day, type, COUNT(*) AS rows, SUM(amount) AS amount
        FROM payout_transactions
        JOIN payout_day_sums_progress USING (business_id)
        WHERE sequence <= last_sequence
        GROUP BY business_id, day, type
    ) AS history ON history.business_id = kept.business_id AND history.day = kept.day AND history.type = kept.type
    WHERE kept.amount IS DISTINCT FROM history.amount OR kept.count IS DISTINCT FROM history.rows
    ORDER BY 1, COALESCE(kept.day, history.day), COALESCE(kept.type, history.type)
""")

_REFERENCES = sa.text("""
    SELECT paid.id, paid.amount, COALESCE(named.amount, 0)
    FROM payout_transactions AS paid
    LEFT JOIN payment_references AS named ON named.business_id = paid.business_id
        AND named.reference = paid.reference AND named.payment_id = paid.id
    WHERE paid.type = 'allocation' AND paid.reference IS NOT NULL AND named.amount IS DISTINCT FROM paid.amount
    ORDER BY 1
""")

# A payment whose reference was used again must have been reversed, or never made.
_REFERENCES_USED_AGAIN = sa.text("""
    SELECT named.payment_id, 0, named.amount
    FROM payment_references AS named
    JOIN payment_references AS again ON again.business_id = named.business_id
        AND again.reference = named.reference AND again.attempt = named.attempt + 1
    WHERE named.attempt >= 0
        AND EXISTS (
            SELECT FROM payout_transactions AS paid
            WHERE paid.business_id = named.business_id AND paid.id = named.payment_id
        )
        AND NOT EXISTS (
            SELECT FROM payout_transactions AS reversal
            WHERE reversal.business_id = named.business_id AND reversal.reversed_id = named.payment_id
        )
    ORDER BY 1
""")

_RULES = [
    (
        IdKind.BUSINESS,
        _BUSINESSES,
        "payout_balance + reserved_balance must be funding - allocations + reversals of its history",
    ),
    (IdKind.PAYOUT_USER, _USERS, "balance must be allocations - reversals of the user's history"),
    (IdKind.PAYOUT_USER, _OWNERLESS_USERS, "the user must belong to a business"),
    (IdKind.BUSINESS, _RESERVATIONS, "reserved_balance must be what its unfinished payout batches have not paid yet"),
    (IdKind.BATCH, _BATCH_AMOUNTS, "what the payout batch has paid must be the allocations of its history"),
    (IdKind.BATCH, _BATCH_ITEMS, "the payout batch's total and amount must be those of its rows"),
    (IdKind.TRANSACTION, _BATCH_ROWS, "a paid row of a payout batch must be in the history with its amount"),
    (IdKind.BUSINESS, _MAIN_BALANCES, "balance must be deposits - transfers of the main balance's history"),
    (IdKind.TRANSACTION, _TRANSFERS, "what the main balance's history funded must be a funding of the same amount"),
    (IdKind.TRANSACTION, _FUNDINGS, "a funding must have its origin in the main balance's history"),
    (
        IdKind.BUSINESS,
        _DAY_SUMS,
        "a day's kept sum must be that of its history: find out which was changed, then: payouts business recount",
    ),
    (IdKind.TRANSACTION, _REFERENCES, "a payment with a reference must be the one that the reference names"),
    (IdKind.TRANSACTION, _REFERENCES_USED_AGAIN, "a payment whose reference was used again must have been reversed"),
    (IdKind.TRANSACTION, _REVERSALS, "a reversal must undo an allocation of the same user and amount"),
]


def verify(connection: Connection) -> Verification:
    """Check the whole database; the connection should see one moment of it (`Database.snapshot`)."""
    business_count, user_count, transaction_count = connection.execute(_COUNTS).one()
    discrepancies = [
        Discrepancy(format_id(kind, id_), rule, int(expected), int(actual))
        for kind, statement, rule in _RULES
        for id_, expected, actual in connection.execute(statement)
    ]
    return Verification(business_count, user_count, transaction_count, discrepancies)
