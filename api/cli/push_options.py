"""The options of `payouts push` that say how its file is to be read."""

import csv
from collections.abc import Sequence

from api.batches.files import PushError
from api.batches.reader.amounts import Unit
from api.batches.reader.columns import Mapping
from api.batches.reader.options import HiddenRows, Options
from core.money import parse_dollars


def read_options(
    *,
    decimal: bool,
    email_column: str | None,
    amount_column: str | None,
    reference_column: str | None,
    ignore_columns: Sequence[str],
    sheet: str | None,
    hidden_rows: str,
) -> Options:
    """Return the options as the reader takes them."""
    ignored = tuple(name.strip() for given in ignore_columns for name in next(csv.reader([given]), []) if name.strip())
    return Options(
        unit=Unit.DOLLARS if decimal else Unit.CENTS,
        mapping=Mapping(email_column, amount_column, reference_column, ignored),
        hidden_rows=HiddenRows(hidden_rows),
        sheet=sheet,
    )


def read_expected(text: str | None) -> int | None:
    """Return the cents that `--expect` says in dollars.

    Raises:
        PushError: it is no amount.

    """
    if text is None:
        return None
    cents = parse_dollars(text)
    if cents is None:
        error = "--expect must be dollars, such as 1404.78. Nothing was sent."
        raise PushError(error)
    return cents
