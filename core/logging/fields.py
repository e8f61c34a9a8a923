"""The fields of a log line: what it says about errors and allocations."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from core.credentials import email_digest
from core.database.connection import describe_error
from core.ids import IdKind, format_id
from core.messages import Allocation

NAMED_MAX = 20
"""Allocations that one line names; of the others it gives the number alone."""
OWN_PACKAGES = ("api", "core", "workers")
_ROOT = str(Path(__file__).resolve().parents[2]) + os.sep
_OWN_DIRECTORIES = tuple(f"{_ROOT}{each}{os.sep}" for each in OWN_PACKAGES)


def about(
    *,
    error: BaseException | None = None,
    allocations: Iterable[Allocation] | None = None,
    hash_secret: bytes | None = None,
    always: bool = False,
    **fields: object,
) -> dict[str, Any]:
    """Return what a logger's call takes as `extra`: fields of a line.

    Of allocations, the first ones are named, with the ids of their requests; with the hash secret, their users are
    told apart by digests. `always` is for lines that are written however many are alike.
    """
    if error is not None:
        fields["error"] = describe_error(error)
        fields["place"] = place_of(error.__traceback__)
    if allocations is not None:
        fields.update(name_allocations(allocations))
        if hash_secret is not None:
            named = list(allocations)[:NAMED_MAX]
            fields["users"] = sorted({email_digest(hash_secret, each.email) for each in named})
    return {"fields": fields, "always": always}


def name_allocations(allocations: Iterable[Allocation]) -> dict[str, object]:
    """Return the ids of allocations and of their requests, of the first ones, and how many there are."""
    every = list(allocations)
    named = every[:NAMED_MAX]
    return {
        "allocations": len(every),
        "allocation_ids": [format_id(IdKind.TRANSACTION, each.id) for each in named],
        "request_ids": list(dict.fromkeys(each.request_id or each.id.hex for each in named)),
    }


def place_of(trace: TracebackType | None) -> str | None:
    """Return where an error was raised: file, line and function, of our own code where it came by."""
    place = None
    is_own = False
    while trace is not None:
        code = trace.tb_frame.f_code
        own = code.co_filename.startswith(_OWN_DIRECTORIES)
        if own or not is_own:
            file = code.co_filename.removeprefix(_ROOT) if own else "/".join(Path(code.co_filename).parts[-2:])
            place = f"{file}:{trace.tb_lineno} in {code.co_name}"
            is_own = is_own or own
        trace = trace.tb_next
    return place
