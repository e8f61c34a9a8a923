"""Sealing what was written, in short transactions, for as long as is given."""

import time
from collections.abc import Callable
from uuid import UUID

import sqlalchemy as sa

from core.chain import history, rows
from core.chain.digests import ROWS
from core.credentials import seal_key
from core.database.connection import Database

HISTORY_KIND = "history"
_FIRST = UUID(int=0)


class Sealer:
    """Seals for all businesses in turn. Any number of processes may have one: at any time, one of them seals."""

    def __init__(self, database: Database, hash_secret: bytes, *, rows_min: int = ROWS, wait_s: float = 20.0) -> None:
        self._database = database
        self._key = seal_key(hash_secret)
        self._rows_min = rows_min
        self._wait_s = wait_s
        self._behind = _FIRST

    def work(self, for_s: float) -> bool:
        """Seal for a while; return whether all that was to be sealed is. The next time goes on where this one ended."""
        give_up_at = time.monotonic() + for_s

        def is_over() -> bool:
            return time.monotonic() >= give_up_at

        for kind in rows.KINDS.values():
            is_more = True
            while is_more:
                if is_over():
                    return False
                with self._database.transaction() as connection:
                    if not history.take_turn(connection):
                        return False
                    is_more = rows.seal_rows(connection, self._key, kind)
        return self._seal_history(is_over)

    def _seal_history(self, is_over: Callable[[], bool]) -> bool:
        began_at_start = self._behind == _FIRST
        with self._database.transaction() as connection:
            began = connection.execute(sa.text("SELECT now()")).scalar_one()
        while True:
            with self._database.transaction() as connection:
                due, last = history.list_due(connection, self._behind, rows_min=self._rows_min, wait_s=self._wait_s)
            while due:
                if is_over():
                    return False
                with self._database.transaction() as connection:
                    if not history.take_turn(connection):
                        return False
                    due = history.seal(connection, self._key, due)
            self._behind = last or _FIRST
            if last is None:
                break
            if is_over():
                return False
        if began_at_start:
            with self._database.transaction() as connection:
                rows.go_on_from(connection, HISTORY_KIND, began)
        return True


def seal_all(database: Database, hash_secret: bytes) -> None:
    """Seal everything that is there now, however little it is, and however long it takes."""
    sealer = Sealer(database, hash_secret, rows_min=1, wait_s=0)
    while not sealer.work(60):
        time.sleep(0.05)
