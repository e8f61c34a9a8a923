"""What the tests of `core` share: allocations, ways to carry them out, and looks at what the database holds."""

import base64
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID, uuid4

import sqlalchemy as sa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import strategies as st

from core.database.connection import Database
from core.database.tables import payout_transactions, payout_users
from core.ids import new_id
from core.ledger import resolution, statements
from core.ledger.resolution import Resolution
from core.messages import Allocation, Outcome
from core.parties.businesses import get_business
from tests import servers
from tests.polling import wait_until
from tests.servers import Account

HASH_SECRET = servers.HASH_SECRET.encode()
FAR_FUTURE_US = 4_102_444_800_000_000  # the year 2100


def make_allocation(
    business_id: UUID,
    api_key_id: UUID,
    *,
    email: str = "user@example.com",
    amount_cents: int = 100,
    deadline_us: int = FAR_FUTURE_US,
    idempotency_key: str | None = None,
    reference: str | None = None,
) -> Allocation:
    return Allocation(
        new_id(), business_id, api_key_id, email, amount_cents, deadline_us, idempotency_key, reference=reference
    )


def allocation_of(
    account: Account,
    email: str = "user@example.com",
    amount_cents: int = 100,
    *,
    deadline_us: int = FAR_FUTURE_US,
    idempotency_key: str | None = None,
    reference: str | None = None,
) -> Allocation:
    return make_allocation(
        account.business.id,
        account.api_key_id,
        email=email,
        amount_cents=amount_cents,
        deadline_us=deadline_us,
        idempotency_key=idempotency_key,
        reference=reference,
    )


def allocate(database: Database, *allocations: Allocation) -> list[Outcome]:
    """Carry one batch out in a transaction of its own, as a worker does."""
    with database.pipeline() as connection:
        return statements.allocate(connection, HASH_SECRET, allocations)


def withdraw(database: Database, allocation: Allocation) -> bool:
    with database.transaction() as connection:
        return resolution.withdraw(connection, allocation)


def resolve(database: Database, *allocations: Allocation) -> Resolution:
    with database.transaction() as connection:
        return resolution.resolve(connection, allocations)


@dataclass(frozen=True)
class HistoryRow:
    id: UUID
    type: str
    email: str | None
    amount: int
    payout_balance_after: int
    user_balance_after: int | None
    idempotency_key: str | None
    idempotency_attempt: int
    reversed_id: UUID | None
    reference: str | None


def read_history(database: Database, business_id: UUID) -> list[HistoryRow]:
    """Return what a business's history says, oldest first, without the rows that funded it."""
    rows = payout_transactions
    query = (
        sa.select(
            rows.c.id,
            rows.c.type,
            payout_users.c.email,
            rows.c.amount,
            rows.c.payout_balance_after,
            rows.c.user_balance_after,
            rows.c.idempotency_key,
            rows.c.idempotency_attempt,
            rows.c.reversed_id,
            rows.c.reference,
        )
        .join_from(
            rows,
            payout_users,
            (payout_users.c.business_id == rows.c.business_id) & (payout_users.c.id == rows.c.payout_user_id),
            isouter=True,
        )
        .where(rows.c.business_id == business_id, rows.c.type != "funding")
        .order_by(rows.c.id)
    )
    with database.transaction() as connection:
        return [HistoryRow(**row._asdict()) for row in connection.execute(query)]


def read_user_balances(database: Database, business_id: UUID) -> dict[str, int]:
    """Return the balances in cents of a business's users by their e-mail."""
    query = sa.select(payout_users.c.email, payout_users.c.balance).where(payout_users.c.business_id == business_id)
    with database.transaction() as connection:
        return {row.email: row.balance for row in connection.execute(query)}


def read_payout_balance(database: Database, business_id: UUID) -> int:
    with database.transaction() as connection:
        return get_business(connection, business_id).payout_balance


def database_now_us(database: Database) -> int:
    with database.transaction() as connection:
        return int(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp()) * 1000000")).scalar_one())


def wait_until_blocked(database: Database) -> None:
    """Return when some transaction of this database waits for another one's lock."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def count() -> int:
        with database.transaction() as connection:
            return int(connection.execute(query).scalar_one())

    wait_until(count, "a transaction waits for a lock", 30, pause_s=0.01)


def run_sql(database: Database, statement: str, **parameters: object) -> None:
    """Run a statement behind the product's back, as one who gets around what keeps the history as it is."""
    with database.transaction() as connection:
        connection.execute(sa.text("SET LOCAL payouts.rewrite_history = 'on'"))
        connection.execute(sa.text(statement), parameters)


def seal_by_hand(plain: bytes, task_id: str, hash_secret: bytes = HASH_SECRET) -> str:
    """Seal bytes as the message format says, whatever they are."""
    nonce = os.urandom(12)
    key = hmac.digest(hash_secret, b"payouts message\0", "sha256")
    sealed = AESGCM(key).encrypt(nonce, plain, f"2:{task_id}".encode())
    return f"2:{base64.b64encode(nonce + sealed).decode()}"


def keys_of(allocations: Iterable[Allocation]) -> set[tuple[UUID, UUID]]:
    return {allocation.key for allocation in allocations}


texts = st.text(st.characters(exclude_categories=["Cs"]))
groups = st.lists(
    st.builds(
        Allocation,
        id=st.uuids(),
        business_id=st.uuids(),
        api_key_id=st.uuids(),
        email=texts,
        amount_cents=st.integers(1, 10**8),
        deadline_us=st.integers(0, 2**63 - 1),
        idempotency_key=st.none() | texts,
        reference=st.none() | texts,
    )
)
UNKNOWN_ID = uuid4()
