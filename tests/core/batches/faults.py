"""What tests of payout batches share."""

import pytest

from core.batches import payment
from core.batches.payout_batch import PayoutBatch
from core.database.connection import Database

THREADS = 8
FUNDS_CENTS = 1_000_000


def die_in_chunk(database: Database, batch: PayoutBatch, first: int, rows_max: int) -> None:
    """Pay a chunk, but end before its commit."""

    def pay_and_die() -> None:
        with database.pipeline() as connection:
            payment.pay_chunk(connection, batch.business_id, batch.id, first, rows_max)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pay_and_die()
