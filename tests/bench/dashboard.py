"""Every page of the dashboard, one request after another, on a business with many users and a long history."""

import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa
from litestar.routes import HTTPRoute

from api.app import create_app
from api.web.recent_requests import RecentRequests
from core import admin_actions
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.ledger.day_sums import forget_sums
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business
from core.parties.members import Role
from core.settings.loader import load_settings
from tests.bench.cpu import CpuWatch
from tests.bench.history import find_imbalances
from tests.bench.progress import report_progress
from tests.bench.systems import OURS, Service, run_service
from tests.polling import wait_until
from tests.servers import HASH_SECRET, Account, Servers, open_account

PAGE_MS_MAX = 200.0
DAYS = 30
_EMAIL = "bench@example.com"
_PASSWORD = "a password for the benchmark"  # noqa: S105
_BATCH_ROWS = 20_000
_UPLOAD_ROWS = 1_000
_WARM_UP_REQUESTS = 3
# Files, and what is there for those who are not signed in.
_NO_PAGE = re.compile(r"\.csv$|/assets/|/invitations/")
_CHUNK = 100_000
_WAIT_S = 300.0
_PAGE_LINK = re.compile(r'href="([^"]*[?&;](?:cursor|after)=[^"]+)"')
_CSRF_TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')
_FORM_ID = re.compile(r'name="form_id" value="([^"]+)"')

# One cent for each user in turn, evenly over the days; ids in order of time, as the product makes them.
_WRITE_USERS = sa.text("""
    INSERT INTO payout_users (business_id, id, email, hash_digest, balance)
    SELECT :business_id, uuidv7(), 'user' || number || '@example.com',
        sha256(convert_to('user' || number || '@example.com', 'UTF8')), :rows_each
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS number
""")
_WRITE_HISTORY = sa.text("""
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, created_at, sequence
    )
    SELECT :business_id, uuidv7(), 'allocation', id, 1, :balance - number, :pass,
        CAST(:since AS timestamptz) + number * CAST(:gap AS interval),
        number + (SELECT last_sequence FROM businesses WHERE id = :business_id)
    FROM (
        SELECT id, row_number() OVER (ORDER BY id) AS number FROM payout_users WHERE business_id = :business_id
    ) AS numbered
    ORDER BY number
""")
_DEBIT = sa.text("""
    UPDATE businesses SET payout_balance = payout_balance - :amount, last_sequence = last_sequence + :amount
    WHERE id = :business_id
""")
_OLDEST_OPEN = sa.text("""
    SELECT last_sequence - COALESCE(
        (SELECT last_sequence FROM payout_day_sums_progress WHERE business_id = :business_id), 0
    )
    FROM businesses
    WHERE id = :business_id
""")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big, and how often."""

    users: int
    rows_each: int
    """History rows for each user, over the last 30 days."""
    requests: int
    """Of each page."""


@dataclass(frozen=True, slots=True)
class PageTimes:
    """How long a page took, from the request to its last byte."""

    name: str
    requests: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of API, PostgreSQL and Valkey for one request: what it takes however busy the machine is."""
    others_cores: float
    """What the machine did besides."""
    size_kib: float


@dataclass
class DashboardFindings:
    """What was measured, and what was wrong."""

    users: int = 0
    history_rows: int = 0
    sum_s: float = 0.0
    """How long the workers took to sum the history by day, once it was there."""
    pages: list[PageTimes] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run_dashboard(servers: Servers, sizes: Sizes) -> DashboardFindings:
    """Fill a database, sign in, and time the pages."""
    findings = DashboardFindings()
    with run_service(servers, OURS) as service:
        account = open_account(service.database, funds_cents=10**12)
        business = account.business
        _fill(service.database, business, sizes)
        _wait_until_summed(service.database, business.id, findings)
        with httpx.Client(base_url=service.base_url, timeout=60, follow_redirects=False) as client:
            _sign_in(service, business, client)
            batch_id = _pay_batch(client, account)
            paths = []
            for name, path in _pages(service.database, business, client, batch_id):
                paths.append(path.partition("?")[0])
                findings.pages.append(_measure(client, name, path, sizes.requests, findings))
            findings.problems += [f"{route} was not measured" for route in _find_left_out(paths)]
        with service.database.transaction() as connection:
            counts = sa.text("SELECT (SELECT count(*) FROM payout_users), (SELECT count(*) FROM payout_transactions)")
            findings.users, findings.history_rows = connection.execute(counts).one()
        findings.problems += find_imbalances(service.database) + service.find_complaints()
    return findings


