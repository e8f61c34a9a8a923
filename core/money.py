"""Money is an integer number of cents, everywhere, always."""

import re

ALLOCATION_MAX_CENTS = 100_000_000
"""The largest amount of one allocation: 1,000,000.00 dollars (the HTTP contract)."""

BALANCE_MAX_CENTS = 10**18
"""The largest balance of a business. A ninth of what a 64-bit column holds, so sums have room."""


def format_dollars(cents: int) -> str:
    """Write cents for people: 1234567 is `$12,345.67`."""
    sign = "-" if cents < 0 else ""
    dollars, rest = divmod(abs(cents), 100)
    return f"{sign}${dollars:,}.{rest:02d}"


def format_decimal(cents: int) -> str:
    """Write cents for programs that count in dollars: 1234567 is `12345.67`."""
    sign = "-" if cents < 0 else ""
    dollars, rest = divmod(abs(cents), 100)
    return f"{sign}{dollars}.{rest:02d}"


_DOLLARS = re.compile(r"([0-9]{1,16})(?:\.([0-9]{1,2}))?\Z")


def parse_dollars(text: str) -> int | None:
    """Return the cents of dollars with at most two decimals: `1404.78` is 140478; None where it is something else."""
    match = _DOLLARS.match(text.strip())
    return int(match[1] + (match[2] or "").ljust(2, "0")) if match else None
