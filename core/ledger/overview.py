"""What a business looks at first: balances, what it has allocated lately, and whether the balance is low."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from core.ledger.day_sums import DaySum, read_day_sums
from core.ledger.history import Selection, Transaction, TransactionType, list_transactions
from core.parties.businesses import Business, get_business

DAYS = 30
RATE_DAYS = 7
LATEST_ROWS = 10
LOW_DAYS = 3
"""At the recent rate, a balance that lasts less than this is low."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """What was allocated, with reversals taken off on the day that they were made; amount in cents."""

    count: int
    amount: int


@dataclass(frozen=True, slots=True)
class DayAllocated:
    """What was allocated on one day (UTC), with that day's reversals taken off; amount in cents."""

    day: date
    count: int
    amount: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Balances in cents. Today counts as a day of the last 7 and of the last 30 (UTC)."""

    balance: int
    payout_balance: int
    reserved_balance: int
    payouts_enabled: bool
    today: Allocated
    last_7_days: Allocated
    last_30_days: Allocated
    days: list[DayAllocated]
    """The last 30, oldest first, those without allocations too."""
    latest: list[Transaction]
    daily_rate: int
    """Cents a day, from the last 7 days or as long as the business exists."""
    days_left: float | None
    """How long the payout balance lasts at that rate; None where nothing was allocated."""
    low_balance_threshold: int | None
    is_below_threshold: bool
    is_low_for_rate: bool
    """It lasts less than `LOW_DAYS`."""

    @property
    def is_low(self) -> bool:
        """Tell whether to warn, for either reason."""
        return self.is_below_threshold or self.is_low_for_rate


def read_overview(connection: Connection, business_id: UUID, now: datetime) -> Overview:
    """Return a business's overview; `now` says which day is today.

    Raises:
        NoSuchBusinessError: there is none with this id.

    """
    now = now.astimezone(UTC)
    business = get_business(connection, business_id)
    first = now.date() - timedelta(days=DAYS - 1)
    days = _days(first, read_day_sums(connection, business_id, first))
    daily_rate = _daily_rate(days, business, now)
    days_left = business.payout_balance / daily_rate if daily_rate > 0 else None
    threshold = business.low_balance_threshold
    return Overview(
        balance=business.balance,
        payout_balance=business.payout_balance,
        reserved_balance=business.reserved_balance,
        payouts_enabled=business.payouts_enabled,
        today=_total(days[-1:]),
        last_7_days=_total(days[-7:]),
        last_30_days=_total(days),
        days=days,
        latest=list_transactions(connection, business_id, Selection(), limit=LATEST_ROWS),
        daily_rate=daily_rate,
        days_left=days_left,
        low_balance_threshold=threshold,
        is_below_threshold=threshold is not None and business.payout_balance < threshold,
        is_low_for_rate=days_left is not None and days_left < LOW_DAYS,
    )


def _days(first: date, sums: list[DaySum]) -> list[DayAllocated]:
    signs = {TransactionType.ALLOCATION: 1, TransactionType.REVERSAL: -1}
    counts, amounts = [0] * DAYS, [0] * DAYS
    for each in sums:
        position = (each.day - first).days
        if position < DAYS:  # a row that was begun after midnight belongs to tomorrow
            counts[position] += signs.get(each.type, 0) * each.count
            amounts[position] += signs.get(each.type, 0) * each.amount
    return [
        DayAllocated(first + timedelta(days=position), counts[position], amounts[position]) for position in range(DAYS)
    ]


def _total(days: list[DayAllocated]) -> Allocated:
    return Allocated(sum(day.count for day in days), sum(day.amount for day in days))


def _daily_rate(days: list[DayAllocated], business: Business, now: datetime) -> int:
    """Divide by the days that the sums cover: today's part, and no time before the business was created."""
    midnight = datetime.combine(now.date(), datetime.min.time(), UTC)
    since = max(midnight - timedelta(days=RATE_DAYS - 1), business.created_at)
    elapsed_days = max((now - since) / timedelta(days=1), 1.0)
    return round(_total(days[-RATE_DAYS:]).amount / elapsed_days)
