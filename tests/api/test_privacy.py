"""Secrets and e-mails stay where they belong: not in logs, not in the broker, not in results."""

import asyncio
import base64
import json
import re
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import sqlalchemy as sa
from redis import Redis

from api.allocations.publisher import Publisher, make_instance_prefix
from api.local.valkey import EmbeddedValkey
from core.credentials import digest_of, email_digest
from core.ids import new_id
from core.messages import Allocation, GroupCodec
from core.settings.loader import Settings, load_settings
from tests.servers import HASH_SECRET, Account, System
from workers.app import ALLOCATE_TASK, QUEUE, create_celery

EMAIL = "somebody.private@example.com"
PASSWORD = "hunter2-correct-horse"  # noqa: S105
SECRETS = re.compile(r"[sp]k_(live|test)_\w+|\b[0-9a-f]{64}\b")


def send_foreign_messages(environment: dict[str, str]) -> None:
    celery = create_celery(load_settings(environment))
    for message in (EMAIL, {"email": EMAIL}, "1:" + base64.b64encode(EMAIL.encode() * 4).decode(), None):
        celery.send_task(ALLOCATE_TASK, args=[message], ignore_result=True)
    celery.close()


def make_mixed_calls(system: System, client: httpx.Client, account: Account) -> str:
    """Make calls that end in every way; return the hash."""
    good = {"email": EMAIL, "amount": 1}
    headers = account.headers
    paid = client.post("/payout/create", json=good, headers=headers)
    assert paid.status_code == 201
    calls = [
        client.post("/payout/create", json=good, headers=headers | {"Idempotency-Key": EMAIL}),
        client.post("/payout/create", json=good | {"amount": 2}, headers=headers | {"Idempotency-Key": EMAIL}),
        client.post("/payout/create", json=good | {"amount": 100_000_000}, headers=headers),
        client.post("/payout/create", json=good, headers={"Authorization": f"Bearer {account.secret_key}x"}),
        client.post("/payout/create", json=good, headers={"Authorization": "Bearer sk_live_" + "A" * 40}),
        client.post("/payout/create", json={"email": f"{EMAIL}@", "amount": EMAIL}, headers=headers),
        client.post("/payout/create", content=EMAIL, headers=headers),
        client.post("/payout/create", content=EMAIL * 10_000, headers=headers),
        client.get(f"/payout/create?email={EMAIL}&key={account.secret_key}", headers=headers),
        client.get(f"/{account.secret_key}?email={EMAIL}"),
    ]
    assert [call.status_code for call in calls] == [201, 422, 400, 401, 401, 400, 400, 413, 405, 404]
    return str(paid.json()["hash"])


def say_secrets_in_odd_places(client: httpx.Client, account: Account, hash_: str) -> None:
    """Send every secret where it does not belong: paths, queries, headers, methods, broken bodies."""
    secrets = [EMAIL, account.secret_key, hash_, PASSWORD]
    for secret in secrets:
        body = f'{{"email": "{secret}", "amount": "{secret}"'
        for method, path in [
            ("GET", f"/{secret}"),
            ("GET", f"/payout/{secret}/users?x={secret}"),
            ("GET", f"/payout/users/{secret}?{secret}={secret}"),
            ("PATCH", f"/payout/users/{secret}"),
            ("GET", f"/payout/transactions/{secret.replace('@', '%40')}"),
            ("GET", f"/payout/batches/{secret}/results?cursor={secret}"),
            ("GET", f"/payout/user?payout_hash={secret}"),
            ("POST", "/payout/batches"),
            ("POST", f"/payout/create?key={secret}"),
            ("DELETE", f"/payout/create/{secret}"),
            ("GET", f"/health/ready?{secret}"),
        ]:
            for headers in [
                account.headers | {"Content-Type": secret, "Idempotency-Key": secret, "Cookie": secret},
                {"Authorization": f"Bearer {secret}", "X-Payout-Hash": secret, "Accept": secret, "Referer": secret},
                {"Authorization": f"Basic {secret}", "User-Agent": secret, "Forwarded": f"for={secret}"},
            ]:
                call = client.request(method, path, content=body, headers=headers)
                assert call.status_code in {200, 400, 401, 404, 405}, (method, path)
        for request_id in [secret, f"Bearer:{secret}", f"a;{secret};b"]:
            if secret != PASSWORD:  # a word that looks like any other id is one
                call = client.get("/balance", headers={"X-Request-Id": request_id})
                assert secret not in call.headers["x-request-id"]


def make_a_transaction_fail(system: System, client: httpx.Client, account: Account) -> None:
    """Have the worker's statement fail in a way that quotes the row, once."""
    set_balance = sa.text("UPDATE payout_users SET balance = balance + :more WHERE business_id = :id")
    more = 2**63 - 1000
    with system.database.transaction() as connection:
        connection.execute(set_balance, {"more": more, "id": account.business.id})
    try:
        response = client.post("/payout/create", json={"email": EMAIL, "amount": 2000}, headers=account.headers)
        assert (response.status_code, response.json()) == (500, {"error": "Internal server error"})
    finally:
        with system.database.transaction() as connection:
            connection.execute(set_balance, {"more": -more, "id": account.business.id})


