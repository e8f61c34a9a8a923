"""Where a file comes in, and what its texts can offer there."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Cures:
    """What a door offers."""

    in_dollars: str
    """How to say that amounts are in dollars; empty where they never are."""
    takes_workbooks: bool
    options: bool
    """Whether columns are chosen with options of a command."""


class Door(Enum):
    """Where a file comes in."""

    PUSH = Cures("use --decimal", takes_workbooks=True, options=True)
    DASHBOARD = Cures("choose dollars in the form", takes_workbooks=True, options=False)
    API = Cures("", takes_workbooks=False, options=False)
