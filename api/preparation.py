"""What `payouts up` does with SQLAlchemy and Alembic, which take long to import."""

from sqlalchemy.exc import SQLAlchemyError

from api.data_dir import DataDir
from core.api_keys import create_api_key, find_secret_keys
from core.businesses import create_business, find_business_by_name, fund_business
from core.credentials import KeyKind, digest_of
from core.database import Database, describe_error
from core.errors import UserError
from core.revision import wait_until_reachable
from core.schema import migrate
from core.settings import Settings

DEMO_NAME = "Demo"
DEMO_FUNDS_CENTS = 100_000_000


class PreparationError(UserError):
    """The database that the settings name cannot be used."""


def prepare_database(settings: Settings, data_dir: DataDir) -> str:
    """Migrate, and return the secret key of the demo business, which is created the first time."""
    try:
        with Database(settings.database_url, transaction_timeout_s=None, pooler=settings.database_pooler) as database:
            wait_until_reachable(database, settings.startup_timeout_s)
            migrate(database)
            return _find_or_make_demo_key(database, data_dir)
    except SQLAlchemyError as error:
        text = f"the database of PAYOUTS_DATABASE_URL cannot be used: {describe_error(error)}"
        raise PreparationError(text) from None


def _find_or_make_demo_key(database: Database, data_dir: DataDir) -> str:
    with database.transaction() as connection:
        key = data_dir.read_secret("demo_key")
        if key is not None and find_secret_keys(connection, [digest_of(key)]):
            return key
        demo = find_business_by_name(connection, DEMO_NAME)
        if demo is None:
            demo = create_business(connection, DEMO_NAME, payouts_enabled=True)
            fund_business(connection, demo.id, DEMO_FUNDS_CENTS)
        _, key = create_api_key(connection, demo.id, KeyKind.SECRET)
    data_dir.write_secret("demo_key", key)
    return key