def test_logs_hold_no_secret_no_email_and_no_traceback(system: System, client: httpx.Client, account: Account) -> None:
    sizes = {path: path.stat().st_size for path in system.log_dir.glob("*.log")}
    hash_ = make_mixed_calls(system, client, account)
    say_secrets_in_odd_places(client, account, hash_)
    send_foreign_messages(system.environment)
    make_a_transaction_fail(system, client, account)
    assert system.pay(client, account, EMAIL, 1).status_code == 201
    time.sleep(0.5)  # the log's thread collects lines for a moment
    logs = "".join(path.read_bytes()[size:].decode() for path, size in sizes.items())
    assert "a message was dropped" in logs
    assert "allocations failed" in logs
    assert "POST /payout/create 201" in logs
    assert f'"users":["{email_digest(HASH_SECRET.encode(), EMAIL)}"]' in logs
    url = system.database.engine.url.render_as_string(hide_password=False)
    secrets = [EMAIL, "example.com", "somebody", PASSWORD, "hunter2", account.secret_key, hash_, HASH_SECRET, url]
    for secret in [*secrets, digest_of(hash_).hex()]:
        assert secret not in logs
    assert not SECRETS.search(logs)
    assert "Traceback" not in logs


def test_answers_hold_nothing_that_was_not_asked_for(client: httpx.Client, account: Account) -> None:
    bad = [
        client.post("/payout/create", json={"email": f"{EMAIL}@", "amount": 0}, headers=account.headers),
        client.post("/payout/create", content=EMAIL, headers=account.headers),
        client.post("/payout/create", json={"email": EMAIL, "amount": 100_000_000}, headers=account.headers),
        client.post("/payout/create", json={"email": EMAIL, "amount": 1}, headers={"Authorization": "Bearer x"}),
        client.get(f"/{account.secret_key}"),
    ]
    for response in bad:
        seen = response.text + str(response.headers)
        assert EMAIL not in seen
        assert account.secret_key not in seen


def test_redis_holds_no_secret_and_no_email_after_calls(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = make_mixed_calls(system, client, account)
    with Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as redis:
        contents = read_everything(redis)
    assert contents
    for secret in (EMAIL, account.secret_key, hash_):
        assert secret.encode() not in contents


def test_database_holds_no_key_and_no_hash(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = make_mixed_calls(system, client, account)
    with system.database.transaction() as connection:
        for table in ("businesses", "api_keys", "payout_users", "payout_transactions"):
            rows = connection.execute(sa.text(f"SELECT row_to_json({table})::text FROM {table}")).scalars()
            contents = "".join(rows)
            assert contents
            assert account.secret_key not in contents
            assert hash_ not in contents


def test_broker_holds_no_email_in_clear_or_in_base64(valkey: EmbeddedValkey) -> None:
    settings = Settings(
        database_url="postgresql://nobody@127.0.0.1/none",
        redis_url=valkey.url,
        broker_url=valkey.url,
        hash_secret=HASH_SECRET,
    )
    businesses = [uuid4() for _ in range(4)]
    allocations = [
        Allocation(new_id(), businesses[n % 4], uuid4(), f"{'x' * (n % 3)}{EMAIL}", 1, 0, f"key of {EMAIL}")
        for n in range(23)
    ]
    prefix = make_instance_prefix()
    publisher = Publisher(create_celery(settings), GroupCodec(settings.hash_secret_bytes), prefix, threads=1)
    asyncio.run(publisher.publish(publisher.make_task_id(), allocations))
    publisher.close()
    with Redis.from_url(valkey.url) as redis:
        contents = read_everything(redis)
        (message,) = redis.lrange(QUEUE, 0, -1)

    envelope = json.loads(message)
    assert envelope["headers"]["argsrepr"] == "23 allocations, 4 businesses"
    assert envelope["headers"]["id"].startswith(prefix)
    (sealed,), options, _ = json.loads(base64.b64decode(envelope["body"]))
    assert options == {}
    assert GroupCodec(settings.hash_secret_bytes).open(sealed, envelope["headers"]["id"]).allocations == allocations
    opened = base64.b64decode(envelope["body"]) + base64.b64decode(sealed.partition(":")[2])
    for secret in (EMAIL.encode(), b"somebody", HASH_SECRET.encode()):
        for offset in range(3):
            # The middle of a text looks the same in base64 whatever stands around it, but for the offset.
            encoded = base64.b64encode(b"x" * offset + secret)[4:-4]
            assert encoded not in contents
            assert encoded not in opened
        assert secret not in contents
        assert secret not in opened


def test_sources_log_no_error_text() -> None:
    """An error's text may quote a row, so only its description is logged."""
    root = Path(__file__).parents[2]
    for path in (file for package in ("api", "core", "workers") for file in (root / package).glob("*.py")):
        assert not re.search(r"logger\.exception|exc_info=True|traceback\.", path.read_text()), path


def read_everything(redis: Any) -> bytes:
    """Return all keys and values of a Redis database."""
    parts: list[bytes] = []
    for key in redis.scan_iter():
        parts.append(key)
        kind = redis.type(key)
        if kind == b"string":
            parts.append(redis.get(key) or b"")
        elif kind == b"list":
            parts.extend(redis.lrange(key, 0, -1))
        elif kind == b"set":
            parts.extend(redis.smembers(key))
        elif kind == b"hash":
            parts.extend(part for pair in redis.hgetall(key).items() for part in pair)
        elif kind == b"zset":
            parts.extend(redis.zrange(key, 0, -1))
    return b"\n".join(parts)
