"""The command line in tests: run in this process, or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.credentials import digest_of
from core.database.connection import Database
from core.database.tables import businesses, payout_transactions, payout_users
from core.ids import IdKind, format_id, new_id
from core.parties.api_keys import find_secret_keys, write_last_used

PAYOUTS = str(Path(sys.executable).with_name("payouts"))
UNREACHABLE = "postgresql://postgres:hunter2@127.0.0.1:1/payouts"
KEY_PREFIXES = {
    "secret_key": "sk_live_",
    "public_key": "pk_live_",
    "test_secret_key": "sk_test_",
    "test_public_key": "pk_test_",
}
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z"


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document that standard output is."""
        assert (self.exit_code, self.stderr) == (0, ""), self
        return json.loads(self.stdout)

    def assert_refused(self, text: str, exit_code: int = 1) -> None:
        assert (self.exit_code, self.stdout) == (exit_code, ""), self
        (line,) = self.stderr.splitlines()
        assert line.startswith("Error: "), self
        assert text in line

    def assert_wrong_usage(self, text: str) -> None:
        """Exit code 2, and a usage error which is drawn in a box, as wide as the terminal, and says the text once."""
        assert (self.exit_code, self.stdout) == (2, ""), self
        assert " ".join(self.stderr.replace("│", " ").split()).count(text) == 1, self
        assert "Traceback" not in self.stderr


Run = Callable[..., Result]


def start(*arguments: str, **variables: str) -> Result:
    """Run the real command."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PAYOUTS_")}
    done = subprocess.run([PAYOUTS, *arguments], capture_output=True, text=True, timeout=60, env=ours | variables)
    return Result(done.returncode, done.stdout, done.stderr)


def add_user(database: Database, business: dict[str, Any], email: str, cents: int) -> str:
    """Give a user an allocation, as the ledger's rows say it; return the user's id."""
    business_id, user_id = business["id"].removeprefix("biz_"), new_id()
    owner = {"business_id": business_id}
    with database.transaction() as connection:
        connection.execute(
            payout_users.insert().values(**owner, id=user_id, email=email, hash_digest=b"", balance=cents)
        )
        rest = connection.execute(
            businesses.update()
            .where(businesses.c.id == business_id)
            .values(payout_balance=businesses.c.payout_balance - cents)
            .returning(businesses.c.payout_balance)
        ).scalar_one()
        connection.execute(
            payout_transactions.insert().values(
                **owner,
                id=new_id(),
                type="allocation",
                payout_user_id=user_id,
                amount=cents,
                payout_balance_after=rest,
                user_balance_after=cents,
            )
        )
    return format_id(IdKind.PAYOUT_USER, user_id)


def opens(database: Database, secret_key: str) -> bool:
    """Tell whether a call with this key would get in."""
    digest = digest_of(secret_key)
    with database.transaction() as connection:
        return digest in find_secret_keys(connection, [digest])


def use(database: Database, secret_key: str) -> None:
    with database.transaction() as connection:
        write_last_used(connection, [digest_of(secret_key)])


def end_grace(database: Database, key_id: str) -> None:
    """Let the grace period of a rolled key be over."""
    statement = sa.text("UPDATE api_keys SET revoked_at = clock_timestamp() - interval '1 hour' WHERE id = :id")
    with database.transaction() as connection:
        connection.execute(statement, {"id": key_id.removeprefix("key_")})


def find_key(payouts: Run, key_id: str) -> tuple[dict[str, Any], str]:
    """Return what `key list` says of a key: its document and its line."""
    (document,) = [each for each in payouts("key", "list", "ACME", "--json").document if each["id"] == key_id]
    (line,) = [each for each in payouts("key", "list", "ACME").stdout.splitlines() if each.startswith(key_id)]
    return document, line
