"""Lists from and to a time read only a part of the history, and miss nothing, whatever the clock said."""

import random
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from core.chain.sealer import seal_all
from core.database.connection import Database
from core.ledger.history import Position, Selection, list_transactions
from tests.core.builders import HASH_SECRET, run_sql
from tests.servers import Account, open_account

_WRITE = """
    INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after, created_at, sequence)
    SELECT :id, uuidv7(), 'funding', 1, 0, moment, 1 + :written + number
    FROM unnest(CAST(:moments AS timestamptz[])) WITH ORDINALITY AS rows (moment, number)
"""


def write(database: Database, account: Account, written: int, moments: list[datetime]) -> None:
    run_sql(database, _WRITE, id=account.business.id, written=written, moments=moments)
    run_sql(
        database,
        "UPDATE businesses SET last_sequence = last_sequence + :rows WHERE id = :id",
        rows=len(moments),
        id=account.business.id,
    )


def test_lists_by_time_are_complete_and_in_order(shared_database: Database) -> None:
    database, payer = shared_database, open_account(shared_database)
    random_ = random.Random(7)  # noqa: S311 (not a secret)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    clock = start
    written = 0
    # Stretches that are sealed and one that is not; the clock goes on, is put back now and then, and jumps ahead once.
    for count in (1_200, 900, 1, 1_500, 300):
        moments = []
        for number in range(count):
            clock += timedelta(seconds=random_.randrange(-5, 20))
            clock += timedelta(days=40 if written + number == 2_000 else -40 if written + number == 2_050 else 0)
            moments.append(clock)
        write(database, payer, written, moments)
        written += count
        if count != 300:
            seal_all(database, HASH_SECRET)
    with database.transaction() as connection:
        rows = connection.execute(
            sa.text("SELECT id, created_at FROM payout_transactions WHERE business_id = :id ORDER BY sequence DESC"),
            {"id": payer.business.id},
        ).all()
        for _ in range(40):
            since = start + timedelta(seconds=random_.randrange(-1_000, 40_000))
            until = since + timedelta(seconds=random_.choice([0, 1, 60, 5_000, 50_000, 10_000_000]))
            for selection in (Selection(since=since), Selection(until=until), Selection(since=since, until=until)):
                expected = [
                    row
                    for row in rows
                    if (selection.since is None or row.created_at >= selection.since)
                    and (selection.until is None or row.created_at < selection.until)
                ]
                found = list_transactions(connection, payer.business.id, selection, limit=10_000)
                assert [row.id for row in found] == [row.id for row in expected]
                if len(expected) > 10:
                    place = Position(expected[4].created_at, expected[4].id)
                    page = list_transactions(connection, payer.business.id, selection, limit=5, after=place)
                    assert [row.id for row in page] == [row.id for row in expected[5:10]]
