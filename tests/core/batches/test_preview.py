"""What a preview says of a file: what would be paid, and what equals payments of before."""

from typing import Any

import pytest

from core import admin_actions
from core.batches.acceptance import ReferencesReused
from core.batches.payout_batch import BatchRow
from core.batches.preview import PAYMENTS_LOOKED_AT_MAX, Door, Preview, look_ahead
from core.database.connection import Database
from core.messages import Outcome
from core.parties.audit import Actor
from core.parties.businesses import set_payouts_enabled
from tests.core.batch_builders import accept, cancel, make_rows, pay_all, pay_chunk, read_balances, submission_of
from tests.core.builders import allocate, allocation_of, withdraw
from tests.servers import Account, open_account

ADA = Actor("ada@example.com")


def preview(database: Database, account: Account, rows: list[BatchRow], key: str | None = None) -> Preview:
    found = preview_or_refusal(database, account, rows, key)
    assert isinstance(found, Preview), found
    return found


def preview_or_refusal(database: Database, account: Account, rows: list[BatchRow], key: str | None = None) -> Any:
    with database.transaction() as connection:
        return look_ahead(connection, submission_of(account, rows, key))


def test_a_file_of_new_payments_equals_nothing(database: Database, payer: Account) -> None:
    found = preview(database, payer, [*make_rows(1, 2), BatchRow("x@example.com", 3, "x")])
    assert (found.total, found.already_paid, found.amount, found.payout_balance) == (3, 0, 6, 1_000_000)
    assert (found.unnamed_rows, found.equal_rows, found.equal_batch, found.equal_payments) == (2, 0, None, [])
    assert read_balances(database, payer) == (1_000_000, 0)


def test_the_same_file_through_another_door_is_said_to_be_equal(database: Database, payer: Account) -> None:
    rows = make_rows(5, 6, 7)
    batch = accept(database, payer, rows, "dashboard-123")
    with database.transaction() as connection:
        admin_actions.record_batch_accepted(connection, ADA, batch)
    pay_all(database, batch)
    found = preview(database, payer, rows, "push-1")
    assert (found.equal_rows, found.unnamed_rows) == (3, 3)
    assert found.equal_batch is not None
    assert (found.equal_batch.door, found.equal_batch.by) == (Door.DASHBOARD, "ada@example.com")
    assert (found.equal_batch.at, found.equal_batch.batch_id) == (batch.created_at, batch.id)
    assert [each.row for each in found.equal_payments] == [0, 1, 2]
    assert {each.origin.batch_id for each in found.equal_payments} == {batch.id}
    assert None not in {each.payment_id for each in found.equal_payments}


def test_the_same_rows_in_another_order_with_one_more_are_counted(database: Database, payer: Account) -> None:
    rows = [BatchRow(f"{name}@example.com", 5) for name in "abc"]
    pay_all(database, accept(database, payer, rows, "push-1"))
    found = preview(database, payer, [*rows[::-1], BatchRow("new@example.com", 5)])
    assert (found.equal_rows, found.unnamed_rows, found.equal_batch) == (3, 4, None)
    assert {(each.origin.door, each.origin.by) for each in found.equal_payments} == {
        (Door.PUSH, f"key …{payer.secret_key[-4:]}")
    }


def test_a_single_call_counts_too_and_another_amount_does_not(database: Database, payer: Account) -> None:
    call = allocation_of(payer, "a@example.com", 5)
    allocate(database, call, allocation_of(payer, "b@example.com", 6))
    found = preview(database, payer, [BatchRow("a@example.com", 5), BatchRow("b@example.com", 5)])
    (equal,) = found.equal_payments
    assert (found.equal_rows, equal.row, equal.payment_id) == (1, 0, call.id)
    assert (equal.origin.door, equal.origin.by, equal.origin.batch_id) == (Door.CALL, "", None)


def test_rows_that_wait_to_be_paid_count_and_cancelled_or_reversed_ones_do_not(
    database: Database, payer: Account
) -> None:
    rows = make_rows(5, 6, 7)
    batch = accept(database, payer, rows)
    pay_chunk(database, batch, 0, 1)
    assert preview(database, payer, rows).equal_rows == 3
    cancel(database, batch)
    assert preview(database, payer, rows).equal_rows == 1
    undone = allocation_of(payer, "x@example.com", 9)
    allocate(database, undone)
    assert withdraw(database, undone)
    assert preview(database, payer, [BatchRow("x@example.com", 9)]).equal_rows == 0


def test_rows_with_references_are_not_compared(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com", 5))
    found = preview(database, payer, [BatchRow("a@example.com", 5, "march")])
    assert (found.unnamed_rows, found.equal_rows) == (0, 0)


def test_already_paid_rows_are_counted_and_others_refused(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com", 5, reference="march"))
    found = preview(database, payer, [BatchRow("a@example.com", 5, "march"), BatchRow("a@example.com", 6, "april")])
    assert (found.total, found.already_paid, found.amount) == (2, 1, 6)
    assert preview_or_refusal(database, payer, [BatchRow("a@example.com", 6, "march")]) == ReferencesReused([0])


def test_a_key_that_was_used_for_the_same_rows_accepts_nothing_again(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(5, 6), "push-1")
    found = preview(database, payer, make_rows(5, 6), "push-1")
    assert (found.replayed_batch_id, found.already_paid, found.amount) == (batch.id, 2, 0)
    other = preview_or_refusal(database, payer, make_rows(5, 7), "push-1")
    assert other is Outcome.IDEMPOTENCY_KEY_REUSED


def test_a_balance_that_is_too_small_is_shown(database: Database) -> None:
    account = open_account(database, funds_cents=10)
    found = preview(database, account, make_rows(11))
    assert (found.amount, found.payout_balance) == (11, 10)
    with database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=False)
    assert preview_or_refusal(database, account, make_rows(11)) is Outcome.PAYOUTS_DISABLED


def test_only_the_newest_payments_to_each_person_are_looked_at(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com", 5))
    others = [allocation_of(payer, "a@example.com", 6) for _ in range(PAYMENTS_LOOKED_AT_MAX)]
    allocate(database, *others[:-1])
    assert preview(database, payer, [BatchRow("a@example.com", 5)]).equal_rows == 1
    allocate(database, others[-1])
    assert preview(database, payer, [BatchRow("a@example.com", 5)]).equal_rows == 0


@pytest.mark.parametrize("count", [9, 10, 11])
def test_the_first_equal_rows_are_named(database: Database, payer: Account, count: int) -> None:
    rows = [BatchRow(f"u{number}@example.com", 5) for number in range(count)]
    pay_all(database, accept(database, payer, rows))
    found = preview(database, payer, rows)
    assert found.equal_rows == count
    assert [each.row for each in found.equal_payments] == list(range(min(count, 10)))


def test_one_business_is_not_compared_with_another(database: Database, payer: Account) -> None:
    other = open_account(database)
    pay_all(database, accept(database, other, make_rows(5)))
    assert preview(database, payer, make_rows(5)).equal_rows == 0
