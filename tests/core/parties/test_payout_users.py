"""Paging through payout users: every order, from any place, and by the beginning of an e-mail."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from core.database.connection import Database, driver_of
from core.parties.payout_users import PayoutUser, UserOrder, browse_payout_users, order_of
from tests.core.builders import allocate, allocation_of
from tests.servers import Account, Servers, open_account

EMAILS = ["b@x.com", "a@x.com", "ab@x.com", "c@x.com", "abc@x.com", "Ab@y.com", "jörg@x.com", "z_%@x.com"]


@pytest.fixture(scope="module")
def account(servers: Servers) -> Iterator[tuple[Database, Account]]:
    with servers.clone() as url, Database(url, transaction_timeout_s=None) as database:
        opened = open_account(database)
        for email in EMAILS:
            allocate(database, allocation_of(opened, email.lower(), 1))
        allocate(database, allocation_of(open_account(database), "ab@other.com", 1))
        yield database, opened


@pytest.fixture
def connection(account: tuple[Database, Account]) -> Iterator[Connection]:
    with account[0].transaction() as opened:
        yield opened


def browse(connection: Connection, account: Account, order: UserOrder, prefix: str = "", limit: int = 3) -> list[str]:
    """Read page after page."""
    found: list[PayoutUser] = []
    while page := browse_payout_users(
        connection,
        account.business.id,
        prefix=prefix,
        order=order,
        limit=limit,
        after=found[-1] if found else None,
    ):
        found += page
    return [user.email for user in found]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_each_order_shows_every_user_once(
    connection: Connection, account: tuple[Database, Account], limit: int
) -> None:
    by_age = [email.lower() for email in EMAILS]
    for order, expected in (
        (UserOrder.OLDEST, by_age),
        (UserOrder.NEWEST, by_age[::-1]),
        (UserOrder.EMAIL, sorted(by_age)),
        (UserOrder.EMAIL_DESCENDING, sorted(by_age, reverse=True)),
    ):
        assert browse(connection, account[1], order, limit=limit) == expected


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("ab", ["ab@x.com", "ab@y.com", "abc@x.com"]),
        (" AB ", ["ab@x.com", "ab@y.com", "abc@x.com"]),
        ("ab@", ["ab@x.com", "ab@y.com"]),
        ("AB@Y.com", ["ab@y.com"]),
        ("jo\u0308", ["jörg@x.com"]),
        ("z_%", ["z_%@x.com"]),
        ("_", []),
        ("%", []),
        ("nobody", []),
        ("a\0", []),
        ("\ud800", []),
        ("x" * 10_000, []),
        ("\U0010ffff", []),
    ],
)
def test_a_prefix_selects_by_the_beginning_of_the_email(
    connection: Connection, account: tuple[Database, Account], prefix: str, expected: list[str]
) -> None:
    for limit in (1, 100):
        assert browse(connection, account[1], UserOrder.EMAIL, prefix, limit) == expected
        assert browse(connection, account[1], UserOrder.EMAIL_DESCENDING, prefix, limit) == expected[::-1]


def test_with_a_prefix_users_come_by_email(connection: Connection, account: tuple[Database, Account]) -> None:
    for order in (UserOrder.NEWEST, UserOrder.OLDEST, UserOrder.EMAIL):
        assert order_of("a", order) is UserOrder.EMAIL
        assert browse(connection, account[1], order, "a", 1) == ["a@x.com", "ab@x.com", "ab@y.com", "abc@x.com"]
        assert order_of(" ", order) is order
    assert order_of("a", UserOrder.EMAIL_DESCENDING) is UserOrder.EMAIL_DESCENDING


@given(prefix=st.text())
def test_any_text_can_be_searched_for(account: tuple[Database, Account], prefix: str) -> None:
    with account[0].transaction() as connection:
        found = browse(connection, account[1], UserOrder.EMAIL, prefix, 100)
    assert all(email in EMAILS or email == "ab@y.com" for email in found)


def test_every_order_reads_an_index_and_sorts_nothing(
    connection: Connection, account: tuple[Database, Account]
) -> None:
    driver = driver_of(connection)
    asked: list[tuple[str, Any]] = []
    sa.event.listen(
        connection,
        "before_cursor_execute",
        lambda _, __, statement, parameters, *___: asked.append((statement, parameters)),
    )
    for prefix in ("", "a"):
        for order in UserOrder:
            browse_payout_users(connection, account[1].business.id, prefix=prefix, order=order, limit=3)
    assert len(asked) == 2 * len(UserOrder)
    driver.execute("SET LOCAL enable_seqscan = off")
    driver.execute("SET LOCAL enable_bitmapscan = off")
    for statement, parameters in asked:
        plan = "\n".join(row[0] for row in driver.execute(f"EXPLAIN {statement}".encode(), parameters))
        assert "Index Scan" in plan, plan
        assert "Sort" not in plan, plan
