"""The commands for the whole ledger: migrating its database, proving the books, and the head of the history."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import rich_click as click

from api.cli.options import (
    find_hash_secret,
    find_runtime_url,
    migrating_admin_options,
    patient_admin_options,
    print_document,
)
from core.chain.check import Tell
from core.chain.head import Head, make_head, read_head
from core.chain.proof import prove
from core.chain.sealer import seal_all
from core.database.connection import Database
from core.database.schema import migrate as run_migrations
from core.errors import UserError
from core.settings.variables import variable_name

_HEAD_BYTES_MAX = 256 * 2**20
_TELL_EVERY_S = 1.0


class NoHashSecretError(UserError):
    """The command needs the hash secret."""

    def __init__(self) -> None:
        super().__init__(f"{variable_name('hash_secret')} is not set: heads are signed with a key that it gives")


class HeadFileError(UserError):
    """The file of a head cannot be read or written."""


@click.command()
@migrating_admin_options
def migrate(*, database: Database, as_json: bool) -> None:
    """Migrate the database to the schema of this version.

    With PAYOUTS_MIGRATION_DATABASE_URL, also make the two roles of production and give them what they need.
    """
    revision = run_migrations(database, find_runtime_url())
    print_document({"revision": revision}, [f"The database is at revision {revision}."], as_json=as_json)


@click.command()
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="HEAD.json",
    help="Compare with a head that was kept elsewhere: finds what was cut off, restored or lost in a failover.",
)
@patient_admin_options
def verify(against: Path | None, *, database: Database, as_json: bool) -> None:
    """Prove that the books balance and that the history was not rewritten.

    Exit code 1: something is wrong. Exit code 2: it could not be checked.
    """
    hash_secret = find_hash_secret()
    with database.snapshot() as connection:
        head: Head | None = None
        if against is not None:
            if hash_secret is None:
                raise NoHashSecretError
            head = read_head(connection, hash_secret, _read_file(against))
        proof = prove(connection, hash_secret, head, _make_progress())
    found = proof.verification
    lines = [
        f"{each.id}: {each.rule}: expected {each.expected_cents} cents, found {each.actual_cents}"
        for each in found.discrepancies
    ]
    lines += [f"{each.id}: {each.text}" for each in proof.alterations]
    if proof.alterations_count > len(proof.alterations):
        lines.append(f"and {proof.alterations_count - len(proof.alterations)} more")
    verdict = "The books balance" if proof.balanced else f"The books do not balance in {proof.places} places"
    lines.append(
        f"{verdict}: {found.businesses} businesses (test twins included), {found.payout_users} payout users, "
        f"{found.transactions} transactions."
    )
    if not proof.are_seals_compared:
        lines.append(f"Seals were not compared, because {variable_name('hash_secret')} is not set.")
    document = asdict(found) | {
        "alterations": [asdict(each) for each in proof.alterations],
        "alterations_count": proof.alterations_count,
        "seals_compared": proof.are_seals_compared,
        "balanced": proof.balanced,
    }
    print_document(document, lines, as_json=as_json)
    if not proof.balanced:
        sys.exit(1)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it into a file.")
@patient_admin_options
def head(output: Path | None, *, database: Database, as_json: bool) -> None:  # noqa: ARG001 (it is JSON always)
    """Seal what is not sealed yet, and print the signed head of the history, as JSON.

    Keep it where nobody who can write to the database can change it. `payouts verify --against` compares with it.
    """
    hash_secret = find_hash_secret()
    if hash_secret is None:
        raise NoHashSecretError
    seal_all(database, hash_secret)
    with database.snapshot() as connection:
        document = make_head(connection, hash_secret)
    text = json.dumps(document, indent=2)
    if output is None:
        click.echo(text)
    else:
        _write_file(output, text)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES_MAX)
    except (OSError, ValueError) as error:
        text = f"{path} cannot be read ({getattr(error, 'strerror', None) or 'no such path'})"
        raise HeadFileError(text) from None


def _write_file(path: Path, text: str) -> None:
    """Replace the file as a whole: a head that is half written would be none."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text + "\n")
        new.replace(path)
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be written ({getattr(error, 'strerror', None) or 'no such path'})"
        raise HeadFileError(problem) from None


def _make_progress() -> Tell:
    """Tell on standard error how far it is, where that is a terminal."""
    told_at = 0.0

    def tell(name: str, rows: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= _TELL_EVERY_S:
            told_at = now
            click.echo(f"{name}: {rows:,}" if rows else f"{name} …", err=True)

    return tell if sys.stderr.isatty() else lambda _name, _rows: None
