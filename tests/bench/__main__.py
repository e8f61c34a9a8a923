"""`python -m tests.bench`: the command line."""

import argparse
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from core.database.connection import Database
from tests.bench import dashboard, goals, report
from tests.bench.accounts import open_accounts
from tests.bench.load import LoadGenerator
from tests.bench.scale import Sizes, run_scale
from tests.bench.suite import FULL, SHORT, run_suite
from tests.servers import TEMPLATE, run_servers

_STANDARD_OUTPUT = "-"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="one round of short cases, as in CI")
    parser.add_argument("--only", nargs="+", choices=goals.NAMES, default=[], help="just what these goals need")
    parser.add_argument("--json", nargs="?", const=_STANDARD_OUTPUT, metavar="FILE", help="JSON, instead or in a file")
    scale = parser.add_argument_group("the long run")
    scale.add_argument("--scale", action="store_true", help="a big database and minutes of load, instead of the rest")
    scale.add_argument("--users", type=int, default=10_000_000, help="of the big database's hot business; 0: leave out")
    scale.add_argument("--rows-each", type=int, default=2, help="history rows for each user")
    scale.add_argument("--seconds", type=int, default=20, help="of each case")
    scale.add_argument("--rounds", type=int, default=3, help="of big and empty taking turns")
    scale.add_argument("--minutes", type=float, default=10, help="of load while memory is watched; 0: leave out")
    pages = parser.add_argument_group("the dashboard")
    pages.add_argument("--dashboard", action="store_true", help="every page on a big business, instead of the rest")
    pages.add_argument("--page-users", type=int, default=1_000_000, help="of that business")
    pages.add_argument("--page-rows-each", type=int, default=5, help="history rows for each of its users")
    pages.add_argument("--page-requests", type=int, default=50, help="of each page")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    # Ends the servers too, which have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found: report.Report | report.ScaleReport | report.DashboardReport
    with run_servers(on_disk=True) as servers, TemporaryDirectory(prefix="payouts-bench-") as directory:
        with Database(servers.url_of(TEMPLATE), transaction_timeout_s=None) as template:
            accounts = open_accounts(template)
        generator = LoadGenerator(Path(directory))
        if not generator.has_wrk:
            print(f"WARNING: {generator.name} takes its share of the cores, so every rate is too low", file=sys.stderr)
        machine = report.describe_machine(servers, generator.name)
        if arguments.dashboard:
            page_sizes = dashboard.Sizes(arguments.page_users, arguments.page_rows_each, arguments.page_requests)
            found = report.DashboardReport(machine, dashboard.run_dashboard(servers, page_sizes))
        elif arguments.scale:
            sizes = Sizes(
                users=arguments.users,
                rows_each=arguments.rows_each,
                seconds=arguments.seconds,
                rounds=arguments.rounds,
                minutes=arguments.minutes,
            )
            found = report.ScaleReport(machine, run_scale(servers, accounts, generator, sizes))
        else:
            durations = SHORT if arguments.short else FULL
            found = report.Report(machine, run_suite(servers, accounts, generator, durations, arguments.only))
    print(found.as_json() if arguments.json == _STANDARD_OUTPUT else found.as_text())
    if arguments.json not in {None, _STANDARD_OUTPUT}:
        Path(arguments.json).write_text(found.as_json() + "\n")
    for problem in found.problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    if not found.problems:
        print("every 201 is in the history, and the books balance", file=sys.stderr)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