def _fill(database: Database, business: Business, sizes: Sizes) -> None:
    own: dict[str, Any] = {"business_id": business.id}
    for first in range(0, sizes.users, _CHUNK):
        last = min(first + _CHUNK, sizes.users) - 1
        with database.transaction() as connection:
            numbers = {"first": first, "last": last, "rows_each": sizes.rows_each}
            connection.execute(_WRITE_USERS, own | numbers)
    report_progress(f"{sizes.users:,} users")
    now = datetime.now(UTC)
    span = timedelta(days=DAYS) / sizes.rows_each
    with database.transaction() as connection:
        for number in range(sizes.rows_each):
            parameters = {
                "balance": business.payout_balance - number * sizes.users,
                "pass": number + 1,
                "since": now - timedelta(days=DAYS) + number * span,
                "gap": span / (sizes.users + 1),
            }
            connection.execute(_WRITE_HISTORY, own | parameters)
            connection.execute(_DEBIT, own | {"amount": sizes.users})
            report_progress(f"{(number + 1) * sizes.users:,} history rows")
        # Rows of the past are written by nobody else; what was summed before them does not have them.
        forget_sums(connection, business.id)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE) payout_users, payout_transactions"))
        connection.execute(sa.text("CHECKPOINT"))


def _wait_until_summed(database: Database, business_id: UUID, findings: DashboardFindings) -> None:
    began = time.monotonic()
    while True:
        with database.transaction() as connection:
            rows = connection.execute(_OLDEST_OPEN, {"business_id": business_id}).scalar_one()
        if rows == 0:
            break
        if time.monotonic() - began > _WAIT_S:
            findings.problems.append(f"{rows} history rows were not summed by day in time")
            break
        time.sleep(1)
    findings.sum_s = time.monotonic() - began
    report_progress(f"summed by day after {findings.sum_s:.0f} s")


def _sign_in(service: Service, business: Business, client: httpx.Client) -> None:
    with service.database.transaction() as connection:
        token = admin_actions.invite_member(connection, COMMAND_LINE, business.id, _EMAIL, Role.ADMIN)
    assert admin_actions.accept_invitation(service.database, token, _PASSWORD)
    form = _read_form(client, "/dashboard/sign-in")
    answer = client.post("/dashboard/sign-in", data=form | {"email": _EMAIL, "password": _PASSWORD})
    assert answer.status_code == 303, answer.text


def _read_form(client: httpx.Client, path: str) -> dict[str, str]:
    """Return the hidden fields that a page's forms send along."""
    text = client.get(path).text
    token, form_id = _CSRF_TOKEN.search(text), _FORM_ID.search(text)
    assert token, text
    assert form_id, text
    return {"csrf_token": token[1], "form_id": form_id[1]}


def _pay_batch(client: httpx.Client, account: Account) -> str:
    rows = [{"email": f"batch{number}@example.com", "amount": 1} for number in range(_BATCH_ROWS)]
    answer = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
    assert answer.status_code == 202, answer.text
    batch_id = str(answer.json()["id"])
    path = f"/payout/batches/{batch_id}"
    wait_until(
        lambda: client.get(path, headers=account.headers).json()["status"] == "completed", path, _WAIT_S, pause_s=0.5
    )
    return batch_id


