"""All that can be proven of the books: that they balance, and that nothing was rewritten behind the product's back."""

from dataclasses import dataclass

from sqlalchemy import Connection

from core.chain import check
from core.chain.check import Alteration, Tell
from core.chain.head import Head
from core.ledger import verification
from core.ledger.verification import Verification


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found. `alterations` is cut off after a number; `alterations_count` is not."""

    verification: Verification
    are_seals_compared: bool
    alterations: list[Alteration]
    alterations_count: int

    @property
    def places(self) -> int:
        """The number of places where something is wrong."""
        return len(self.verification.discrepancies) + self.alterations_count

    @property
    def balanced(self) -> bool:
        """Tell whether nothing was found."""
        return self.places == 0


def prove(
    connection: Connection, hash_secret: bytes | None, head: Head | None = None, tell: Tell = lambda _name, _rows: None
) -> Proof:
    """Check the whole database; the connection should see one moment of it (`Database.snapshot`).

    Without the hash secret nothing can be compared with its seal.
    """
    tell("balances", 0)
    found = verification.verify(connection)
    if hash_secret is None:
        return Proof(found, are_seals_compared=False, alterations=[], alterations_count=0)
    altered = check.check(connection, hash_secret, head, tell)
    return Proof(found, are_seals_compared=True, alterations=altered.found, alterations_count=altered.count)
