"""The pages at /docs: they say what the OpenAPI document says, and every example of the contract's page is true."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx
import msgspec
import pytest

from api.reference.openapi import make_document
from api.reference.playground.contract import EXAMPLES, KEY, LONG, Situation
from api.reference.playground.operations import read_operations
from core.credentials import KeyKind
from core.parties import api_keys, businesses
from tests.api.reference.test_openapi import ERROR_TEXTS, operations
from tests.servers import Account, Parts, Servers, System, open_account, run_system

PAGES = ("/docs", "/docs/contract")
FUNDS_CENTS = 1_000_000

HEX = re.compile(r"\b[0-9a-f]{64}\b")
ID = re.compile(r"\b(usr|txn|bat)_[0-9a-f]{32}\b")
USER_ID = re.compile(r"\busr_[0-9a-f]{32}\b")
TIME = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


@dataclass
class Shown:
    """An example, read from the page as a person would."""

    name: str
    situation: Situation
    before: str
    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    status_code: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: str = ""


def read_lines(text: str) -> tuple[str, dict[str, str], str | None]:
    head, _, body = text.partition("\n\n")
    first, *headers = head.split("\n")
    return first, dict(line.split(": ", 1) for line in headers), body or None


def read_examples(html: str) -> Iterator[Shown]:
    for figure in re.findall(r'<figure class="example".*?</figure>', html, re.DOTALL):
        attributes = dict(re.findall(r'(id|data-\w+)="([^"]*)"', figure.partition(">")[0]))
        shown = Shown(attributes["id"], Situation(attributes["data-situation"]), attributes.get("data-before", ""))
        request, answer = (unescape(text) for text in re.findall(r"<code>(.*?)</code>", figure, re.DOTALL))
        first, shown.headers, shown.body = read_lines(request)
        shown.method, shown.path = first.split(" ")
        first, shown.answer_headers, text = read_lines(answer)
        shown.status_code, shown.answer = int(first.split(" ")[0]), text or ""
        yield shown


def without_particulars(text: str) -> str:
    """Replace what differs from call to call."""
    return TIME.sub("<time>", ID.sub(r"<\1>", HEX.sub("<hash>", text)))


class Caller:
    """Makes examples' calls for one business."""

    def __init__(self, system: System, client: httpx.Client, situation: Situation) -> None:
        self._system = system
        self._client = client
        self._hash = ""
        cents = 0 if situation is Situation.EMPTY else FUNDS_CENTS
        self.account = open_account(system.database, funds_cents=cents)

    def arrange(self, situation: Situation) -> None:
        with self._system.database.transaction() as connection:
            if situation is Situation.DISABLED:
                businesses.set_payouts_enabled(connection, self.account.business.id, enabled=False)
            elif situation is Situation.KEYS_REQUIRED:
                businesses.set_requires_keys(connection, self.account.business.id, required=True)
            elif situation is Situation.REVOKED:
                api_keys.revoke_api_key(connection, self.account.api_key_id)
        if situation is Situation.INACTIVE:
            headers = self.account.headers
            path = f"/payout/users/{self._user_id()}"
            answer = self._client.patch(path, json={"status": "inactive"}, headers=headers)
            assert answer.status_code == 200
        if situation is Situation.LIMITED:
            while self._client.get("/balance", headers=self.account.headers).status_code == 200:
                pass

    def make(self, shown: Shown) -> httpx.Response:
        headers = {name: self._fill_in(value) for name, value in shown.headers.items()}
        body = shown.body
        if body:
            for end in ("@", "\\u0000"):
                body = body.replace(f"{LONG}{end}", "x" * 300 + end)
            body = body.replace(LONG, "x" * 70_000)
        path = USER_ID.sub(lambda _: self._user_id(), shown.path) if shown.before else shown.path
        answer = self._client.request(shown.method, path, headers=headers, content=body)
        if answer.status_code == 201:
            self._hash = answer.json()["hash"]
        return answer

    def _user_id(self) -> str:
        (user,) = self._client.get("/payout/users", headers=self.account.headers).json()["data"]
        return str(user["id"])

    def _fill_in(self, value: str) -> str:
        if KEY in value:
            return value.replace(KEY, self.account.secret_key)
        if "pk_test_…" in value:
            with self._system.database.transaction() as connection:
                _, key = api_keys.create_api_key(connection, self.account.business.id, KeyKind.PUBLIC)
            return value.replace("pk_test_…", key)
        return self._hash if HEX.fullmatch(value) and self._hash else value


@pytest.fixture(scope="module")
def limited(servers: Servers) -> Iterator[System]:
    own = Servers(servers.postgres_url, servers.redis_url.removesuffix("/0") + "/5")
    with run_system(own, rate_limit_per_s="1", rate_limit_burst="2") as running:
        yield running


@pytest.fixture(scope="module")
def without_workers(servers: Servers) -> Iterator[System]:
    own = Servers(servers.postgres_url, servers.redis_url.removesuffix("/0") + "/6")
    with run_system(own, Parts(without=("worker", "batches", "beat"))) as running:
        yield running