def _upload(client: httpx.Client, base: str) -> str:
    """Upload a file that nobody accepts; return its preview's path."""
    form = _read_form(client, f"{base}/batches")
    lines = "".join(f"upload{number}@example.com,1\n" for number in range(_UPLOAD_ROWS))
    files = {"file": ("upload.csv", f"email,amount\n{lines}", "text/csv")}
    answer = client.post(f"{base}/batches/uploads", data=form | {"unit": "cents"}, files=files)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def _pages(database: Database, business: Business, client: httpx.Client, batch_id: str) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of every page, and of its lists in every order and selection."""
    base = f"/dashboard/{format_id(IdKind.BUSINESS, business.id)}/live"
    with database.transaction() as connection:
        query = sa.text("SELECT id FROM payout_users WHERE business_id = :id AND email = 'user77777@example.com'")
        user_id = connection.execute(query, {"id": business.id}).scalar()
        middle = connection.execute(
            sa.text("SELECT id FROM payout_users WHERE business_id = :id ORDER BY id OFFSET :half LIMIT 1"),
            {"id": business.id, "half": 10_000},
        ).scalar()
    ten_days_ago = (datetime.now(UTC) - timedelta(days=10)).date()
    yield "sign in", "/dashboard/sign-in?next=/"
    yield "home", base
    yield "users, newest first", f"{base}/users"
    yield "users, oldest first", f"{base}/users?sort=oldest"
    yield "users, by e-mail", f"{base}/users?sort=email"
    yield "users, by e-mail from Z to A", f"{base}/users?sort=-email"
    yield "users, e-mails that begin with `user9`", f"{base}/users?email=user9"
    yield "users, e-mails that begin with `nobody`", f"{base}/users?email=nobody"
    if middle is not None:
        yield "users, far behind", f"{base}/users?after={format_id(IdKind.PAYOUT_USER, middle)}"
    if user_id is not None:
        yield "a user", f"{base}/users/{format_id(IdKind.PAYOUT_USER, user_id)}"
    yield "transactions", f"{base}/transactions"
    yield "transactions, second page", _second_page(client, f"{base}/transactions")
    yield "transactions, allocations", f"{base}/transactions?type=allocation"
    yield "transactions, fundings", f"{base}/transactions?type=funding"
    yield "transactions, reversals (none)", f"{base}/transactions?type=reversal"
    yield "transactions, one user's", f"{base}/transactions?email=user77777@example.com"
    yield "transactions, one user's fundings (none)", f"{base}/transactions?email=user77777@example.com&type=funding"
    yield "transactions, one day's", f"{base}/transactions?from={ten_days_ago}&to={ten_days_ago}"
    yield "transactions, up to ten days ago", f"{base}/transactions?to={ten_days_ago}"
    yield "batches", f"{base}/batches"
    yield f"a batch of {_BATCH_ROWS:,} rows", f"{base}/batches/{batch_id}"
    yield "a batch's progress", f"{base}/batches/{batch_id}/progress"
    yield f"preview of {_UPLOAD_ROWS:,} rows", _upload(client, base)
    yield "developers", f"{base}/developers"
    yield "settings", f"{base}/settings"
    yield "audit log", f"{base}/settings/log"
    yield "own account", "/dashboard/account"
    yield "test mode, home", base.removesuffix("live") + "test"
    yield "playground", "/docs"
    yield "contract by example", "/docs/contract"


def _find_left_out(paths: list[str]) -> list[str]:
    """Return the dashboard's routes to which none of these paths belongs, of those that answer with a page."""
    settings = load_settings(
        {
            "PAYOUTS_DATABASE_URL": "postgresql://nowhere",
            "PAYOUTS_REDIS_URL": "redis://nowhere",
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
        }
    )
    routes = [
        route for route in create_app(settings, RecentRequests(settings)).routed.routes if isinstance(route, HTTPRoute)
    ]
    pages = [
        route.path
        for route in routes
        if route.path.startswith("/dashboard/") and "GET" in route.methods and not _NO_PAGE.search(route.path)
    ]
    patterns = {path: re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path) + r"\Z") for path in pages}
    return [path for path, pattern in patterns.items() if not any(map(pattern.match, paths))]


def _second_page(client: httpx.Client, path: str) -> str:
    link = _PAGE_LINK.search(client.get(path).text)
    assert link, path
    target = link[1].replace("&amp;", "&")
    return f"{path}{target}" if target.startswith("?") else target


def _measure(client: httpx.Client, name: str, path: str, requests: int, findings: DashboardFindings) -> PageTimes:
    times_ms = []
    size = 0
    for _ in range(_WARM_UP_REQUESTS):
        client.get(path)
    cpu = CpuWatch()
    for _ in range(requests):
        began = time.perf_counter()
        answer = client.get(path)
        times_ms.append((time.perf_counter() - began) * 1000)
        size = len(answer.content)
        # Who is signed in is sent on from the sign-in page.
        if answer.status_code not in ({303} if name == "sign in" else {200}):
            findings.problems.append(f"{name}: answered {answer.status_code}")
            break
    used_s, others = cpu.read(0)
    p99_ms = sorted(times_ms)[-1 - len(times_ms) // 100]
    p50_ms, cpu_ms = statistics.median(times_ms), sum(used_s.values()) * 1000 / len(times_ms)
    report_progress(f"{name}: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, processor {cpu_ms:.1f} ms, others {others:.1f}")
    return PageTimes(name, len(times_ms), p50_ms, p99_ms, cpu_ms, others, size / 1024)
