"""References: a business's own names for its payments. Each pays once, through whichever door it comes.

A row of `payment_references` is written in the transaction that commits a call or accepts a batch, and never changed.
Its reference is free again when the payment was reversed, or when its batch was cancelled before it was paid; this is
read from the history and the batch. The next payment with the reference is its next attempt.
"""

from collections.abc import Iterator, Sequence
from uuid import UUID

from sqlalchemy import Connection

from core.database.arrays import text_array
from core.database.connection import driver_of
from core.ledger.allocation import Use

# The payment that stands counts, and where none does, the latest attempt. (Earlier releases paid a reference any number
# of times.) `OFFSET 0` keeps each look-up one of an index (see `_READ_STATE` of the statements).
_READ_USES = """
    SELECT latest.business_id, latest.reference, payment_id, email, amount, attempt, is_free,
        latest.batch_id IS NOT NULL AND EXISTS (
            SELECT FROM payout_batches
            WHERE payout_batches.business_id = latest.business_id AND payout_batches.id = latest.batch_id
                AND released_at IS NULL AND finished_at IS NULL
            OFFSET 0
        )
    FROM {wanted} AS wanted (business_id, reference)
    CROSS JOIN LATERAL (
        SELECT named.*,
            EXISTS (
                SELECT FROM payout_transactions AS reversal
                WHERE reversal.business_id = named.business_id AND reversal.reversed_id = named.payment_id
                OFFSET 0
            ) OR (
                named.batch_id IS NOT NULL
                AND EXISTS (
                    SELECT FROM payout_batches
                    WHERE payout_batches.business_id = named.business_id AND payout_batches.id = named.batch_id
                        AND status = 'cancelled'
                    OFFSET 0
                )
                AND NOT EXISTS (
                    SELECT FROM payout_transactions AS paid
                    WHERE paid.business_id = named.business_id AND paid.id = named.payment_id
                    OFFSET 0
                )
            ) AS is_free
        FROM payment_references AS named
        WHERE named.business_id = wanted.business_id AND named.reference = wanted.reference
        ORDER BY is_free, attempt DESC
        LIMIT 1
    ) AS latest
"""

READ_REFERENCE_USES = _READ_USES.format(wanted="unnest(%(business_ids)s::uuid[], %(references)s::text[])")
"""Takes a business id and a reference for each; gives what `Use` is made of."""

_READ_USES_OF_ONE_BUSINESS = _READ_USES.format(
    wanted="(SELECT %(business_id)s::uuid, reference FROM unnest(%(references)s::text[]) AS reference)"
)


def read_uses_of_one_business(
    connection: Connection, business_id: UUID, references: Sequence[str]
) -> Iterator[tuple[str, Use]]:
    """Yield those of a business's references that were used before, and what for."""
    found = driver_of(connection).execute(
        _READ_USES_OF_ONE_BUSINESS, {"business_id": business_id, "references": text_array(references)}
    )
    for _, reference, *use in found:
        yield reference, Use(*use)
