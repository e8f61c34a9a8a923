"""Traces: one spans request, task and statement, and shows nothing that a log would not."""

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from api.local.valkey import EmbeddedValkey
from core.tracing import is_asked_for
from tests.polling import wait_until
from tests.servers import HASH_SECRET, ROOT, Parts, Servers, System, open_account, run_system, run_valkey

EMAIL = "somebody.private@example.com"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Receives what real processes export, over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        received = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def spans(self) -> list[tuple[str, Any]]:
        """Return the service's name and the span, for each."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                found += [(names["service.name"], span) for scope in resource.scope_spans for span in scope.spans]
        return found

    def of_trace(self, trace_id: bytes) -> list[tuple[str, Any]]:
        return [(service, span) for service, span in self.spans() if span.trace_id == trace_id]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def traced(servers: Servers, collector: Collector) -> Iterator[System]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        # Whoever sets these in the environment must not get secrets either.
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
    }
    parts = Parts(variables=dict.fromkeys(["web", "worker", "batches", "beat"], variables))
    with run_valkey() as valkey, run_system(servers, parts, redis_url=valkey.url) as system:
        yield system


def test_one_trace_spans_request_task_and_statement(traced: System, collector: Collector) -> None:
    account = open_account(traced.database)
    with traced.client(headers=account.headers | {"traceparent": PARENT}) as client:
        assert client.post("/payout/create", json={"email": EMAIL, "amount": 1}).status_code == 201
    trace_id = bytes.fromhex(PARENT.split("-")[1])

    def find() -> list[tuple[str, Any]]:
        spans = collector.of_trace(trace_id)
        names = {span.name for _, span in spans}
        return spans if {"POST /payout/create", "run/payouts.allocate", "group"} <= names else []

    spans = wait_until(find)
    by_id = {span.span_id: (service, span) for service, span in spans}
    statements = [
        (service, span)
        for service, span in spans
        if service == "payouts-worker"
        and any(each.key == "db.statement" for each in span.attributes)
        and by_id[span.parent_span_id][1].name != "connect"
    ]
    assert statements
    # From a statement up to the request, each is the child of the next.
    path = []
    _, span = statements[0]
    while span.parent_span_id in by_id:
        service, span = by_id[span.parent_span_id]
        path.append((service, span.name))
    assert path == [
        ("payouts-worker", "run/payouts.allocate"),
        ("payouts-web", "apply_async/payouts.allocate"),
        ("payouts-web", "group"),
        ("payouts-web", "POST /payout/create"),
    ]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]


def test_a_group_links_to_the_calls_that_it_carries(traced: System, collector: Collector) -> None:
    account = open_account(traced.database)
    with traced.client(headers=account.headers) as client, ThreadPoolExecutor(16) as threads:
        bodies = [{"email": f"user{n}@example.com", "amount": 1} for n in range(120)]
        answers = threads.map(lambda body: client.post("/payout/create", json=body).status_code, bodies)
        assert set(answers) == {201}

    def find() -> list[Any]:
        return [span for _, span in collector.spans() if span.name == "group" and span.links]

    group = wait_until(find)[0]
    (size,) = [each.value.int_value for each in group.attributes if each.key == "payouts.allocations"]
    assert len(group.links) == min(size, 20) - 1
    linked = {link.trace_id for link in group.links}
    assert group.trace_id not in linked
    wait_until(lambda: linked <= {span.trace_id for _, span in collector.spans() if span.name == "POST /payout/create"})


def test_spans_hold_no_parameter_no_email_and_no_key(traced: System, collector: Collector) -> None:
    account = open_account(traced.database, funds_cents=1_000_000_000)
    before = len(collector.bodies)
    set_balance = sa.text("UPDATE payout_users SET balance = balance + :more WHERE business_id = :id")
    more = {"more": 2**63 - 1000, "id": account.business.id}
    with traced.client(headers=account.headers) as client:
        hash_ = client.post("/payout/create", json={"email": EMAIL, "amount": 7}).json()["hash"]
        with traced.database.transaction() as connection:
            connection.execute(set_balance, more)
        assert client.post("/payout/create", json={"email": EMAIL, "amount": 98_765_432}).status_code == 500
        for secret in (EMAIL, account.secret_key, hash_, "hunter2-horse"):
            client.get(f"/payout/users/{secret}?email={secret}", headers={"X-Payout-Hash": secret, "Cookie": secret})
            client.get(f"/payout/users?email={secret}")
            client.get(f"/{secret}")
            client.get("/payout/user", headers={"X-Payout-Hash": hash_})
    wait_until(lambda: any("users" in span.name for _, span in collector.spans()))
    time.sleep(1)
    seen = b"".join(collector.bodies[before:])
    assert b"SELECT" in seen
    for secret in (EMAIL, "example.com", "somebody", account.secret_key, hash_, "hunter2", HASH_SECRET, "98765432"):
        assert secret.encode() not in seen
    assert "Traceback" not in traced.logs()


def test_what_sqlalchemy_executes_is_traced_too(traced: System, collector: Collector) -> None:
    account = open_account(traced.database)
    trace_id = "3" * 32
    parent = {"traceparent": f"00-{trace_id}-{'4' * 16}-01"}
    with traced.client(headers=account.headers | parent) as client:
        assert client.post("/payout/batches", json={"allocations": [{"email": EMAIL, "amount": 1}]}).status_code == 202

    def find() -> set[str]:
        return {
            each.value.string_value
            for service, span in collector.of_trace(bytes.fromhex(trace_id))
            for each in span.attributes
            if service == "payouts-web" and each.key == "db.statement" and span.name != "connect"
        }

    assert any(statement.startswith(("SELECT", "INSERT", "UPDATE")) for statement in wait_until(find))


def test_a_payout_batch_is_traced_to_its_task(traced: System, collector: Collector) -> None:
    account = open_account(traced.database)
    rows = {"allocations": [{"email": "user@example.com", "amount": 1}]}
    trace_id = "1" * 32
    parent = {"traceparent": f"00-{trace_id}-{'2' * 16}-01"}
    with traced.client(headers=account.headers | parent) as client:
        assert client.post("/payout/batches", json=rows).status_code == 202
    wait_until(
        lambda: (
            {"POST /payout/batches", "run/payouts.pay_batch_chunk"}
            <= {span.name for _, span in collector.of_trace(bytes.fromhex(trace_id))}
        )
    )


def test_a_collector_that_is_away_changes_nothing(servers: Servers, valkey: EmbeddedValkey) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    parts = Parts(["batches", "beat"], dict.fromkeys(["web", "worker"], variables))
    with run_system(servers, parts, redis_url=valkey.url) as system, system.client() as client:
        account = open_account(system.database)
        assert {system.pay(client, account, EMAIL, 1).status_code for _ in range(5)} == {201}
        time.sleep(1)
        lines = [json.loads(line) for line in system.logs().splitlines()]
    assert EMAIL not in str(lines)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_opentelemetrys_own_variables_switch_it(variables: dict[str, str], expected: bool) -> None:
    assert is_asked_for(variables) is expected


def test_without_them_a_worker_imports_nothing_of_it() -> None:
    script = "import sys, workers.main; print(*sys.modules)"
    variables = {
        "PATH": "",
        "PAYOUTS_DATABASE_URL": "postgresql://x/y",
        "PAYOUTS_REDIS_URL": "redis://x",
        "PAYOUTS_HASH_SECRET": HASH_SECRET,
    }
    done = subprocess.run([sys.executable, "-c", script], env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert "workers.tracing" in imported
    # redis-py imports the API and the SDK by itself, where they are installed.
    assert not [
        name for name in imported if name.startswith(("opentelemetry.instrumentation", "opentelemetry.exporter"))
    ]