@pytest.fixture(scope="module")
def shown_by_name(client: httpx.Client) -> dict[str, Shown]:
    return {shown.name: shown for shown in read_examples(client.get("/docs/contract").text)}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_example_on_the_page_is_what_the_server_answers(
    name: str, shown_by_name: dict[str, Shown], request: pytest.FixtureRequest
) -> None:
    shown = shown_by_name[name]
    fixture = {Situation.LIMITED: "limited", Situation.NO_WORKERS: "without_workers"}.get(shown.situation, "system")
    system: System = request.getfixturevalue(fixture)
    with system.client() as client:
        caller = Caller(system, client, shown.situation)
        if shown.before:
            before = caller.make(shown_by_name[shown.before])
            assert before.status_code == shown_by_name[shown.before].status_code
        caller.arrange(shown.situation)
        answer = caller.make(shown)
    assert answer.status_code == shown.status_code
    assert without_particulars(answer.text) == without_particulars(
        msgspec.json.encode(msgspec.json.decode(shown.answer)).decode()
    )
    for header, value in shown.answer_headers.items():
        assert without_particulars(answer.headers[header]) == without_particulars(value)


def test_the_page_has_an_example_of_every_error(shown_by_name: dict[str, Shown]) -> None:
    assert set(shown_by_name) == set(EXAMPLES)
    texts: dict[int, set[str]] = {}
    for shown in shown_by_name.values():
        answer = msgspec.json.decode(shown.answer)
        if "error" in answer:
            texts.setdefault(shown.status_code, set()).add(answer["error"])
    # 408 is for a body that takes two minutes.
    expected = {status: texts for status, texts in ERROR_TEXTS.items() if status != 408}
    assert texts == expected | {405: {"Method not allowed"}}


def test_the_page_has_every_field_error_of_a_payment(shown_by_name: dict[str, Shown]) -> None:
    texts: set[str] = set()
    for shown in shown_by_name.values():
        if shown.path == "/payout/create" and shown.status_code == 400 and "error" not in shown.answer:
            texts |= {text for each in msgspec.json.decode(shown.answer).values() for text in each}
    assert texts == {
        "The email field is required.",
        "The email must be a string.",
        "The email must be a valid email address.",
        "The email may not be greater than 255 characters.",
        "The amount field is required.",
        "The amount must be an integer.",
        "The amount must be at least 1.",
        "The amount may not be greater than 100000000.",
        "The amount field must be given once.",
        "The reference must be a string.",
        "The reference may not be greater than 255 characters.",
        "The reference may not contain control characters.",
    }


def test_the_playground_has_every_call_with_everything_that_the_document_says_of_it(client: httpx.Client) -> None:
    html = unescape(re.sub(r"<wbr>", "", client.get("/docs").text))
    document = make_document()
    shown = re.findall(r'<section class="operation" id="(\w+)".*?</section>', html, re.DOTALL)
    assert shown == [each["operationId"] for each in operations(document).values()]
    assert shown[0] == "createPayout"
    for (path, method), operation in operations(document).items():
        match = re.search(rf'<section class="operation" id="{operation["operationId"]}".*?</section>', html, re.DOTALL)
        assert match is not None
        section = match[0]
        assert f'data-method="{method.upper()}" data-path="{path}"' in section
        for parameter in operation.get("parameters", ()):
            assert f'name="{parameter["name"]}" data-place="{parameter["in"]}"' in section
        for status, answer in operation["responses"].items():
            assert f'data-status="{status}"' in section
            for example in answer["content"]["application/json"]["examples"].values():
                texts = re.findall(r"<code>(.*?)</code>", section, re.DOTALL)
                assert any(decode(text) == example["value"] for text in texts)
            assert all(name in section for name in answer["headers"])
        for media_type in operation.get("requestBody", {}).get("content", {}):
            assert media_type in section


def decode(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def test_the_curl_examples_work_as_they_are(system: System, account: Account) -> None:
    environment = {
        **system.environment,
        "PAYOUTS_URL": system.base_url,
        "PAYOUTS_KEY": account.secret_key,
    }
    with_ids = {"getPayoutUser", "updatePayoutUser", "getTransaction", "getPayoutBatch", "listPayoutBatchResults"}
    for operation in read_operations(make_document()):
        if operation.by_hash or operation.id in with_ids:
            continue
        command = operation.curl.replace("curl ", "curl --silent --output /dev/null --write-out '%{http_code}' ", 1)
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
        assert done.stdout == str(operation.answers[0].status_code), operation.curl


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_html_under_the_strict_policy_and_without_anything_inline(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "'unsafe" not in response.headers["content-security-policy"]
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert response.headers["x-frame-options"] == "DENY"
    assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son[a-z]+=|javascript:", response.text)
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("path", PAGES)
def test_every_link_and_file_of_a_page_is_there_and_ours(client: httpx.Client, path: str) -> None:
    html = client.get(path).text
    ids = set(re.findall(r'\sid="([^"]+)"', html))
    assert len(ids) == len(re.findall(r'\sid="([^"]+)"', html))
    for target in set(re.findall(r'(?:href|src)="([^"]+)"', html)):
        if target.startswith("#"):
            assert target[1:] in ids
        else:
            assert target.startswith("/")
            assert client.get(target, follow_redirects=True).status_code == 200, target


def test_files_are_kept_by_browsers_and_have_their_types(client: httpx.Client) -> None:
    html = client.get("/docs").text
    types = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    files = set(re.findall(r'(?:href|src)="([^"]+\.(?:css|js|svg))"', html))
    assert len(files) >= 4
    for path in files:
        response = client.get(path)
        assert response.headers["content-type"] == types[path.rpartition(".")[2]]
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/docs/nothing", "/docs/assets/nothing.js", "/docs/assets/..%2fpages.py"])
def test_what_is_not_there_is_not_found(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404
