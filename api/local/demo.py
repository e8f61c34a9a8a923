"""What `payouts up` does with SQLAlchemy and Alembic, which take long to import."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from api.local.data_dir import DataDir
from core import admin_actions
from core.credentials import KeyKind, digest_of
from core.database.connection import Database, describe_error
from core.database.revision import wait_until_reachable
from core.database.schema import migrate
from core.errors import UserError
from core.parties import accounts, passwords
from core.parties.api_keys import find_secret_keys
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business, find_businesses_by_name
from core.parties.members import Role
from core.settings.loader import Settings

DEMO_NAME = "Demo"
DEMO_FUNDS_CENTS = 100_000_000
DEMO_EMAIL = "demo@example.com"
_PASSWORD_BYTES = 12


class PreparationError(UserError):
    """The database that the settings name cannot be used."""


@dataclass(frozen=True, slots=True)
class DemoAccess:
    """What opens the demo business: its API, and its dashboard."""

    secret_key: str
    email: str
    password: str | None
    """None where somebody has changed it."""


def prepare_database(settings: Settings, data_dir: DataDir, is_to_end: Callable[[], bool]) -> DemoAccess:
    """Migrate, and return what opens the demo business, which is created the first time.

    Raises:
        UserError: the database cannot be reached, or not be used.
        WaitingEndedError: it is to end, and the database was not there yet.

    """
    try:
        _migrate(settings, is_to_end)
        with Database(settings.database_url, transaction_timeout_s=None, pooler=settings.database_pooler) as database:
            demo, key = _find_or_make_demo(database, data_dir)
            return DemoAccess(key, DEMO_EMAIL, _find_or_make_password(database, data_dir, demo))
    except SQLAlchemyError as error:
        text = f"the database of PAYOUTS_DATABASE_URL cannot be used: {describe_error(error)}"
        raise PreparationError(text) from None


def _migrate(settings: Settings, is_to_end: Callable[[], bool]) -> None:
    url, pooler = settings.database_url, settings.database_pooler
    runtime_url = None
    if settings.migration_database_url:
        url, pooler, runtime_url = settings.migration_database_url, "", settings.database_url
    with Database(url, transaction_timeout_s=None, pooler=pooler) as database:
        wait_until_reachable(database, settings.startup_timeout_s, is_to_end)
        migrate(database, runtime_url)


def _find_or_make_demo(database: Database, data_dir: DataDir) -> tuple[Business, str]:
    with database.transaction() as connection:
        demo = next(iter(find_businesses_by_name(connection, DEMO_NAME)), None)
        if demo is None:
            demo = admin_actions.create_business(connection, COMMAND_LINE, DEMO_NAME, payouts_enabled=True)
            admin_actions.fund_business(connection, COMMAND_LINE, demo.id, DEMO_FUNDS_CENTS)
            admin_actions.deposit(connection, COMMAND_LINE, demo.id, DEMO_FUNDS_CENTS)
        key = data_dir.read_secret("demo_key")
        if key is not None and find_secret_keys(connection, [digest_of(key)]):
            return demo, key
        _, key = admin_actions.create_api_key(connection, COMMAND_LINE, demo.id, KeyKind.SECRET)
    data_dir.write_secret("demo_key", key)
    return demo, key


def _find_or_make_password(database: Database, data_dir: DataDir, demo: Business) -> str | None:
    """Return the password of the demo business's member; None where somebody has changed it."""
    password = data_dir.read_secret("demo_password")
    with database.transaction() as connection:
        account = accounts.find_account_by_email(connection, DEMO_EMAIL)
    if password is not None and account is not None:
        return password if passwords.check_password(database, DEMO_EMAIL, password) else None
    password = password or secrets.token_urlsafe(_PASSWORD_BYTES)
    data_dir.write_secret("demo_password", password)
    if account is not None:
        # Of another data directory, whose password is not known here.
        passwords.set_password(database, account, password)
        return password
    with database.transaction() as connection:
        token = admin_actions.invite_member(connection, COMMAND_LINE, demo.id, DEMO_EMAIL, Role.ADMIN)
    admin_actions.accept_invitation(database, token, password)
    return password
