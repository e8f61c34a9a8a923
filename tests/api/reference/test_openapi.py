"""The OpenAPI document, against the HTTP contract; and the one table that maps outcomes to HTTP."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from jsonschema_rs import validator_for

from api.client import Payouts, PayoutsError
from api.resources import schemas
from api.web import responses
from api.web.responses import HEADERS_BY_SUCCESS, REFUSAL_BY_OUTCOME
from core.messages import Outcome
from core.version import VERSION
from tests.servers import ROOT, Account

ERROR_TEXTS = {
    400: {
        "The request body must be a JSON object.",
        "Idempotency-Key must be 1 to 255 visible ASCII characters",
        "Idempotency-Key is required",
        "Insufficient payout balance",
    },
    401: {"Unauthorized"},
    403: {"Payouts are currently disabled. Please enable them in Settings."},
    404: {"Not found"},
    408: {"Request timeout"},
    413: {"Request body too large"},
    422: {
        "Idempotency-Key was already used with different parameters",
        "Reference was already used with different parameters",
    },
    429: {"Too many requests"},
    500: {"Internal server error"},
}
"""The HTTP contract's, by status; and 408."""

NO_OBJECT = {"The request body must be a JSON object."}
STATUSES: dict[tuple[str, str], tuple[set[int], set[str]]] = {
    ("/payout/create", "post"): ({201, 400, 401, 403, 413, 422, 429, 500}, ERROR_TEXTS[400]),
    ("/balance", "get"): ({200, 401, 429, 500}, set()),
    ("/payout/user", "get"): ({200, 400, 401, 413, 429, 500}, NO_OBJECT),
    ("/payout/user", "post"): ({200, 400, 401, 413, 429, 500}, NO_OBJECT),
    ("/payout/history", "get"): ({200, 400, 401, 413, 429, 500}, NO_OBJECT),
    ("/payout/history", "post"): ({200, 400, 401, 413, 429, 500}, NO_OBJECT),
    ("/payout/users", "get"): ({200, 400, 401, 429, 500}, set()),
    ("/payout/users/{user_id}", "get"): ({200, 401, 404, 429, 500}, set()),
    ("/payout/users/{user_id}", "patch"): ({200, 400, 401, 404, 413, 429, 500}, NO_OBJECT),
    ("/payout/transactions", "get"): ({200, 400, 401, 429, 500}, set()),
    ("/payout/transactions/{transaction_id}", "get"): ({200, 401, 404, 429, 500}, set()),
    ("/payout/batches", "get"): ({200, 400, 401, 429, 500}, set()),
    ("/payout/batches", "post"): ({202, 400, 401, 403, 408, 413, 422, 429, 500}, ERROR_TEXTS[400]),
    ("/payout/batches/preview", "post"): (
        {200, 400, 401, 403, 408, 413, 422, 429, 500},
        ERROR_TEXTS[400] - {"Insufficient payout balance"},
    ),
    ("/payout/batches/{batch_id}", "get"): ({200, 401, 404, 429, 500}, set()),
    ("/payout/batches/{batch_id}/results", "get"): ({200, 400, 401, 404, 429, 500}, set()),
}
"""By call of the HTTP contract: its statuses, and the texts of its 400."""


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    response = client.get("/schema/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert client.get("/schema").content == response.content
    return dict(response.json())


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method): each for path, item in document["paths"].items() for method, each in item.items()}


def examples(response: dict[str, Any]) -> list[Any]:
    return [example["value"] for example in response["content"]["application/json"]["examples"].values()]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_exactly_one_answer(outcome: Outcome) -> None:
    assert (outcome in REFUSAL_BY_OUTCOME) != (outcome in HEADERS_BY_SUCCESS)


