"""Settings that changed in 0.2: renamed ones, and those whose value now follows from other settings.

Their variables are still read in 0.2, with a warning. Remove this table's first part, and the fields of the second part
that no process sets, in 0.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.settings.variables import PREFIX

_ENDS_WITH = "0.3.0"
_WAITING_MIN = 5_000
_CONNECT_TIMEOUT_MIN_S = 2  # libpq's own

RENAMED = {"PAYOUTS_BATCH_MAX": "PAYOUTS_GROUP_MAX", "PAYOUTS_SETTLE_TIMEOUT_S": "PAYOUTS_RESOLVE_TIMEOUT_S"}


@dataclass(frozen=True, slots=True)
class Rule:
    """How a value follows from other settings: in words, and as a function of them."""

    words: str
    compute: Callable[[Any], Any]


DERIVED = {
    "waiting_max": Rule(
        "10 times PAYOUTS_GROUP_MAX, at least 5000", lambda settings: max(_WAITING_MIN, 10 * settings.group_max)
    ),
    "request_body_max_bytes": Rule("65536", lambda _: 65_536),
    "resend_after_s": Rule("a sixth of PAYOUTS_REPLY_TIMEOUT_S", lambda settings: settings.reply_timeout_s / 6),
    # PostgreSQL limits each wait by itself, and the second in the queue for a row waits twice.
    "row_lock_timeout_s": Rule(
        "two fifths of PAYOUTS_TRANSACTION_TIMEOUT_S", lambda settings: settings.transaction_timeout_s * 2 / 5
    ),
    "lock_wait_s": Rule(
        "a quarter of PAYOUTS_TRANSACTION_TIMEOUT_S", lambda settings: settings.transaction_timeout_s / 4
    ),
    "lock_ttl_s": Rule(
        "PAYOUTS_TRANSACTION_TIMEOUT_S and PAYOUTS_REDIS_TIMEOUT_S together",
        lambda settings: settings.transaction_timeout_s + settings.redis_timeout_s,
    ),
    "database_connect_timeout_s": Rule(
        "PAYOUTS_TRANSACTION_TIMEOUT_S in whole seconds, at least 2",
        lambda settings: max(_CONNECT_TIMEOUT_MIN_S, int(settings.transaction_timeout_s)),
    ),
    "batch_stalled_after_s": Rule(
        "5 times PAYOUTS_TRANSACTION_TIMEOUT_S", lambda settings: 5 * settings.transaction_timeout_s
    ),
    "flower_user": Rule("`payouts`", lambda _: "payouts"),
}
"""By setting. Each rule keeps the time limits nested, whatever the settings are that it follows from."""


def rename(texts: dict[str, str]) -> dict[str, str]:
    """Move the values of renamed variables to the new names, unless those are set; return the old names."""
    moved = {}
    for old, new in RENAMED.items():
        text = texts.pop(old, None)
        if text is not None and new not in texts:
            texts[new] = text
            moved[new] = old
    return moved


def find_replaced_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each variable that is set and ends with the next release: what replaces it."""
    given = {name for name, text in environment.items() if text.strip()}
    lines = []
    for old, new in RENAMED.items():
        if old in given:
            what = f"it is ignored, because {new} is set" if new in given else "the old name still works"
            lines.append(f"{old} is now {new}: {what}, and ends with {_ENDS_WITH}")
    for name, rule in DERIVED.items():
        variable = PREFIX + name.upper()
        if variable in given:
            lines.append(f"{variable} still works, and ends with {_ENDS_WITH}: the value is then {rule.words}")
    return lines
