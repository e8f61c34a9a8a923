"""The businesses that every system pays from, with their API keys: the same in each copy of the database."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from core.credentials import KeyKind, Mode, digest_of, make_api_key
from core.database.connection import Database
from core.database.tables import api_keys, businesses, main_transactions, payout_transactions
from core.ids import new_id
from core.messages import Allocation

EMAILS = 100_000
"""E-mails are `user0@example.com` and so on; each request draws one."""
AMOUNT_MAX_CENTS = 100
SPREAD_BUSINESSES = 1_000
_HOT_BUSINESSES = 30
FUNDS_CENTS = 10**12

BUSINESS_ID_PREFIX = "00000000-0000-7000-8000-"
"""Followed by a business's number, 12 hexadecimal digits: pgbench can compute it too."""


@dataclass(frozen=True, slots=True)
class Account:
    """A funded business with its secret key."""

    business_id: UUID
    api_key_id: UUID
    secret_key: str

    def allocation(self, email: str, amount_cents: int) -> Allocation:
        return Allocation(
            id=new_id(),
            business_id=self.business_id,
            api_key_id=self.api_key_id,
            email=email,
            amount_cents=amount_cents,
            deadline_us=time.time_ns() // 1000 + 3_600_000_000,
        )


@dataclass(frozen=True, slots=True)
class Accounts:
    """One thousand businesses for even load, and further ones of which a case takes one as its hot business."""

    spread: Sequence[Account]
    hot: Sequence[Account]

    def fresh_hot(self) -> Iterator[Account]:
        """Give hot businesses that nobody used, one after another; for one copy of the database."""
        return iter(self.hot)


def open_accounts(database: Database) -> Accounts:
    """Create all businesses, set-based: through the product's functions it would take longer than a case."""
    accounts = [
        Account(
            UUID(f"{BUSINESS_ID_PREFIX}{number:012x}"),
            new_id(),
            make_api_key(KeyKind.SECRET, Mode.LIVE),
        )
        for number in range(SPREAD_BUSINESSES + _HOT_BUSINESSES)
    ]
    with database.transaction() as connection:
        connection.execute(
            businesses.insert(),
            [
                {
                    "id": each.business_id,
                    "twin_id": each.business_id,
                    "name": "Bench",
                    "mode": Mode.LIVE,
                    "payout_balance": FUNDS_CENTS,
                    "payouts_enabled": True,
                }
                for each in accounts
            ],
        )
        fundings = [
            {"business_id": each.business_id, "id": new_id(), "type": "funding", "amount": FUNDS_CENTS}
            for each in accounts
        ]
        connection.execute(
            main_transactions.insert(), [each | {"type": "external", "balance_after": 0} for each in fundings]
        )
        connection.execute(
            payout_transactions.insert(), [each | {"payout_balance_after": FUNDS_CENTS} for each in fundings]
        )
        connection.execute(
            api_keys.insert(),
            [
                {
                    "business_id": each.business_id,
                    "id": each.api_key_id,
                    "kind": KeyKind.SECRET,
                    "digest": digest_of(each.secret_key),
                    "last4": each.secret_key[-4:],
                }
                for each in accounts
            ],
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (FREEZE, ANALYZE) businesses, api_keys, payout_transactions"))
    return Accounts(accounts[:SPREAD_BUSINESSES], accounts[SPREAD_BUSINESSES:])
