"""Sealing goes on from where it ended, in turns, and never over what was changed meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import sqlalchemy as sa

from core.chain import history
from core.chain.digests import ROWS, TAG_BYTES
from core.chain.sealer import Sealer, seal_all
from core.credentials import seal_key
from core.database.connection import Database
from tests.core.builders import HASH_SECRET, allocate, allocation_of, run_sql
from tests.core.chain.conftest import find_places
from tests.servers import Account, open_account

KEY = seal_key(HASH_SECRET)


def pay(database: Database, account: Account, count: int) -> None:
    allocate(database, *[allocation_of(account, f"{number % 7}@example.com", 1) for number in range(count)])


def read_seals(database: Database, business_id: UUID) -> list[tuple[int, int, int]]:
    query = sa.text(
        "SELECT first_sequence, last_sequence, length(tags) FROM history_seals WHERE business_id = :id ORDER BY 1"
    )
    with database.transaction() as connection:
        return [tuple(row) for row in connection.execute(query, {"id": business_id})]


def test_stretches_grow_to_their_size_whatever_the_steps(database: Database, payer: Account) -> None:
    for count in (1, 600, 398, 1, 1_500):
        pay(database, payer, count)
        seal_all(database, HASH_SECRET)
    assert read_seals(database, payer.business.id) == [
        (1, ROWS, ROWS * TAG_BYTES),
        (ROWS + 1, 2 * ROWS, ROWS * TAG_BYTES),
        (2 * ROWS + 1, 2_501, 501 * TAG_BYTES),
    ]
    other = open_account(database)
    pay(database, other, 2_500)
    with database.transaction() as connection:
        assert history.take_turn(connection)
        assert history.seal(connection, KEY, [other.business.id], rows_max=2_400) == [other.business.id]
    with database.transaction() as connection:
        assert history.take_turn(connection)
        assert history.seal(connection, KEY, [other.business.id]) == []
    assert len(read_seals(database, other.business.id)) == 3
    assert find_places(database) == []


def test_few_rows_wait_for_a_while_and_many_do_not(database: Database, payer: Account) -> None:
    patient = Sealer(database, HASH_SECRET, rows_min=100, wait_s=3600)
    assert patient.work(60)
    assert read_seals(database, payer.business.id) == [(1, 1, TAG_BYTES)]
    pay(database, payer, 99)
    assert patient.work(60)
    assert read_seals(database, payer.business.id) == [(1, 1, TAG_BYTES)]
    pay(database, payer, 1)
    assert patient.work(60)
    assert read_seals(database, payer.business.id) == [(1, 101, 101 * TAG_BYTES)]


def test_two_that_seal_at_once_take_turns(shared_database: Database) -> None:
    accounts = [open_account(shared_database) for _ in range(5)]
    with ThreadPoolExecutor(3) as threads:
        sealing = [threads.submit(seal_all, shared_database, HASH_SECRET) for _ in range(2)]
        for _ in range(5):
            for account in accounts:
                pay(shared_database, account, 30)
        for each in sealing:
            each.result()
    seal_all(shared_database, HASH_SECRET)
    for account in accounts:
        assert read_seals(shared_database, account.business.id) == [(1, 151, 151 * TAG_BYTES)]
    assert find_places(shared_database) == []


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM payout_transactions WHERE sequence = 12",
        "UPDATE history_seals SET tags = substring(tags FROM 17)",
        "UPDATE history_seals SET digest = sha256('x')",
    ],
)
def test_what_was_changed_is_not_sealed_over(database: Database, payer: Account, change: str) -> None:
    pay(database, payer, 9)
    seal_all(database, HASH_SECRET)
    pay(database, payer, 5)
    run_sql(database, change)
    seal_all(database, HASH_SECRET)
    ((first, last, _),) = read_seals(database, payer.business.id)
    assert (first, last) == (1, 11 if "sequence" in change else 10)
    assert find_places(database)
