"""References of single calls: each pays once, whatever is sent with it, until its payment is taken back."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from core.database.connection import Database
from core.messages import Outcome
from core.parties.businesses import set_requires_keys
from tests.core.builders import allocate, allocation_of, read_history, read_payout_balance, resolve, run_sql, withdraw
from tests.servers import Account, open_account, verify_books

EMAIL = "a@example.com"


def test_a_reference_pays_once_and_replays_after(database: Database, payer: Account) -> None:
    first, again = (allocation_of(payer, EMAIL, 5, reference="march") for _ in range(2))
    assert allocate(database, first) == [Outcome.ALLOCATED]
    assert allocate(database, again) == [Outcome.REPLAYED]
    assert allocate(database, again) == [Outcome.REPLAYED]
    (row,) = read_history(database, payer.business.id)
    assert (row.id, row.email, row.amount, row.reference) == (first.id, EMAIL, 5, "march")
    assert verify_books(database).balanced


@pytest.mark.parametrize(("email", "amount"), [(EMAIL, 6), ("b@example.com", 5)])
def test_a_reference_is_refused_for_another_payment(
    database: Database, payer: Account, email: str, amount: int
) -> None:
    allocate(database, allocation_of(payer, EMAIL, 5, reference="march"))
    other = allocation_of(payer, email, amount, reference="march")
    assert allocate(database, other) == [Outcome.REFERENCE_REUSED]
    assert len(read_history(database, payer.business.id)) == 1


def test_one_group_pays_a_reference_once(database: Database, payer: Account) -> None:
    same = [allocation_of(payer, EMAIL, 5, reference="march") for _ in range(3)]
    other = allocation_of(payer, EMAIL, 6, reference="march")
    outcomes = allocate(database, *same, other, allocation_of(payer, EMAIL, 5))
    assert outcomes == [
        Outcome.ALLOCATED,
        Outcome.REPLAYED,
        Outcome.REPLAYED,
        Outcome.REFERENCE_REUSED,
        Outcome.ALLOCATED,
    ]
    assert read_payout_balance(database, payer.business.id) == 1_000_000 - 10


def test_the_key_is_looked_at_before_the_reference(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, EMAIL, 5, idempotency_key="key", reference="march"))
    attempts = {
        (5, "key", "march"): Outcome.REPLAYED,
        (5, "key", "april"): Outcome.REPLAYED,
        (5, "other", "march"): Outcome.REPLAYED,
        (6, "key", "march"): Outcome.IDEMPOTENCY_KEY_REUSED,
        (6, "key", "april"): Outcome.IDEMPOTENCY_KEY_REUSED,
        (6, "other", "march"): Outcome.REFERENCE_REUSED,
    }
    for (amount, key, reference), outcome in attempts.items():
        sent = allocation_of(payer, EMAIL, amount, idempotency_key=key, reference=reference)
        assert allocate(database, sent) == [outcome], (amount, key, reference)
    # What was replayed or refused used neither a key nor a reference up.
    fresh = allocation_of(payer, EMAIL, 7, idempotency_key="other", reference="april")
    assert allocate(database, fresh) == [Outcome.ALLOCATED]


def test_a_reference_belongs_to_its_business(database: Database, payer: Account) -> None:
    other = open_account(database)
    for account in (payer, other):
        assert allocate(database, allocation_of(account, EMAIL, 5, reference="march")) == [Outcome.ALLOCATED]


def test_references_differ_by_every_character(database: Database, payer: Account) -> None:
    references = ["march", "March", "march ", "ma\u0308rch", "m\u00e4rch", "\U0001f600", "'", '"', "\\", "{}", "NULL"]
    sent = [allocation_of(payer, EMAIL, 5, reference=reference) for reference in references]
    assert set(allocate(database, *sent)) == {Outcome.ALLOCATED}
    assert [row.reference for row in read_history(database, payer.business.id)] == references


def test_a_refusal_leaves_the_reference_free(database: Database) -> None:
    account = open_account(database, funds_cents=5)
    assert allocate(database, allocation_of(account, EMAIL, 6, reference="march")) == [Outcome.INSUFFICIENT_BALANCE]
    late = allocation_of(account, EMAIL, 5, reference="march", deadline_us=0)
    assert allocate(database, late) == [Outcome.EXPIRED]
    assert allocate(database, allocation_of(account, EMAIL, 5, reference="march")) == [Outcome.ALLOCATED]


def test_a_reversal_frees_the_reference_each_time(database: Database, payer: Account) -> None:
    for amount in (5, 6, 7):
        paid = allocation_of(payer, EMAIL, amount, reference="march")
        assert allocate(database, paid) == [Outcome.ALLOCATED]
        assert withdraw(database, paid)
    assert allocate(database, allocation_of(payer, EMAIL, 8, reference="march")) == [Outcome.ALLOCATED]
    assert allocate(database, allocation_of(payer, EMAIL, 7, reference="march")) == [Outcome.REFERENCE_REUSED]
    assert verify_books(database).balanced


def test_what_a_replay_was_answered_for_is_not_taken_back(database: Database, payer: Account) -> None:
    first, again = (allocation_of(payer, EMAIL, 5, reference="march") for _ in range(2))
    allocate(database, first)
    allocate(database, again)
    assert not withdraw(database, first)
    assert resolve(database, again).committed == {again.id: Outcome.REPLAYED}
    assert withdraw(database, again)
    assert allocate(database, allocation_of(payer, EMAIL, 9, reference="march")) == [Outcome.ALLOCATED]


def test_calls_at_once_with_one_reference_pay_once(shared_database: Database) -> None:
    account = open_account(shared_database)
    start = Barrier(8)

    def pay(_: int) -> Outcome:
        sent = allocation_of(account, EMAIL, 5, reference="march")
        start.wait()
        return allocate(shared_database, sent)[0]

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(pay, range(8)))
    assert sorted(outcomes) == [Outcome.ALLOCATED] + [Outcome.REPLAYED] * 7
    assert read_payout_balance(shared_database, account.business.id) == 1_000_000 - 5


def test_the_database_itself_refuses_a_second_payment(database: Database, payer: Account) -> None:
    """Whatever is decided, a reference has one payment at a time: the unique key holds it."""
    paid = allocation_of(payer, EMAIL, 5, reference="march")
    allocate(database, paid)
    with pytest.raises(Exception, match="pk_payment_references"):
        run_sql(
            database,
            "INSERT INTO payment_references SELECT business_id, reference, attempt, uuidv7(), email, amount, NULL "
            "FROM payment_references WHERE payment_id = :id",
            id=paid.id,
        )


def test_where_keys_are_required_a_call_needs_a_key_or_a_reference(database: Database, payer: Account) -> None:
    with database.transaction() as connection:
        assert set_requires_keys(connection, payer.business.id, required=True).requires_keys
    assert allocate(
        database,
        allocation_of(payer, EMAIL, 5),
        allocation_of(payer, EMAIL, 5, idempotency_key="key"),
        allocation_of(payer, EMAIL, 5, reference="march"),
        allocation_of(payer, EMAIL, 10**8),
    ) == [
        Outcome.IDEMPOTENCY_KEY_REQUIRED,
        Outcome.ALLOCATED,
        Outcome.ALLOCATED,
        Outcome.IDEMPOTENCY_KEY_REQUIRED,
    ]
    with database.transaction() as connection:
        set_requires_keys(connection, payer.business.id, required=False)
    assert allocate(database, allocation_of(payer, EMAIL, 5)) == [Outcome.ALLOCATED]


def test_verification_finds_a_payment_whose_reference_names_another(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, EMAIL, 5, reference="a"))
    assert verify_books(database).balanced
    run_sql(database, "UPDATE payment_references SET reference = 'b'")
    assert [each.rule for each in verify_books(database).discrepancies] == [
        "a payment with a reference must be the one that the reference names"
    ]


def test_verification_finds_a_reference_that_was_paid_twice(database: Database, payer: Account) -> None:
    for name in ("a", "b"):
        allocate(database, allocation_of(payer, EMAIL, 5, reference=name))
    run_sql(database, "UPDATE payment_references SET reference = 'a', attempt = 1 WHERE reference = 'b'")
    rules = {each.rule for each in verify_books(database).discrepancies}
    assert "a payment whose reference was used again must have been reversed" in rules
