"""The wheels that hold PostgreSQL and Valkey: real servers for one machine, in a data directory, nothing to install.

Of the wheels we use the programs alone. The Python around PostgreSQL's trusts any process id in a left-over file,
quotes no path, and has a lock that all users of the machine share.
"""

import importlib.util
from pathlib import Path

from core.errors import UserError

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0


class EmbeddedServerError(UserError):
    """A server from the wheels is not installed, or does not start; the text says which and why."""


def find_package(name: str) -> Path:
    """Return the directory of a wheel.

    Raises:
        EmbeddedServerError: it is not installed.

    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        text = "the embedded servers are not installed; run: pip install -c constraints.txt -e '.[embedded]'"
        raise EmbeddedServerError(text)
    return Path(spec.origin).parent