def test_document_has_the_version_of_the_product(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == VERSION


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "Payouts"


def test_exactly_the_calls_of_the_contract_are_documented(document: dict[str, Any]) -> None:
    assert set(operations(document)) == set(STATUSES)


def test_every_call_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("call", list(STATUSES), ids=" ".join)
def test_statuses_and_texts_are_those_of_the_contract(document: dict[str, Any], call: tuple[str, str]) -> None:
    described = operations(document)[call]["responses"]
    statuses, texts_of_400 = STATUSES[call]
    assert {int(status) for status in described} == statuses
    for status in statuses - {200, 201, 202}:
        texts = {example["error"] for example in examples(described[str(status)]) if "error" in example}
        expected = texts_of_400 if status == 400 else ERROR_TEXTS[status]
        if status == 422 and call != ("/payout/create", "post"):
            expected = {"Idempotency-Key was already used with different parameters"}  # references: 400, by row
        assert texts == expected


@pytest.mark.parametrize("call", list(STATUSES), ids=" ".join)
def test_every_status_has_an_example_that_fits_its_schema(document: dict[str, Any], call: tuple[str, str]) -> None:
    for response in operations(document)[call]["responses"].values():
        schema = response["content"]["application/json"]["schema"] | {"components": document["components"]}
        validator = validator_for(schema)
        assert examples(response)
        for example in examples(response):
            validator.validate(example)
        assert response["headers"]["X-Request-Id"]["required"] is True


def test_every_refusal_of_an_outcome_is_in_the_table(document: dict[str, Any]) -> None:
    described = operations(document)[("/payout/create", "post")]["responses"]
    for refusal in REFUSAL_BY_OUTCOME.values():
        assert {"error": refusal.error} in examples(described[str(refusal.status_code)])
    assert all(refusal.error in ERROR_TEXTS[refusal.status_code] for refusal in REFUSAL_BY_OUTCOME.values())


def test_field_errors_are_documented(document: dict[str, Any]) -> None:
    described = operations(document)[("/payout/create", "post")]["responses"]["400"]
    assert [example for example in examples(described) if "error" not in example] == [
        {"email": ["The email must be a valid email address."], "amount": ["The amount must be at least 1."]}
    ]


def test_body_is_documented_as_the_contract_has_it(document: dict[str, Any]) -> None:
    body = operations(document)[("/payout/create", "post")]["requestBody"]
    assert body["required"] is True
    schema = body["content"]["application/json"]["schema"]
    assert sorted(schema["required"]) == ["amount", "email"]
    amount, email = schema["properties"]["amount"], schema["properties"]["email"]
    assert (amount["type"], amount["minimum"], amount["maximum"]) == ("integer", 1, 100_000_000)
    assert (email["type"], email["maxLength"]) == ("string", 255)
    reference = schema["properties"]["reference"]
    assert (reference["type"], reference["maxLength"]) == (["string", "null"], 255)


def test_examples_of_bodies_are_accepted(document: dict[str, Any], client: httpx.Client, account: Account) -> None:
    contents = operations(document)[("/payout/batches", "post")]["requestBody"]["content"]
    assert set(contents) == {"application/json", "text/csv", "application/x-ndjson"}
    for media_type, content in contents.items():
        example = content["example"]
        body = example if isinstance(example, str) else msgspec.json.encode(example)
        headers = {**account.headers, "Content-Type": media_type, "Idempotency-Key": "once"}
        answer = client.post("/payout/batches", content=body, headers=headers)
        assert (answer.status_code, answer.json()["amount"]) == (202, 10000)  # the same rows, written in three ways


def test_headers_are_documented(document: dict[str, Any]) -> None:
    create = operations(document)[("/payout/create", "post")]
    (parameter,) = create["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("Idempotency-Key", "header", False)
    assert (parameter["schema"]["minLength"], parameter["schema"]["maxLength"]) == (1, 255)
    assert "Idempotent-Replayed" in create["responses"]["201"]["headers"]
    assert "Retry-After" in create["responses"]["429"]["headers"]
    assert "WWW-Authenticate" in create["responses"]["401"]["headers"]
    assert {"RateLimit", "RateLimit-Policy"} <= set(create["responses"]["201"]["headers"])


def test_both_ways_to_authenticate_are_documented(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert (schemes["apiKey"]["type"], schemes["apiKey"]["scheme"]) == ("http", "bearer")
    assert (schemes["payoutHash"]["in"], schemes["payoutHash"]["name"]) == ("header", "X-Payout-Hash")
    for (path, _), operation in operations(document).items():
        names = {name for requirement in operation["security"] for name in requirement}
        assert ("payoutHash" in names) == (path in {"/payout/user", "/payout/history"})
        assert ("apiKey" in names) != ("payoutHash" in names)


def test_documents_are_described_field_by_field(document: dict[str, Any]) -> None:
    components = document["components"]["schemas"]
    for shape in (
        schemas.Balance,
        schemas.User,
        schemas.OwnUser,
        schemas.Transaction,
        schemas.Payout,
        schemas.Batch,
    ):
        fields = {field.name for field in msgspec.structs.fields(shape)}
        assert set(components[shape.__name__]["properties"]) == fields == set(components[shape.__name__]["required"])


def test_documentation_lists_every_call() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for path, method in STATUSES:
        shown = re.sub(r"\{\w+\}", "{id}", path)
        assert re.search(rf"\| `[^|`]*\b{method.upper()}\b[^|`]* {re.escape(shown)}` \|", page), (method, shown)


@pytest.mark.parametrize("status_code", [status for status in ERROR_TEXTS if status != 400])
def test_client_has_an_error_for_every_status(status_code: int) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status_code, json={"error": next(iter(ERROR_TEXTS[status_code]))})

    with Payouts("http://server", "key", attempts=1, transport=httpx.MockTransport(answer)) as payouts:
        with pytest.raises(PayoutsError) as caught:
            payouts.balance()
        assert type(caught.value) is not PayoutsError
        assert str(caught.value) in ERROR_TEXTS[status_code]


def test_refusals_of_this_process_are_those_of_the_contract() -> None:
    refusals = [value for value in vars(responses).values() if isinstance(value, responses.Refusal)]
    assert len(refusals) > 8
    for refusal in refusals:
        if refusal in (responses.BAD_REQUEST, responses.HEAD_TOO_LARGE):
            continue  # for what is no HTTP
        assert refusal.error in ERROR_TEXTS.get(refusal.status_code, {"Method not allowed"})
