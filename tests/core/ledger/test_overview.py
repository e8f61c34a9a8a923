"""The overview: sums of days, the recent rate, and when a balance is low."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.ledger.overview import DAYS, LATEST_ROWS, Allocated, Overview, read_overview
from core.money import BALANCE_MAX_CENTS
from core.parties.businesses import BusinessError, set_low_balance_threshold
from tests.core.builders import allocate, allocation_of, run_sql, withdraw
from tests.servers import Account, open_account

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


@pytest.fixture
def account(database: Database) -> Account:
    """A business with 1,000,000 cents, a hundred days old."""
    opened = open_account(database)
    run_sql(database, "UPDATE businesses SET created_at = :time", time=NOW - timedelta(days=100))
    run_sql(database, "UPDATE payout_transactions SET created_at = :time", time=NOW - timedelta(days=100))
    return opened


def overview_of(database: Database, account: Account, now: datetime = NOW) -> Overview:
    with database.transaction() as connection:
        return read_overview(connection, account.business.id, now)


def allocate_at(
    database: Database, account: Account, time: datetime, amount_cents: int, email: str = "a@x.com"
) -> None:
    allocation = allocation_of(account, email, amount_cents)
    allocate(database, allocation)
    run_sql(database, "UPDATE payout_transactions SET created_at = :time WHERE id = :id", time=time, id=allocation.id)


def test_a_new_business_has_thirty_empty_days_and_no_warning(database: Database) -> None:
    account = open_account(database, funds_cents=0)
    found = overview_of(database, account, datetime.now(UTC))
    assert (found.balance, found.payout_balance, found.reserved_balance) == (0, 0, 0)
    assert found.today == found.last_7_days == found.last_30_days == Allocated(0, 0)
    assert [day.amount for day in found.days] == [0] * DAYS
    assert (found.latest, found.daily_rate, found.days_left) == ([], 0, None)
    assert not found.is_low


def test_sums_are_of_whole_days_with_today_among_them(database: Database, account: Account) -> None:
    midnight = NOW.replace(hour=0)
    moments = [
        (midnight, 1),
        (NOW, 2),
        (midnight - timedelta(microseconds=1), 10),
        (midnight - timedelta(days=6), 100),
        (midnight - timedelta(days=6, microseconds=1), 1_000),
        (midnight - timedelta(days=29), 10_000),
        (midnight - timedelta(days=29, microseconds=1), 100_000),
    ]
    for time, amount_cents in moments:
        allocate_at(database, account, time, amount_cents)
    found = overview_of(database, account)
    assert found.today == Allocated(2, 3)
    assert found.last_7_days == Allocated(4, 113)
    assert found.last_30_days == Allocated(6, 11_113)
    assert len(found.days) == DAYS
    assert {day.day.isoformat(): (day.count, day.amount) for day in found.days if day.count} == {
        "2026-03-02": (1, 10_000),
        "2026-03-24": (1, 1_000),
        "2026-03-25": (1, 100),
        "2026-03-30": (1, 10),
        "2026-03-31": (2, 3),
    }


def test_reversals_are_taken_off_and_fundings_do_not_count(database: Database) -> None:
    account = open_account(database)
    kept, taken = allocation_of(account, amount_cents=30), allocation_of(account, amount_cents=50)
    allocate(database, kept, taken)
    assert withdraw(database, taken)
    found = overview_of(database, account, datetime.now(UTC))
    assert found.today == Allocated(1, 30)
    assert (found.payout_balance, found.daily_rate) == (1_000_000 - 30, 30)


def test_the_latest_rows_are_the_newest(database: Database, account: Account) -> None:
    for number in range(LATEST_ROWS + 2):
        allocate_at(database, account, NOW + timedelta(seconds=number), 1, f"{number}@x.com")
    latest = overview_of(database, account).latest
    assert [row.email for row in latest] == [f"{number}@x.com" for number in range(LATEST_ROWS + 1, 1, -1)]


def test_the_rate_counts_today_as_far_as_it_goes(database: Database, account: Account) -> None:
    allocate_at(database, account, NOW - timedelta(days=3), 6_500)
    found = overview_of(database, account)
    assert found.daily_rate == 1_000  # six days and a half
    assert found.days_left == pytest.approx((1_000_000 - 6_500) / 1_000)


def test_the_rate_of_a_young_business_is_not_thinned_by_days_before_it(database: Database, account: Account) -> None:
    run_sql(database, "UPDATE businesses SET created_at = :time", time=NOW - timedelta(days=2))
    allocate_at(database, account, NOW, 5_000)
    assert overview_of(database, account).daily_rate == 2_500
    run_sql(database, "UPDATE businesses SET created_at = :time", time=NOW)
    assert overview_of(database, account).daily_rate == 5_000


@pytest.mark.parametrize(("paid_cents", "is_low"), [(600_000, False), (700_000, True), (1_000_000, True)])
def test_less_than_three_days_at_the_recent_rate_is_low(
    database: Database, account: Account, paid_cents: int, is_low: bool
) -> None:
    allocate_at(database, account, NOW, paid_cents)
    found = overview_of(database, account)
    assert (found.is_low_for_rate, found.is_below_threshold, found.is_low) == (is_low, False, is_low)


@pytest.mark.parametrize(
    ("threshold_cents", "is_low"), [(None, False), (0, False), (1_000_000, False), (1_000_001, True)]
)
def test_less_than_the_threshold_is_low(
    database: Database, account: Account, threshold_cents: int | None, is_low: bool
) -> None:
    with database.transaction() as connection:
        changed = set_low_balance_threshold(connection, account.business.id, threshold_cents)
    assert changed.low_balance_threshold == threshold_cents
    found = overview_of(database, account)
    assert (found.low_balance_threshold, found.is_below_threshold, found.is_low) == (threshold_cents, is_low, is_low)


@pytest.mark.parametrize("threshold_cents", [-1, BALANCE_MAX_CENTS + 1, 10**30])
def test_a_threshold_out_of_bounds_is_refused(database: Database, account: Account, threshold_cents: int) -> None:
    with database.transaction() as connection, pytest.raises(BusinessError, match="The threshold must be between"):
        set_low_balance_threshold(connection, account.business.id, threshold_cents)


def test_only_the_business_itself_is_looked_at(database: Database, account: Account) -> None:
    allocate(database, allocation_of(open_account(database)))
    found = overview_of(database, account, datetime.now(UTC))
    assert (found.last_30_days, found.latest[0].type) == (Allocated(0, 0), "funding")


def test_another_time_zone_means_the_same(database: Database, account: Account) -> None:
    allocate_at(database, account, NOW, 5)
    with database.transaction() as connection:
        connection.execute(sa.text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        found = read_overview(connection, account.business.id, NOW)
    assert found.today == Allocated(1, 5)
    assert found.days == overview_of(database, account).days


def test_an_unknown_business_is_an_error(database: Database) -> None:
    with database.transaction() as connection, pytest.raises(BusinessError, match="no such business"):
        read_overview(connection, uuid4(), NOW)
