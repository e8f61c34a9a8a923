"""The command line `payouts`: one line for each known error, and nothing slow imported before it is needed."""

import sys
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click

from api.local.data_dir import DEFAULT_DATA_DIR
from api.local.up import run_up
from core.errors import UserError
from core.version import VERSION


def main() -> NoReturn:
    """Run the command line; what the user can put right is one line on standard error."""
    try:
        _check_encoding(sys.argv[1:])
        cli()
    except UserError as error:
        for line in str(error).splitlines():
            click.echo(f"Error: {line}", err=True)
        sys.exit(error.exit_code)
    sys.exit(0)


def _check_encoding(arguments: list[str]) -> None:
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        text = "the arguments must be UTF-8"
        raise UserError(text) from None


class _LazyGroup(click.RichGroup):
    """Imports the administrators' commands, and SQLAlchemy with them, only where one is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return ["up", "push", "doctor", *self._admin_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return {"up": up, "push": push, "doctor": doctor}.get(cmd_name) or self._admin_commands().get(cmd_name)

    @staticmethod
    def _admin_commands() -> dict[str, click.Command]:
        from api.cli.admin import COMMANDS

        return COMMANDS


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="payouts")
def cli() -> None:
    """Pay people by e-mail."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    envvar="PORT",
    show_default=True,
    help="Port to listen on; or $PORT.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Directory for the data of PostgreSQL and for secrets.",
)
@click.option("--flower/--no-flower", default=True, show_default=True, help="Run Flower, which shows the tasks.")
def up(host: str, port: int, data_dir: Path, *, flower: bool) -> None:
    """Run everything on this machine: PostgreSQL, Valkey, API, workers and Flower, until Ctrl-C."""
    run_up(host, port, data_dir, with_flower=flower)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", envvar="PAYOUTS_KEY", required=True, help="Secret API key. Prefer $PAYOUTS_KEY.")
@click.option(
    "--url", envvar="PAYOUTS_URL", default="http://127.0.0.1:8000", show_default=True, help="Server; or $PAYOUTS_URL."
)
@click.option("--decimal", is_flag=True, help="Amounts are in dollars, such as 10.50, instead of cents.")
@click.option("--expect", metavar="DOLLARS", help="Send nothing if the rows come to another sum, such as 1404.78.")
@click.option("--email-column", metavar="NAME", help="The column of the e-mail addresses.")
@click.option("--amount-column", metavar="NAME", help="The column of the amounts.")
@click.option("--reference-column", metavar="NAME", help="The column of the references.")
@click.option("--ignore-columns", metavar="NAMES", multiple=True, help="Columns to leave out, separated by commas.")
@click.option("--sheet", metavar="NAME", help="The sheet of a workbook to pay.")
@click.option(
    "--hidden-rows",
    type=click.Choice(["refuse", "take", "leave"]),
    default="refuse",
    show_default=True,
    help="What becomes of the hidden rows of a sheet.",
)
@click.option("--dry-run", is_flag=True, help="Check the file and the balance, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before paying.")
@click.option("--again", is_flag=True, help="Pay rows without references also where they equal earlier payments.")
def push(
    file: Path, key: str, url: str, *, expect: str | None, dry_run: bool, yes: bool, again: bool, **how: Any
) -> None:
    """Pay the rows of a CSV, NDJSON, JSON or .xlsx file: email, amount and, if wanted, reference.

    The same file pays once, however often it is pushed: run it again after an interruption.
    """
    from api.cli.push import run_push
    from api.cli.push_options import read_expected, read_options

    code = run_push(
        file,
        url,
        key,
        options=read_options(**how),
        expected_cents=read_expected(expect),
        is_dry_run=dry_run,
        is_confirmed=yes,
        is_again=again,
    )
    sys.exit(code)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Check the `payouts up` of this directory. Default without PAYOUTS_DATABASE_URL: {DEFAULT_DATA_DIR}.",
)
@click.option(
    "--url", envvar="PAYOUTS_URL", help="Server to check. Default: $PAYOUTS_URL, or the address of `payouts up`."
)
def doctor(*, as_json: bool, data_dir: Path | None, url: str | None) -> None:
    """Check settings, servers, queues, processes and disk, and say what to do about each problem.

    Exit code 1: a problem was found. Exit code 2: the settings are wrong.
    """
    from api.cli.doctor.command import run_doctor

    sys.exit(run_doctor(data_dir, url, as_json=as_json))
