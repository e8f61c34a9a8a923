"""`verify` finds what does not balance, and says where."""

from collections.abc import Callable
from uuid import UUID

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.ids import IdKind, format_id, new_id
from tests.core.builders import allocate, allocation_of, run_sql, withdraw
from tests.servers import Account, open_account, verify_books


def wrong_ids(database: Database) -> list[str]:
    verification = verify_books(database)
    assert verification.balanced == (not verification.discrepancies)
    return [each.id for each in verification.discrepancies]


@pytest.fixture
def ids(database: Database, payer: Account) -> dict[str, UUID]:
    """Pay 30 cents to a@, 50 to b@, take 50 back; return the ids of what there is."""
    kept, taken = allocation_of(payer, "a@example.com", 30), allocation_of(payer, "b@example.com", 50)
    allocate(database, kept, taken)
    assert withdraw(database, taken)
    with database.transaction() as connection:
        user_ids = connection.exec_driver_sql("SELECT id FROM payout_users ORDER BY email").scalars().all()
        reversal_id = connection.exec_driver_sql(
            "SELECT id FROM payout_transactions WHERE type = 'reversal'"
        ).scalar_one()
        funding_id = connection.execute(
            sa.text("SELECT id FROM main_transactions WHERE business_id = :id"), {"id": payer.business.id}
        ).scalar_one()
    return {
        "business": payer.business.id,
        "funding": funding_id,
        "a": user_ids[0],
        "b": user_ids[1],
        "kept": kept.id,
        "taken": taken.id,
        "reversal": reversal_id,
    }


def business_and(*users: str) -> Callable[[dict[str, UUID]], list[str]]:
    return lambda ids: [
        format_id(IdKind.BUSINESS, ids["business"]),
        *[format_id(IdKind.PAYOUT_USER, ids[each]) for each in users],
    ]


def user(name: str) -> Callable[[dict[str, UUID]], list[str]]:
    return lambda ids: [format_id(IdKind.PAYOUT_USER, ids[name])]


def test_an_empty_database_balances(database: Database) -> None:
    verification = verify_books(database)
    assert (verification.businesses, verification.payout_users, verification.transactions) == (0, 0, 0)
    assert verification.balanced


def test_the_books_balance_after_work(database: Database, ids: dict[str, UUID]) -> None:
    verification = verify_books(database)
    # The business and its twin, each funded once; two allocations and a reversal.
    assert (verification.businesses, verification.payout_users, verification.transactions) == (2, 2, 5)
    assert verification.discrepancies == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE businesses SET payout_balance = payout_balance + 1 WHERE id = :business", business_and()),
        (
            "UPDATE businesses SET reserved_balance = 1, payout_balance = payout_balance - 1 WHERE id = :business",
            business_and(),
        ),
        ("UPDATE payout_users SET balance = balance + 1 WHERE id = :a", user("a")),
        ("UPDATE payout_users SET balance = 0 WHERE id = :a", user("a")),
        ("UPDATE payout_transactions SET amount = amount + 1 WHERE id = :kept", business_and("a")),
        ("DELETE FROM payout_transactions WHERE id = :kept", business_and("a")),
        (
            "DELETE FROM payout_transactions WHERE business_id = :business AND type = 'funding'",
            lambda ids: [*business_and()(ids), format_id(IdKind.TRANSACTION, ids["funding"])],
        ),
        ("DELETE FROM payout_transactions WHERE id = :reversal", business_and("b")),
        ("DELETE FROM payout_users WHERE id = :a", user("a")),
    ],
)
def test_a_row_changed_behind_our_back_is_named(
    database: Database, ids: dict[str, UUID], change: str, expected: Callable[[dict[str, UUID]], list[str]]
) -> None:
    run_sql(database, change, **ids)
    assert wrong_ids(database) == expected(ids)


def test_an_allocation_moved_to_another_user_names_both(database: Database, ids: dict[str, UUID]) -> None:
    run_sql(
        database, "UPDATE payout_transactions SET payout_user_id = :b WHERE id = :kept", b=ids["b"], kept=ids["kept"]
    )
    assert sorted(wrong_ids(database)) == sorted([*user("a")(ids), *user("b")(ids)])


def test_a_reversal_without_its_allocation_is_named(database: Database, ids: dict[str, UUID]) -> None:
    run_sql(database, "DELETE FROM payout_transactions WHERE id = :id", id=ids["taken"])
    assert wrong_ids(database) == [*business_and("b")(ids), format_id(IdKind.TRANSACTION, ids["reversal"])]


def test_a_reversal_of_another_users_allocation_is_named(database: Database, ids: dict[str, UUID]) -> None:
    run_sql(
        database,
        "UPDATE payout_transactions SET reversed_id = :kept WHERE id = :reversal",
        kept=ids["kept"],
        reversal=ids["reversal"],
    )
    assert wrong_ids(database) == [format_id(IdKind.TRANSACTION, ids["reversal"])]


def test_a_user_without_a_business_is_named(database: Database) -> None:
    id_ = new_id()
    run_sql(
        database,
        "INSERT INTO payout_users (business_id, id, email, hash_digest) VALUES (:business_id, :id, 'a@b.c', '')",
        business_id=new_id(),
        id=id_,
    )
    assert wrong_ids(database) == [format_id(IdKind.PAYOUT_USER, id_)]


def test_a_history_without_a_business_is_named(database: Database) -> None:
    business_id, funding_id = new_id(), new_id()
    run_sql(
        database,
        "INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after)"
        " VALUES (:business_id, :id, 'funding', 5, 5)",
        business_id=business_id,
        id=funding_id,
    )
    assert wrong_ids(database) == [
        format_id(IdKind.BUSINESS, business_id),
        format_id(IdKind.TRANSACTION, funding_id),
    ]


def test_a_discrepancy_says_what_is_and_what_should_be(database: Database) -> None:
    payer = open_account(database, funds_cents=100)
    run_sql(database, "UPDATE businesses SET payout_balance = 107 WHERE id = :id", id=payer.business.id)
    (discrepancy,) = verify_books(database).discrepancies
    assert (discrepancy.expected_cents, discrepancy.actual_cents) == (100, 107)
    assert "payout_balance" in discrepancy.rule
