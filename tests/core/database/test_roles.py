"""Two roles: the processes' own does all that the product does, and cannot rewrite the history."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
import sqlalchemy as sa

from core.chain.head import make_head
from core.chain.proof import prove
from core.chain.sealer import seal_all
from core.database.connection import Database
from core.database.revision import REQUIRED_REVISION
from core.database.roles import APPEND_ONLY, OWNER, RolesError, RuntimeRole, read_standing
from core.database.schema import migrate
from core.ledger.day_sums import sum_together
from core.ledger.history import Selection, list_transactions
from core.parties import businesses
from tests.core.builders import HASH_SECRET, allocate, allocation_of, run_sql
from tests.core.chain.conftest import make_world
from tests.servers import Servers, open_account


@dataclass(frozen=True)
class Roles:
    """A database of two roles; `owner` is a superuser's connection."""

    runtime: Database
    administrator: Database
    runtime_url: str


def url_as(url: str, role: str) -> str:
    return sa.make_url(url).set(username=role).render_as_string(hide_password=False)


@pytest.fixture
def roles(servers: Servers) -> Iterator[Roles]:
    url = servers.create(f"test_{uuid4().hex}")
    role = f"app_{uuid4().hex}"
    runtime_url = url_as(url, role)
    with (
        Database(url, transaction_timeout_s=None, connect_timeout_s=30) as administrator,
        Database(runtime_url, transaction_timeout_s=5, pool_size=8) as runtime,
    ):
        assert migrate(administrator, runtime_url) == REQUIRED_REVISION
        yield Roles(runtime, administrator, runtime_url)


def test_the_product_runs_without_more_than_it_is_given(roles: Roles) -> None:
    world = make_world(roles.runtime)
    account, database = world.account, roles.runtime
    allocate(database, *[allocation_of(account, f"{number}@example.com", 1) for number in range(50)])
    seal_all(database, HASH_SECRET)
    with database.transaction() as connection:
        sum_together(connection, [account.business.id])
        assert list_transactions(connection, account.business.id, Selection(), limit=100)
    with database.snapshot() as connection:
        assert make_head(connection, HASH_SECRET)["businesses"]
        assert prove(connection, HASH_SECRET).places == 0


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("statement", ["UPDATE {} SET business_id = business_id", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_processes_cannot_rewrite_the_history_however_loudly(roles: Roles, table: str, statement: str) -> None:
    make_world(roles.runtime)
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
        run_sql(roles.runtime, statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE payout_transactions DISABLE TRIGGER ALL",
        "DROP TRIGGER refuse_to_rewrite_history ON payout_transactions",
        "ALTER TABLE payout_transactions ADD COLUMN more integer",
        "DROP TABLE payout_transactions",
        f"SET ROLE {OWNER}",
        "ALTER TABLE payout_transactions OWNER TO CURRENT_USER",
        "CREATE TABLE mine ()",
        "UPDATE installation SET id = uuidv7()",
        "DELETE FROM alembic_version",
        "SET session_replication_role = replica",
    ],
)
def test_the_processes_cannot_give_themselves_more(roles: Roles, statement: str) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner"):
        run_sql(roles.runtime, statement)


def test_nobody_logs_in_as_the_owner(roles: Roles) -> None:
    with roles.administrator.transaction() as connection:
        query = sa.text("SELECT rolcanlogin OR rolsuper FROM pg_roles WHERE rolname = :name")
        assert connection.execute(query, {"name": OWNER}).scalar_one() is False
        owners = sa.text(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class "
            "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        assert connection.execute(owners).scalars().all() == [OWNER]


def test_a_worker_of_the_version_before_is_numbered_under_the_processes_role(roles: Roles) -> None:
    account = open_account(roles.runtime)
    run_sql(
        roles.runtime,
        "INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after) "
        "VALUES (:id, uuidv7(), 'funding', 5, 5)",
        id=account.business.id,
    )
    with roles.runtime.transaction() as connection:
        assert businesses.get_business(connection, account.business.id).last_sequence == 2


def test_migrating_again_changes_nothing(roles: Roles) -> None:
    assert migrate(roles.administrator, roles.runtime_url) == REQUIRED_REVISION
    with roles.runtime.transaction() as connection:
        standing = read_standing(connection)
    assert (standing.owns_history, standing.may_rewrite_history) == (False, False)


def test_an_installation_with_one_role_is_handed_over(servers: Servers) -> None:
    url = servers.create(f"test_{uuid4().hex}")
    runtime_url = url_as(url, f"app_{uuid4().hex}")
    with Database(url, transaction_timeout_s=None, connect_timeout_s=30) as administrator:
        migrate(administrator)
        with administrator.transaction() as connection:
            standing = read_standing(connection)
        assert (standing.owns_history, standing.may_rewrite_history) == (True, True)
        world = make_world(administrator)
        migrate(administrator, runtime_url)
        with Database(runtime_url, transaction_timeout_s=5) as runtime:
            with runtime.transaction() as connection:
                standing = read_standing(connection)
            assert (standing.owns_history, standing.may_rewrite_history) == (False, False)
            allocate(runtime, allocation_of(world.account, "a@example.com", 1))
            with runtime.snapshot() as connection:
                assert prove(connection, HASH_SECRET).balanced


def test_the_processes_role_gets_the_password_of_its_url() -> None:
    role = RuntimeRole.of("postgresql://app:s%40cret@host/name")
    assert (role.name, role.password) == ("app", "s@cret")
    assert RuntimeRole.of("postgresql://app@host/name?password=x").password == "x"  # noqa: S105 (of nothing)
    with pytest.raises(RolesError, match="names no role"):
        RuntimeRole.of("postgresql:///name")


def test_roles_that_are_not_apart_are_refused(servers: Servers) -> None:
    url = servers.create(f"test_{uuid4().hex}")
    with Database(url, transaction_timeout_s=None, connect_timeout_s=30) as administrator:
        with pytest.raises(RolesError, match="a role of their own"):
            migrate(administrator, url)
        with administrator.transaction() as connection:
            name = f"boss_{uuid4().hex}"
            connection.execute(sa.text(f"CREATE ROLE {name} LOGIN SUPERUSER"))
        with pytest.raises(RolesError, match="superuser"):
            migrate(administrator, url_as(url, name))
        with administrator.transaction() as connection:
            assert sa.inspect(connection).get_table_names() == []


def test_a_role_that_may_not_make_roles_is_told_what_is_missing(servers: Servers) -> None:
    url = servers.create(f"test_{uuid4().hex}")
    name = f"small_{uuid4().hex}"
    servers.administer(f"CREATE ROLE {name} LOGIN")
    with (
        Database(url_as(url, name), transaction_timeout_s=None, connect_timeout_s=30) as small,
        pytest.raises(RolesError, match="let a superuser do it"),
    ):
        migrate(small, url_as(url, f"app_{uuid4().hex}"))
