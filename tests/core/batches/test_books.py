"""Everything at once, at random: the books balance."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

import pytest

from core.batches import reading
from core.batches.acceptance import Accepted
from core.batches.payout_batch import PayoutBatch, PayoutBatchError
from core.database.connection import Database
from core.parties.businesses import fund_business
from tests.core.batch_builders import (
    assert_books_balance,
    cancel,
    cancel_unreleased,
    find_stalled,
    make_rows,
    pay_all,
    pay_chunk,
    read_batch,
    read_business,
    release_batch,
    switch_payouts,
    try_to_accept,
)
from tests.core.batches.faults import THREADS, die_in_chunk
from tests.core.builders import (
    allocate,
    allocation_of,
)
from tests.servers import open_account


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_at_once_the_books_balance(database: Database, seed: int) -> None:
    """Threads accept, release, refuse, pay (also from stale rows, and dying), cancel, call, fund, switch."""
    accounts = [open_account(database, funds_cents=2_000), open_account(database, funds_cents=2_000)]
    random = Random(seed)  # noqa: S311 (a fixed sequence)

    def pick_batch(random: Random) -> PayoutBatch | None:
        account = random.choice(accounts)
        with database.transaction() as connection:
            found = reading.list_batches(connection, account.business.id, limit=6)
        return random.choice(found) if found else None

    def submit(random: Random) -> None:
        rows = make_rows(*(random.randint(1, 60) for _ in range(random.randint(1, 25))), emails=5)
        key = random.choice([None, f"key {random.randint(0, 3)}"])
        account = random.choice(accounts)
        accepted = try_to_accept(database, account, rows, key)
        if isinstance(accepted, Accepted) and random.random() < 0.9:  # or its process dies first
            release_batch(database, accepted.batch)

    def refuse(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            cancel_unreleased(database, batch)

    def pay(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            first = max(0, batch.processed + random.choice([0, 0, 0, 0, -3, 3]))
            pay_chunk(database, batch, first, random.randint(1, 9))

    def die(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            die_in_chunk(database, batch, batch.processed, 5)

    def give_up(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            with suppress(PayoutBatchError):
                cancel(database, batch)

    def pay_one(random: Random) -> None:
        chosen = [random.choice(accounts) for _ in range(3)]
        allocate(
            database,
            *(allocation_of(each, f"{random.randint(0, 5)}@example.com", random.randint(1, 50)) for each in chosen),
        )

    def fund(random: Random) -> None:
        with database.transaction() as connection:
            fund_business(connection, random.choice(accounts).business.id, random.randint(1, 300))

    def switch(random: Random) -> None:
        switch_payouts(database, random.choice(accounts), enabled=random.random() < 0.8)

    def look(random: Random) -> None:
        assert_books_balance(database)

    acts: list[Callable[[Random], None]] = [
        *[pay] * 10,
        *[submit] * 5,
        *[pay_one] * 4,
        die,
        refuse,
        give_up,
        fund,
        switch,
        look,
    ]

    def work(seed: int) -> None:
        own = Random(seed)  # noqa: S311 (a fixed sequence)
        for _ in range(40):
            own.choice(acts)(own)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, [random.randrange(2**32) for _ in range(THREADS)]))

    assert_books_balance(database)
    for account in accounts:
        switch_payouts(database, account, enabled=True)
    with database.transaction() as connection:
        batches = [
            batch
            for account in accounts
            for batch in reading.list_batches(connection, account.business.id, limit=1_000)
        ]
    for batch in batches:
        cancel_unreleased(database, batch)
    by_id = {batch.id: batch for batch in batches}
    for batch_id, first in find_stalled(database, *accounts):
        pay_all(database, by_id[batch_id], first, 7)
    assert find_stalled(database, *accounts) == []
    assert {read_batch(database, batch).finished_at is None for batch in batches} == {False}
    assert [read_business(database, account).reserved_balance for account in accounts] == [0, 0]
