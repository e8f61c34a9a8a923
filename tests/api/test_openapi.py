"""The OpenAPI document, and the one table that maps outcomes to HTTP."""

from typing import Any

import httpx
import pytest

from api import responses
from api.responses import HEADERS_BY_SUCCESS, REFUSAL_BY_OUTCOME, Refusal
from core.messages import Outcome


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    response = client.get("/schema/openapi.json")
    assert response.status_code == 200
    assert "json" in response.headers["content-type"]
    return dict(response.json())


@pytest.fixture(scope="module")
def operation(document: dict[str, Any]) -> dict[str, Any]:
    return dict(document["paths"]["/payout/create"]["post"])


def examples(operation: dict[str, Any], status_code: int) -> list[Any]:
    (content,) = operation["responses"][str(status_code)]["content"].values()
    return [example["value"] for example in content["examples"].values()]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_exactly_one_answer(outcome: Outcome) -> None:
    assert (outcome in REFUSAL_BY_OUTCOME) != (outcome in HEADERS_BY_SUCCESS)


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "Payouts"


def test_only_post_is_documented(document: dict[str, Any]) -> None:
    assert list(document["paths"]) == ["/payout/create"]
    assert list(document["paths"]["/payout/create"]) == ["post"]


@pytest.mark.parametrize(
    "refusal",
    [
        *REFUSAL_BY_OUTCOME.values(),
        responses.NOT_AN_OBJECT,
        responses.IDEMPOTENCY_KEY_MALFORMED,
        responses.BODY_TOO_LARGE,
        responses.TOO_MANY_REQUESTS,
    ],
)
def test_every_refusal_is_documented_with_its_text(operation: dict[str, Any], refusal: Refusal) -> None:
    assert {"error": refusal.error} in examples(operation, refusal.status_code)


def test_field_errors_are_documented(operation: dict[str, Any]) -> None:
    field_errors = [example for example in examples(operation, 400) if "error" not in example]
    assert field_errors == [
        {"email": ["The email must be a valid email address."], "amount": ["The amount must be at least 1."]}
    ]


def test_success_is_documented_with_a_hash(operation: dict[str, Any]) -> None:
    (example,) = examples(operation, 201)
    assert list(example) == ["hash"]
    assert len(bytes.fromhex(example["hash"])) == 32


def test_no_other_status_is_documented(operation: dict[str, Any]) -> None:
    assert set(operation["responses"]) == {"201", "400", "401", "403", "413", "422", "429", "500"}


def test_body_is_documented_as_the_contract_has_it(operation: dict[str, Any]) -> None:
    assert operation["requestBody"]["required"] is True
    (schema,) = (content["schema"] for content in operation["requestBody"]["content"].values())
    assert sorted(schema["required"]) == ["amount", "email"]
    amount, email = schema["properties"]["amount"], schema["properties"]["email"]
    assert (amount["type"], amount["minimum"], amount["maximum"]) == ("integer", 1, 100_000_000)
    assert (email["type"], email["maxLength"]) == ("string", 255)


def test_idempotency_key_is_documented(operation: dict[str, Any]) -> None:
    (parameter,) = operation["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("Idempotency-Key", "header", False)
    assert (parameter["schema"]["minLength"], parameter["schema"]["maxLength"]) == (1, 255)


def test_authentication_is_documented(document: dict[str, Any], operation: dict[str, Any]) -> None:
    (name,) = operation["security"][0]
    scheme = document["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
