"""The file of `payouts push`: read, checked row by row, and split into parts with keys made of the rows alone."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import msgspec

from api.batches.reader.doors import Door
from api.batches.reader.options import Options
from api.batches.reader.payments import read_payments
from api.batches.reader.reading import Reading
from api.batches.reader.words import write_mistakes
from core.batches.payout_batch import BODY_MAX_BYTES, ROWS_MAX
from core.errors import UserError

FILE_MAX_BYTES = 512 * 2**20
"""A larger file is not read: its rows would take several gigabytes of memory."""

_MISTAKES_SHOWN_MAX = 20


class PushError(UserError):
    """The file was not pushed, or not all of its rows were paid; the text says why."""


@dataclass(frozen=True, slots=True)
class PushLimits:
    """What a push keeps to.

    The first two decide which rows share a batch, and so what the idempotency keys stand for: change them, and an
    interrupted run of before pays again.
    """

    rows_max: int = ROWS_MAX
    body_max_bytes: int = BODY_MAX_BYTES
    patience_s: float = 60.0
    """For so long, calls that fail in a way that passes are made again."""
    first_patience_s: float = 10.0
    """The same before the server has answered at all: its address may be wrong."""
    poll_s: float = 0.5
    idle_notice_s: float = 15.0
    """After so long without progress it is said that the batches wait."""


class PushRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A row as it is sent: normalised e-mail, amount in cents, and the business's own reference."""

    email: str
    amount: int
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class PushFile:
    """A file's rows, all of them checked, and the line on which each begins, counted from 1."""

    path: Path
    rows: list[PushRow]
    lines: list[int]
    reading: Reading
    """What else the file said."""

    @property
    def results_path(self) -> Path:
        """Where the results go."""
        return self.path.with_name(f"{self.path.name}.results.csv")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one batch, from `first` up to `end`, counted from 0; `number` counts from 1."""

    number: int
    count: int
    first: int
    end: int
    idempotency_key: str


def read_file(path: Path, options: Options) -> PushFile:
    """Read and check a file.

    Raises:
        PushError: with what is wrong, by line.

    """
    try:
        with path.open("rb") as file:
            body = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror}"
        raise PushError(text) from None
    if len(body) > FILE_MAX_BYTES:
        text = f"The file is larger than {FILE_MAX_BYTES // 2**20} MB. Split it.\nNothing was sent."
        raise PushError(text)
    reading = read_payments(body, options)
    if reading.mistakes:
        raise PushError(_write_mistakes(write_mistakes(reading, Door.PUSH)))
    rows = [PushRow(row.email, row.amount_cents, row.reference) for row in reading.rows]
    return PushFile(path, rows, reading.lines, reading)


def _write_mistakes(mistakes: list[str]) -> str:
    more = len(mistakes) - _MISTAKES_SHOWN_MAX
    end = [f"and {more:,} more"] if more > 0 else []
    return "\n".join([*mistakes[:_MISTAKES_SHOWN_MAX], *end, "Nothing was sent."])


def split(rows: list[PushRow], limits: PushLimits) -> list[Part]:
    """Share rows out to batches, each with an idempotency key that only the same rows in the same batches have."""
    digest = hashlib.sha256()
    starts = [0]
    size_bytes = 0
    for index, row in enumerate(rows):
        line = msgspec.json.encode(row) + b"\n"
        digest.update(line)
        if index - starts[-1] == limits.rows_max or size_bytes + len(line) > limits.body_max_bytes:
            starts.append(index)
            size_bytes = 0
        size_bytes += len(line)
    return [
        Part(number, len(starts), first, end, f"push-{digest.hexdigest()}-{number}-of-{len(starts)}")
        for number, (first, end) in enumerate(itertools.pairwise([*starts, len(rows)]), 1)
    ]
