"""What the administrators' commands share: options, how they find a database and a business, how they print."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import rich_click as click
import sqlalchemy as sa
from psycopg.errors import UndefinedTable
from sqlalchemy import Connection

from api.local.data_dir import DEFAULT_DATA_DIR, DataDir, DataDirError
from core.database.connection import Database, describe_error
from core.database.revision import explain, wait_until_reachable
from core.errors import UserError
from core.ids import IdKind, format_id, parse_id
from core.logging.setup import Logs
from core.parties import businesses
from core.parties.businesses import Business, BusinessError
from core.settings.loader import (
    Settings,
    load_database_url,
    load_hash_secret,
    load_migration_database_url,
    load_settings,
    load_startup_timeout_s,
    warn_of_doubtful_variables,
)
from core.settings.variables import variable_name

Document = dict[str, Any] | list[dict[str, Any]]
_DATABASE_URL = variable_name("database_url")
_DATABASE_POOLER = variable_name("database_pooler")
# A transaction that writes holds a business's row, for which its payouts wait.
_TRANSACTION_TIMEOUT_S = 30


class DatabaseCommandError(UserError):
    """The database did not do what a command asked of it."""


def _explain(error: sa.exc.SQLAlchemyError, database: Database, data_dir: Path | None) -> str:
    if isinstance(error, sa.exc.ProgrammingError) and isinstance(error.orig, UndefinedTable):
        return "the database has no Payouts tables yet; run: payouts migrate"
    if isinstance(error, sa.exc.OperationalError | sa.exc.TimeoutError):
        return explain(error, database) + ("; is `payouts up` running?" if _is_embedded(data_dir) else "")
    return f"PostgreSQL refused: {describe_error(error)}"


def _is_embedded(data_dir: Path | None) -> bool:
    """Tell whether it is the database that `payouts up` runs: without a variable, or with a data directory."""
    return data_dir is not None or not load_database_url()


def admin_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--json` and `--data-dir`; the command gets `as_json` and an open `database`."""
    return _add_options(command, _TRANSACTION_TIMEOUT_S)


def patient_admin_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the same to a command that writes no history, and whose transaction may take any time.

    Where it does not come to a result, its exit code is 2, or 130 at Ctrl-C.
    """
    return _add_options(command, None, exit_code=2)


def migrating_admin_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the same to a command that is run while servers start, and waits for the database that a variable names.

    It has the database by the URL for migrations, where that is set.
    """
    return _add_options(command, None, migrates=True)


def _add_options(
    command: Callable[..., None], transaction_timeout_s: float | None, *, migrates: bool = False, exit_code: int = 1
) -> Callable[..., None]:
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Use the database of the `payouts up` of this directory. "
        f"Default, without {_DATABASE_URL}: {DEFAULT_DATA_DIR}.",
    )
    @wraps(command)
    def wrapper(*args: Any, data_dir: Path | None, **kwargs: Any) -> None:
        Logs.configure_command(os.environ.get(variable_name("log_format"), ""))
        with _open_database(data_dir, transaction_timeout_s, migrates=migrates) as database:
            try:
                if migrates and not _is_embedded(data_dir):
                    wait_until_reachable(database, load_startup_timeout_s())
                command(*args, database=database, **kwargs)
            except sa.exc.SQLAlchemyError as error:
                failed = DatabaseCommandError(_explain(error, database, data_dir))
                failed.exit_code = exit_code
                raise failed from None
            except KeyboardInterrupt:
                if exit_code == 1:
                    raise
                click.echo("Aborted.", err=True)
                sys.exit(130)

    return wrapper


def _open_database(data_dir: Path | None, transaction_timeout_s: float | None, *, migrates: bool) -> Database:
    warn_of_doubtful_variables()
    variables = _find_variables(data_dir)
    url = load_database_url(variables)
    if not url:
        path = data_dir or DEFAULT_DATA_DIR
        text = f"{path} holds no database yet: run `payouts up --data-dir {path}`, or set {_DATABASE_URL}"
        raise DataDirError(text)
    if migrates and (migration_url := load_migration_database_url(variables)):
        return Database(migration_url, transaction_timeout_s=transaction_timeout_s)
    pooler = variables.get(_DATABASE_POOLER, "").strip()
    return Database(url, transaction_timeout_s=transaction_timeout_s, pooler=pooler)


def find_settings() -> Settings:
    """Return all settings: of the environment, or those that `payouts up` gave its processes.

    Raises:
        SettingsError: some are missing or wrong.

    """
    return load_settings({**os.environ, **_find_variables(_find_data_dir())})


def find_hash_secret() -> bytes | None:
    """Return the hash secret of the installation whose database the command has; None where it is not set."""
    return load_hash_secret(_find_variables(_find_data_dir()))


def find_runtime_url() -> str | None:
    """Return the URL by which the processes reach the database, where another one is for migrations."""
    variables = _find_variables(_find_data_dir())
    return load_database_url(variables) if load_migration_database_url(variables) else None


def _find_data_dir() -> Path | None:
    context = click.get_current_context()
    assert context is not None  # noqa: S101 (a command runs)
    data_dir: Path | None = context.params.get("data_dir")
    return data_dir


def _find_variables(data_dir: Path | None) -> Mapping[str, str]:
    return DataDir(data_dir or DEFAULT_DATA_DIR).read_settings() if _is_embedded(data_dir) else os.environ


def find_own_url() -> str | None:
    """Return where `payouts up` serves the database of the command that runs; None where it is another's."""
    context = click.get_current_context()
    assert context is not None  # noqa: S101 (a command runs)
    data_dir: Path | None = context.params.get("data_dir")
    if not _is_embedded(data_dir):
        return None
    return DataDir(data_dir or DEFAULT_DATA_DIR).read_settings().get("PAYOUTS_URL")


def print_document(document: Document, lines: Iterator[str] | list[str], *, as_json: bool) -> None:
    """Print one JSON document, or lines for people."""
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for line in lines:
            click.echo(line)


def find_business(connection: Connection, reference: str) -> Business:
    """Return the business that a command names by its id or its name.

    Raises:
        BusinessError: there is none, or several have the name.

    """
    id_ = parse_id(IdKind.BUSINESS, reference)
    if id_ and (found := businesses.find_business(connection, id_)):
        return found
    named = businesses.find_businesses_by_name(connection, reference)
    if len(named) > 1:
        ids = ", ".join(format_id(IdKind.BUSINESS, each.id) for each in named)
        text = f"Several businesses have the name {reference!r}; name one by its id: {ids}."
        raise BusinessError(text)
    if not named:
        text = f"There is no business with the id or name {reference!r}."
        raise BusinessError(text)
    return named[0]


def format_time(value: datetime) -> str:
    """Write a time (in UTC) as RFC 3339 has it."""
    return value.isoformat().replace("+00:00", "Z")
