"""A business with some of everything, sealed, for tests that change it behind the product's back."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from core import admin_actions
from core.chain.proof import prove
from core.chain.sealer import seal_all
from core.credentials import KeyKind
from core.database.connection import Database
from core.ids import new_id
from core.ledger.day_sums import sum_together
from core.parties.audit import COMMAND_LINE
from tests.core.batch_builders import accept, cancel, make_rows, pay_all, pay_chunk
from tests.core.builders import HASH_SECRET, allocate, allocation_of, withdraw
from tests.servers import Account, open_account


@dataclass(frozen=True)
class World:
    """What there is, by the names that the tests' statements use."""

    database: Database
    account: Account
    ids: dict[str, UUID]


def find_places(database: Database) -> list[str]:
    """Return the ids that a proof names."""
    with database.snapshot() as connection:
        proof = prove(connection, HASH_SECRET)
    assert proof.are_seals_compared
    assert proof.balanced == (proof.places == 0)
    return [each.id for each in proof.verification.discrepancies] + [each.id for each in proof.alterations]


def make_world(database: Database) -> World:
    account = open_account(database)
    own = account.business.id
    kept = allocation_of(account, "a@example.com", 30, idempotency_key="order-1")
    taken = allocation_of(account, "b@example.com", 50, idempotency_key="order-2")
    other = allocation_of(account, "b@example.com", 20)
    allocate(database, kept, taken, other)
    assert withdraw(database, taken)
    standing, withdrawn = (allocation_of(account, "a@example.com", 30, idempotency_key="order-1") for _ in range(2))
    allocate(database, standing)
    allocate(database, withdrawn)
    withdraw(database, withdrawn)
    paid = accept(database, account, make_rows(3, 4, 5))
    pay_all(database, paid)
    open_ = accept(database, account, make_rows(6, 7, 8))
    pay_chunk(database, open_, 0, rows_max=1)
    cancelled = accept(database, account, make_rows(9))
    cancel(database, cancelled)
    with database.transaction() as connection:
        admin_actions.deposit(connection, COMMAND_LINE, own, 500)
        admin_actions.add_funds(connection, COMMAND_LINE, own, 200)
        live, _ = admin_actions.create_api_key(connection, COMMAND_LINE, own, KeyKind.SECRET)
        rolled, _ = admin_actions.create_api_key(connection, COMMAND_LINE, own, KeyKind.SECRET)
        revoked, _ = admin_actions.create_api_key(connection, COMMAND_LINE, own, KeyKind.SECRET)
        admin_actions.roll_api_key(connection, COMMAND_LINE, own, rolled.id, grace=timedelta(hours=1))
        admin_actions.revoke_api_key(connection, COMMAND_LINE, own, revoked.id)
        sum_together(connection, [own])
        users = connection.execute(sa.text("SELECT id FROM payout_users ORDER BY email")).scalars().all()
        deposit = connection.execute(sa.text("SELECT id FROM main_transactions WHERE amount = 500")).scalar_one()
        line = connection.execute(
            sa.text("SELECT id FROM audit_log WHERE business_id = :id ORDER BY id LIMIT 1"), {"id": own}
        ).scalar_one()
    seal_all(database, HASH_SECRET)
    named = {
        "business": own,
        "twin": account.business.twin_id,
        "kept": kept.id,
        "taken": taken.id,
        "other": other.id,
        "standing": standing.id,
        "withdrawn": withdrawn.id,
        "paid": paid.id,
        "open": open_.id,
        "cancelled": cancelled.id,
        "live": live.id,
        "rolled": rolled.id,
        "revoked": revoked.id,
        "deposit": deposit,
        "line": line,
        "new": new_id(),
    }
    # Users by e-mail: 0@, 1@ and 2@ of the batches, then a@ and b@.
    return World(database, account, named | dict(zip(["0", "1", "2", "a", "b"], users, strict=True)))


@pytest.fixture
def world(database: Database) -> World:
    made = make_world(database)
    assert find_places(database) == []
    return made
