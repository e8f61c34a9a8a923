"""`payouts push`: pays the rows of a file in payout batches, and each row once, however often it is run."""

import csv
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path

import msgspec
import rich_click as click
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from api.batches.files import Part, PushError, PushFile, PushLimits, read_file, split
from api.batches.reader.options import Options
from api.batches.reader.summary import describe
from api.cli.push_preview import Outlook, Preview
from api.cli.push_server import RESULT_COLUMNS, Batch, RefusedError, Server, renumber
from core.batches.payout_batch import BatchStatus
from core.money import format_dollars

_SECONDS_BETWEEN_LINES = 5.0
_INTERRUPTED = 130
_FIELD_OF_ROW = re.compile(r"allocations\.([0-9]{1,9})(?:\.([a-z]+))?\Z")
_RUN_AGAIN = "Run the same command with the same, unchanged file to go on: nothing is paid twice."


# Showing progress


class NothingNewError(PushError):
    """Every row was paid before this run."""

    exit_code = 3


class NotAllPaidError(PushError):
    """The batches are finished, and some rows are not paid."""

    exit_code = 4


class _RateColumn(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s", style="progress.data.speed")


@contextmanager
def _draw_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on a terminal; give what is to be called with the number of rows done."""
    columns = (
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _write_lines(total: int) -> Iterator[Callable[[int], None]]:
    """Write a line every few seconds, for what is not a terminal."""
    begun_at = said_at = time.monotonic()
    said = first = -1

    def update(done: int) -> None:
        nonlocal said, said_at, first
        now = time.monotonic()
        first = done if first < 0 else first
        if done != said and (done == total or now - said_at >= _SECONDS_BETWEEN_LINES):
            per_s = (done - first) / max(now - begun_at, 0.001)
            rest = f", {(total - done) / per_s:,.0f} s left" if per_s else ""
            click.echo(f"{done:,} of {total:,} rows, {per_s:,.0f} a second{rest}")
            said, said_at = done, now

    yield update


def _show_progress(total: int) -> AbstractContextManager[Callable[[int], None]]:
    return _draw_bar(total) if sys.stdout.isatty() else _write_lines(total)


# Pushing


def run_push(
    path: Path,
    url: str,
    key: str,
    *,
    options: Options | None = None,
    expected_cents: int | None = None,
    is_dry_run: bool = False,
    is_confirmed: bool = False,
    is_again: bool = False,
    limits: PushLimits | None = None,
) -> int:
    """Pay the rows of a file, and write what became of each to `FILE.results.csv`; return the exit code.

    That is 0 where rows were paid, and 3 where all of them had been paid before. Ctrl-C ends the process with exit code
    130, at any time without harm.

    Raises:
        NotAllPaidError: the batches are finished, and some rows are not paid.
        PushError: nothing was sent; or what was accepted is paid, and the same call again pays the rest.

    """
    push: _Push | None = None
    limits = limits or PushLimits()
    try:
        file = read_file(path, options or Options())
        _check_sum(file, expected_cents)
        server = Server(url, key, limits)
        try:
            push = _Push(file, server, limits)
            outlook = push.show()
            if is_dry_run:
                click.echo("Dry run: nothing was sent.")
                return 0
            _confirm(outlook, is_confirmed=is_confirmed, is_again=is_again)
            push.send()
            push.wait()
            push.finish()
            if push.is_nothing_new:
                click.echo("Nothing new to pay: every row was paid before.")
                return NothingNewError.exit_code
            return 0
        finally:
            server.close()
    except (KeyboardInterrupt, click.Abort):
        was_sent = push is not None and push.was_sent
        end = f"What was accepted is paid all the same. {_RUN_AGAIN}" if was_sent else "Nothing was sent."
        click.echo(f"\nStopped. {end}", err=True)
        sys.exit(_INTERRUPTED)


def _confirm(outlook: Outlook, *, is_confirmed: bool, is_again: bool) -> None:
    """Ask on a terminal; elsewhere, or where nobody is to be asked, equal payments need `--again`.

    Raises:
        PushError: no.

    """
    rows, equal = outlook.rows, outlook.equal_rows
    may_ask = sys.stdin.isatty() and not is_confirmed
    if equal and not is_again and not may_ask:
        text = (
            f"{_count(equal, 'row')} may be paid a second time. Nothing was sent. To pay "
            f"{'it' if equal == 1 else 'them'} all the same, add --again; to have each payment paid once, give "
            "references."
        )
        raise PushError(text)
    if not rows or not may_ask:
        return
    question = f"Pay {_count(rows, 'row')}?"
    if equal and not is_again:
        question = f"Pay {_count(rows, 'row')}, {equal:,} of them equal to earlier payments?"
    if not click.confirm(question):
        text = "Not confirmed; nothing was sent."
        raise PushError(text)


def _check_sum(file: PushFile, expected_cents: int | None) -> None:
    """Refuse a file that comes to another sum than was expected."""
    amount = file.reading.amount_cents
    if expected_cents is not None and amount != expected_cents:
        text = (
            f"The rows come to {format_dollars(amount)}, and --expect says {format_dollars(expected_cents)}. "
            "Nothing was sent."
        )
        raise PushError(text)
    if not file.rows:
        text = "Every row of these results is paid already. Nothing was sent."
        raise NothingNewError(text)


class _Push:
    """A file on its way: its parts, and the batches that they became."""

    def __init__(self, file: PushFile, server: Server, limits: PushLimits) -> None:
        self.was_sent = False
        self._file = file
        self._server = server
        self._limits = limits
        self._parts = split(file.rows, limits)
        self._batches: list[Batch] = []
        self.is_nothing_new = True

    def show(self) -> Outlook:
        """Show what is about to be done, and return it.

        Raises:
            PushError: it cannot be done.

        """
        rows = self._file.rows
        results = self._file.results_path
        if not os.access(results.parent, os.W_OK):
            text = f"The results could not be written to {results}. Nothing was sent."
            raise PushError(text)
        users = len({row.email for row in rows})
        amount = sum(row.amount for row in rows)
        click.echo(
            f"{self._file.path.name}: {_count(len(rows), 'row')} for {_count(users, 'payout user')}, "
            f"{format_dollars(amount)} in {_count(len(self._parts), 'batch', 'batches')}"
        )
        for line in describe(self._file.reading):
            click.echo(line)
        previews = [self._preview(index) for index in range(len(self._parts))]
        outlook = Outlook(self._file, self._parts, previews)
        for line in outlook.describe():
            click.echo(line)
        self.is_nothing_new = not outlook.rows
        balance, amount = outlook.payout_balance, outlook.amount
        if balance < amount:
            text = (
                f"The payout balance is {format_dollars(balance)}, which is {format_dollars(amount - balance)} too "
                "little. Nothing was sent."
            )
            raise PushError(text)
        click.echo(f"Payout balance: {format_dollars(balance)} now, {format_dollars(balance - amount)} after")
        return outlook

    def _preview(self, index: int) -> Preview:
        """Return what a part would do.

        A cancelled batch uses its key up for good. Where every row has a reference, which pays once, the part is sent
        under a key that follows from the cancelled batch.
        """
        part = self._parts[index]
        try:
            while True:
                found = self._server.preview(self._body(part), part.idempotency_key)
                if found.batch is None or not self._has_references(part):
                    return found
                if self._server.read_batch(found.batch).status != BatchStatus.CANCELLED:
                    return found
                click.echo(f"{self._name(part)}: {found.batch} was cancelled; what it did not pay is paid now.")
                key = f"{self._parts[index].idempotency_key.partition('-after-')[0]}-after-{found.batch}"
                part = self._parts[index] = replace(part, idempotency_key=key)
        except RefusedError as error:
            mistakes = self._translate(part, error) or [
                f"The server refuses: {str(error).rstrip('.')}. Nothing was sent."
            ]
            text = "\n".join([*mistakes, "Nothing was sent."] if error.errors else mistakes)
            raise PushError(text) from None
        except PushError as error:
            text = f"{error} Nothing was sent."
            raise PushError(text) from None

    def _has_references(self, part: Part) -> bool:
        return all(row.reference is not None for row in self._file.rows[part.first : part.end])

    def _body(self, part: Part) -> bytes:
        return msgspec.json.Encoder().encode_lines(self._file.rows[part.first : part.end])

    def send(self) -> None:
        """Hand all batches in.

        Raises:
            PushError: one was not accepted.

        """
        self.was_sent = True
        for part in self._parts:
            with self._explained(part):
                batch, is_replay = self._server.send(self._body(part), part.idempotency_key)
            self._batches.append(batch)
            if batch.finished_at is None:
                self.is_nothing_new = False
            how = "was accepted by an earlier run, and is not paid again" if is_replay else "is accepted"
            click.echo(f"{self._name(part)} {how}: {batch.id}")

    def wait(self) -> None:
        """Wait until all batches are finished, for as long as it takes."""
        done = -1
        notice_at: float | None = None
        with _show_progress(len(self._file.rows)) as update:
            while True:
                self._refresh()
                before, done = done, sum(batch.processed for batch in self._batches)
                update(done)
                if all(batch.finished_at for batch in self._batches):
                    return
                now = time.monotonic()
                if done != before:
                    notice_at = now + self._limits.idle_notice_s
                elif notice_at is not None and now >= notice_at:
                    click.echo(
                        f"The batches wait: nothing was paid for {self._limits.idle_notice_s:g} s. Perhaps payouts are "
                        "disabled, or no worker runs. Still here; Ctrl-C does no harm."
                    )
                    notice_at = None
                time.sleep(self._limits.poll_s)

    def finish(self) -> None:
        """Write the results.

        Raises:
            NotAllPaidError: some rows are not paid.
            PushError: they cannot be written.

        """
        target = self._file.results_path
        paid = self._write_results(target)
        rows = len(self._file.rows)
        already_paid = sum(batch.already_paid for batch in self._batches)
        before = f", {already_paid:,} of them before this file" if already_paid else ""
        click.echo(f"{paid:,} of {_count(rows, 'row')} allocated{before}. Results: {target}")
        if paid < rows:
            cancelled = [
                f"{self._name(part)} ({batch.id})"
                for part, batch in zip(self._parts, self._batches, strict=True)
                if batch.status == BatchStatus.CANCELLED
            ]
            why = (
                f": cancelled: {', '.join(cancelled)}; push the results to pay the rest: {target}" if cancelled else ""
            )
            text = f"{_count(rows - paid, 'row')} of {rows:,} not paid{why}."
            raise NotAllPaidError(text)

    def _refresh(self) -> None:
        for index, batch in enumerate(self._batches):
            if not batch.finished_at:
                with self._explained(self._parts[index]):
                    self._batches[index] = self._server.read_batch(batch.id)

    def _write_results(self, target: Path) -> int:
        """Write all results; return how many rows are paid."""
        unfinished: Path | None = None
        try:
            # Hashes are secrets: the file is its owner's alone, from the start.
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            unfinished = Path(name)
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(RESULT_COLUMNS)
                pairs = zip(self._parts, self._batches, strict=True)
                paid = sum(self._copy_results(part, batch, file) for part, batch in pairs)
            unfinished.replace(target)
        except OSError as error:
            text = f"All batches are finished, but the results cannot be written to {target}: {error.strerror}."
            raise PushError(f"{text} {_RUN_AGAIN}") from None  # noqa: EM102
        finally:
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
        return paid

    def _copy_results(self, part: Part, batch: Batch, file: TextIOWrapper) -> int:
        start = file.tell()

        def write(rows: Iterator[list[str]]) -> int:
            file.seek(start)
            file.truncate()
            return renumber(rows, part, file)

        with self._explained(part):
            return self._server.copy_results(batch.id, write)

    @contextmanager
    def _explained(self, part: Part) -> Iterator[None]:
        """Say which part an error is about, and that the rest is not lost."""
        try:
            yield
        except RefusedError as error:
            mistakes = self._translate(part, error)
            said = str(error).rstrip(".")
            text = "\n".join(mistakes) or f"{self._name(part)}: {said}. {self._accepted_before()}{_RUN_AGAIN}"
            raise PushError(text) from None
        except PushError as error:
            text = f"{error} {_RUN_AGAIN}"
            raise PushError(text) from None

    def _accepted_before(self) -> str:
        accepted = len(self._batches)
        return f"{_count(accepted, 'batch', 'batches')} accepted before. " if accepted < len(self._parts) else ""

    def _translate(self, part: Part, error: RefusedError) -> list[str]:
        """Write the server's texts by row for the lines of the file."""
        mistakes = []
        for field, texts in error.errors.items():
            match = _FIELD_OF_ROW.match(field)
            row = part.first + int(match[1]) if match else part.end
            where = f"Line {self._file.lines[row]}" if row < part.end else self._name(part)
            said = " ".join(texts).replace(field, match[2] or "row") if match else " ".join(texts)
            mistakes.append(f"{where}: {said}")
        return mistakes

    def _name(self, part: Part) -> str:
        lines = self._file.lines
        return f"Batch {part.number} of {part.count} (lines {lines[part.first]} to {lines[part.end - 1]})"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
