"""Changes that people make: what they do to the books, to whom they belong, and their lines in the audit log."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from core import admin_actions
from core.credentials import KeyKind
from core.database.connection import Database
from core.ids import IdKind, format_id, new_id
from core.money import BALANCE_MAX_CENTS
from core.parties import audit
from core.parties.api_keys import NoSuchApiKeyError, create_api_key, get_api_key
from core.parties.audit import COMMAND_LINE, Action, Actor, AlreadyRecordedError, list_entries
from core.parties.businesses import PLAY_MONEY_CENTS, BusinessError, get_business
from core.parties.payout_users import UserStatus
from tests.core.builders import allocate, allocation_of, read_payout_balance, run_sql
from tests.servers import Account, open_account, verify_books

ADA = Actor("ada@example.com", UUID(int=7))


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.transaction() as opened:
        yield opened


def balances_of(database: Database, business_id: UUID) -> tuple[int, int]:
    with database.transaction() as connection:
        business = get_business(connection, business_id)
    return business.balance, business.payout_balance


def deposit(database: Database, account: Account, amount_cents: int) -> None:
    with database.transaction() as connection:
        admin_actions.deposit(connection, COMMAND_LINE, account.business.id, amount_cents)


def add_funds(database: Database, account: Account, amount_cents: int) -> None:
    with database.transaction() as connection:
        admin_actions.add_funds(connection, ADA, account.business.id, amount_cents)


def test_funds_move_from_the_main_balance_to_the_payout_balance(database: Database, payer: Account) -> None:
    deposit(database, payer, 500)
    assert balances_of(database, payer.business.id) == (500, 1_000_000)
    add_funds(database, payer, 200)
    add_funds(database, payer, 300)
    assert balances_of(database, payer.business.id) == (0, 1_000_500)
    query = sa.text("""
        SELECT funding.type, funding.amount, payout_balance_after, balance_after
        FROM main_transactions AS transfer JOIN payout_transactions AS funding USING (business_id, id)
        WHERE business_id = :id AND transfer.type = 'transfer' ORDER BY id
    """)
    with database.transaction() as connection:
        rows = [tuple(row) for row in connection.execute(query, {"id": payer.business.id})]
    assert rows == [("funding", 200, 1_000_200, 300), ("funding", 300, 1_000_500, 0)]
    assert verify_books(database).balanced


@pytest.mark.parametrize("amount_cents", [501, BALANCE_MAX_CENTS, 0, -1, 10**30])
def test_what_the_main_balance_does_not_have_is_not_moved(
    database: Database, payer: Account, amount_cents: int
) -> None:
    deposit(database, payer, 500)
    with pytest.raises(BusinessError, match=r"The main balance is \$5\.00|The amount must be between"):
        add_funds(database, payer, amount_cents)
    assert balances_of(database, payer.business.id) == (500, 1_000_000)
    assert verify_books(database).balanced


def test_balances_have_a_limit(database: Database, payer: Account) -> None:
    deposit(database, payer, BALANCE_MAX_CENTS)
    with pytest.raises(BusinessError, match="The main balance may not be greater"):
        deposit(database, payer, 1)
    with pytest.raises(BusinessError, match="The payout balance may not be greater"):
        add_funds(database, payer, BALANCE_MAX_CENTS)
    assert balances_of(database, payer.business.id) == (BALANCE_MAX_CENTS, 1_000_000)
    assert verify_books(database).balanced


def test_moving_at_once_overdraws_nothing(shared_database: Database) -> None:
    account = open_account(shared_database, funds_cents=0)
    deposit(shared_database, account, 100)
    barrier = threading.Barrier(8)

    def move(_: int) -> bool:
        barrier.wait()
        try:
            add_funds(shared_database, account, 30)
        except BusinessError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(move, range(8))) == 3
    assert balances_of(shared_database, account.business.id) == (10, 90)
    assert verify_books(shared_database).balanced


def test_a_test_twin_has_play_money_in_both_balances(database: Database, payer: Account) -> None:
    twin_id = payer.business.twin_id
    assert balances_of(database, twin_id) == (PLAY_MONEY_CENTS, PLAY_MONEY_CENTS)
    with database.transaction() as connection:
        admin_actions.add_funds(connection, ADA, twin_id, 1)
    assert read_payout_balance(database, twin_id) == PLAY_MONEY_CENTS + 1
    assert balances_of(database, payer.business.id) == (0, 1_000_000)


WRONG = [
    ("UPDATE businesses SET balance = balance + 1 WHERE mode = 'live'", "business"),
    ("DELETE FROM main_transactions WHERE type = 'deposit' AND amount = 500", "business"),
    ("UPDATE main_transactions SET amount = amount + 1 WHERE type = 'transfer'", "both"),
    ("UPDATE payout_transactions SET id = uuidv7() WHERE amount = 200", "transfer and funding"),
]


@pytest.mark.parametrize(("statement", "named"), WRONG)
def test_verify_names_what_is_wrong_with_a_main_balance(
    database: Database, payer: Account, statement: str, named: str
) -> None:
    deposit(database, payer, 500)
    add_funds(database, payer, 200)
    run_sql(database, statement)
    with database.transaction() as connection:
        transfer_id = connection.execute(
            sa.text("SELECT id FROM main_transactions WHERE type = 'transfer'")
        ).scalar_one()
        funding_id = connection.execute(sa.text("SELECT id FROM payout_transactions WHERE amount = 200")).scalar_one()
    business, transfer = format_id(IdKind.BUSINESS, payer.business.id), format_id(IdKind.TRANSACTION, transfer_id)
    expected = {
        "business": [business],
        "both": [business, transfer],
        "transfer and funding": [transfer, format_id(IdKind.TRANSACTION, funding_id)],
    }[named]
    assert [each.id for each in verify_books(database).discrepancies] == expected


def test_every_change_has_its_line(database: Database, payer: Account) -> None:
    business_id = payer.business.id
    allocate(database, allocation_of(payer))
    with database.transaction() as connection:
        user_id = connection.execute(sa.text("SELECT id FROM payout_users")).scalar_one()
        admin_actions.set_payouts_enabled(connection, ADA, business_id, enabled=False)
        admin_actions.set_payouts_enabled(connection, ADA, business_id, enabled=True)
        for required in (True, True, False, False):
            admin_actions.set_requires_keys(connection, ADA, business_id, required=required)
        admin_actions.set_low_balance_threshold(connection, ADA, business_id, 5)
        admin_actions.set_low_balance_threshold(connection, ADA, business_id, None)
        admin_actions.set_user_status(connection, ADA, business_id, user_id, UserStatus.INACTIVE)
        assert admin_actions.set_user_status(connection, ADA, business_id, uuid4(), UserStatus.ACTIVE) is None
        entries = list_entries(connection, business_id, 100)
    assert [(entry.action, entry.subject, entry.details) for entry in reversed(entries)] == [
        (Action.PAYOUTS_DISABLED, "", {}),
        (Action.PAYOUTS_ENABLED, "", {}),
        (Action.KEYS_REQUIRED, "", {}),
        (Action.KEYS_NOT_REQUIRED, "", {}),
        (Action.LOW_BALANCE_THRESHOLD_SET, "", {"threshold": 5}),
        (Action.LOW_BALANCE_THRESHOLD_SET, "", {"threshold": None}),
        (Action.USER_DEACTIVATED, format_id(IdKind.PAYOUT_USER, user_id), {"email": "user@example.com"}),
    ]
    assert {(entry.actor, entry.account_id) for entry in entries} == {("ada@example.com", UUID(int=7))}


def test_a_change_that_fails_leaves_no_line(database: Database, payer: Account) -> None:
    with pytest.raises(BusinessError):
        add_funds(database, payer, 1)
    with database.transaction() as connection:
        assert list_entries(connection, payer.business.id, 100) == []


def test_the_log_is_paged_newest_first(connection: Connection) -> None:
    business_id = uuid4()
    for number in range(7):
        audit.record(connection, business_id, ADA, Action.PAYOUTS_ENABLED, str(number))
    audit.record(connection, uuid4(), ADA, Action.PAYOUTS_ENABLED, "another's")
    seen: list[str] = []
    after = None
    while page := list_entries(connection, business_id, 3, after):
        seen += [entry.subject for entry in page]
        after = page[-1].id
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]


def test_an_action_of_a_later_version_is_shown_as_it_stands(database: Database, payer: Account) -> None:
    add = Actor("ada@example.com")
    with database.transaction() as connection:
        audit.record(connection, payer.business.id, add, Action.KEY_CREATED)
    run_sql(database, "UPDATE audit_log SET action = 'moon.reached'")
    with database.transaction() as connection:
        assert [entry.action for entry in list_entries(connection, payer.business.id, 9)] == ["moon.reached"]


def test_a_form_makes_its_change_once(database: Database, payer: Account) -> None:
    deposit(database, payer, 500)
    actor = Actor("ada@example.com", UUID(int=7), form_id=new_id())
    for is_first in (True, False):
        try:
            with database.transaction() as connection:
                admin_actions.add_funds(connection, actor, payer.business.id, 100)
        except AlreadyRecordedError:
            assert not is_first
        else:
            assert is_first
    assert balances_of(database, payer.business.id) == (400, 1_000_100)


@pytest.mark.parametrize(
    "change",
    [
        lambda connection, business_id, key_id: admin_actions.revoke_api_key(connection, ADA, business_id, key_id),
        lambda connection, business_id, key_id: admin_actions.roll_api_key(
            connection, ADA, business_id, key_id, grace=timedelta()
        ),
    ],
)
def test_the_keys_of_others_are_out_of_reach(
    connection: Connection, database: Database, payer: Account, change: Callable[[Connection, UUID, UUID], object]
) -> None:
    stranger = open_account(database)
    for business_id in (stranger.business.id, payer.business.twin_id, uuid4()):
        with pytest.raises(NoSuchApiKeyError):
            change(connection, business_id, payer.api_key_id)
    with pytest.raises(NoSuchApiKeyError):
        change(connection, payer.business.id, uuid4())
    assert get_api_key(connection, payer.api_key_id).revoked_at is None
    change(connection, payer.business.id, payer.api_key_id)
    assert get_api_key(connection, payer.api_key_id).revoked_at is not None


def test_an_administrator_need_not_name_the_business_of_a_key(connection: Connection, payer: Account) -> None:
    key, _ = create_api_key(connection, payer.business.twin_id, KeyKind.SECRET)
    assert admin_actions.revoke_api_key(connection, COMMAND_LINE, None, key.id).revoked_at is not None
    (entry,) = list_entries(connection, payer.business.twin_id, 9)
    assert (entry.action, entry.subject) == (Action.KEY_REVOKED, format_id(IdKind.API_KEY, key.id))


def test_no_entry_holds_a_key(database: Database, payer: Account) -> None:
    with database.transaction() as connection:
        _, text = admin_actions.create_api_key(connection, ADA, payer.business.id, KeyKind.SECRET, "shop")
        created, rolled, _ = admin_actions.roll_api_key(
            connection, ADA, payer.business.id, payer.api_key_id, grace=timedelta(hours=1)
        )
        entries = list_entries(connection, payer.business.id, 9)
    assert len(entries) == 2
    assert entries[0].details["replaced_by"] == format_id(IdKind.API_KEY, created.id)
    assert not any(secret[10:] in str(entries) for secret in (text, rolled))
