"""The commands for the whole ledger: migrating its database, and proving that the books balance."""

import sys
from dataclasses import asdict

import rich_click as click

from api.cli.options import (
    patient_admin_options,
    print_document,
    waiting_admin_options,
)
from core.database.connection import Database
from core.database.schema import migrate as run_migrations
from core.ledger.verification import verify as run_verification


@click.command()
@waiting_admin_options
def migrate(*, database: Database, as_json: bool) -> None:
    """Migrate the database to the schema of this version."""
    revision = run_migrations(database)
    print_document({"revision": revision}, [f"The database is at revision {revision}."], as_json=as_json)


@click.command()
@patient_admin_options
def verify(*, database: Database, as_json: bool) -> None:
    """Prove that the books balance. Exit code 1: they do not. Exit code 2: it could not be checked."""
    with database.snapshot() as connection:
        found = run_verification(connection)
    lines = [
        f"{each.id}: {each.rule}: expected {each.expected_cents} cents, found {each.actual_cents}"
        for each in found.discrepancies
    ]
    verdict = "The books balance" if found.balanced else f"The books do not balance in {len(lines)} places"
    lines.append(
        f"{verdict}: {found.businesses} businesses (test twins included), {found.payout_users} payout users, "
        f"{found.transactions} transactions."
    )
    print_document(asdict(found) | {"balanced": found.balanced}, lines, as_json=as_json)
    if not found.balanced:
        sys.exit(1)
