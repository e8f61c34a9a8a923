"""The OpenAPI document: the whole HTTP contract, every status of every call with an example of its body."""

from typing import Any

import msgspec
from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler

from api.allocations import endpoint as allocations_endpoint
from api.batches import endpoint as batches_endpoint
from api.resources import balance, payout_hash, payout_users, schemas, transactions
from api.resources.pagination import CSV, NDJSON
from api.resources.query_parameters import (
    BATCHES_CURSOR_PATTERN,
    HISTORY_CURSOR_PATTERN,
    LIMIT_DEFAULT,
    LIMIT_MAX,
    RESULTS_CURSOR_PATTERN,
    USERS_CURSOR_PATTERN,
)
from api.web import responses
from api.web.responses import REFUSAL_BY_OUTCOME, HttpResponse, Refusal
from api.web.validation import AMOUNT_MIN, EMAIL_FORMAT, FieldErrors
from core.batches.payout_batch import BODY_MAX_BYTES, REFERENCE_MAX_CHARACTERS, ROWS_MAX
from core.batches.preview import PAYMENTS_LOOKED_AT_MAX
from core.emails import EMAIL_MAX_CHARACTERS
from core.ledger.history import TransactionType
from core.money import ALLOCATION_MAX_CENTS, BALANCE_MAX_CENTS
from core.parties.payout_users import UserStatus
from core.version import VERSION

PATHS = ("/schema", "/schema/openapi.json")

_Json = dict[str, Any]

_USER_ID = "usr_0199f6d2c5a87bb3a1e0c1d2e3f40516"
_TRANSACTION_ID = "txn_0199f6d2c5a97c11b2c3d4e5f6071829"
_HASH = "6ba7b7c74572e4e4ac38e32cd523cdcb3cb3a49cff14624f2aa798530c00c4a7"
_TIME = "2026-11-01T12:00:00.123456Z"

_OWN_USER: _Json = {
    "email": "user@example.com",
    "balance": 10000,
    "currency": "USD",
    "status": "active",
    "created_at": _TIME,
    "updated_at": _TIME,
}
_USER: _Json = {"id": _USER_ID, **_OWN_USER}
_TRANSACTION: _Json = {
    "id": _TRANSACTION_ID,
    "type": "allocation",
    "user": _USER_ID,
    "email": "user@example.com",
    "amount": 10000,
    "currency": "USD",
    "payout_balance_after": 99990000,
    "user_balance_after": 10000,
    "idempotency_key": "order-1234",
    "reverses": None,
    "batch": None,
    "created_at": _TIME,
    "reference": "order-1234",
}
_OWN_TRANSACTION: _Json = {
    "id": _TRANSACTION_ID,
    "type": "allocation",
    "amount": 10000,
    "currency": "USD",
    "balance_after": 10000,
    "reverses": None,
    "created_at": _TIME,
}
_BATCH: _Json = {
    "id": "bat_0199f6d2c5aa7d22c3d4e5f607182930",
    "status": "queued",
    "total": 1,
    "amount": 10000,
    "processed": 0,
    "allocated_amount": 0,
    "created_at": _TIME,
    "updated_at": _TIME,
    "finished_at": None,
    "already_paid": 0,
}
_ORIGIN: _Json = {
    "paid_at": _TIME,
    "how": "payouts push",
    "by": "key …9f3a (payroll)",
    "batch": "bat_0199f6d2c5aa7d22c3d4e5f607182930",
}
_PREVIEW: _Json = {
    "total": 3,
    "already_paid": 1,
    "amount": 20000,
    "payout_balance": 99990000,
    "batch": None,
    "rows_without_reference": 2,
    "equal_rows": 1,
    "equal_batch": None,
    "equal_payments": [{"row": 0, "transaction": _TRANSACTION_ID, "origin": _ORIGIN}],
}
_BATCH_ROW: _Json = {
    "row": 0,
    "email": "user@example.com",
    "amount": 10000,
    "reference": "order-1234",
    "outcome": "allocated",
    "hash": _HASH,
    "transaction": _TRANSACTION_ID,
}
_REPLAYED: _Json = {
    "Idempotent-Replayed": {
        "description": "`true` where a call with the same key or reference had paid",
        "schema": {"const": "true"},
        "required": False,
    }
}
_LIMIT_ERROR: FieldErrors = {
    "limit": [f"The limit may not be greater than {LIMIT_MAX}."],
    "form": ["The form parameter is not known."],
}

_BY_KEY: list[_Json] = [{"apiKey": []}]
_BY_HASH: list[_Json] = [
    {"payoutHash": []},
    {"payoutHashInQuery": []},
    {},
]  # the body's field is no scheme of OpenAPI's

_EMAIL: _Json = {
    "type": "string",
    "format": "email",
    "maxLength": EMAIL_MAX_CHARACTERS,
    "description": "Syntax is checked, no DNS. White space around it is trimmed; case does not matter.",
    "examples": ["user@example.com"],
}
_AMOUNT: _Json = {
    "type": "integer",
    "minimum": 1,
    "maximum": ALLOCATION_MAX_CENTS,
    "description": "cents",
    "examples": [10000],
}
_REFERENCE: _Json = {
    "type": ["string", "null"],
    "maxLength": REFERENCE_MAX_CHARACTERS,
    "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]*$",
    "description": "The business's own name for the payment, which pays once. White space around it is trimmed; an "
    "empty one is none.",
    "examples": ["order-1234"],
}


def openapi_route() -> HTTPRouteHandler:
    """Wire the endpoint."""
    content = msgspec.json.encode(make_document())

    @get(list(PATHS))
    async def read_openapi() -> HttpResponse:
        return Response(content, media_type=MediaType.JSON)

    return read_openapi


def make_document() -> _Json:
    """Write the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Payouts",
            "version": VERSION,
            "description": "Pay people by e-mail. Money is an integer number of cents, everywhere.",
        },
        "paths": {
            allocations_endpoint.PATH: {"post": _create_payout()},
            balance.PATH: {"get": _get_balance()},
            payout_hash.USER_PATH: _own("OwnUser", schemas.OwnUser, _OWN_USER),
            payout_hash.HISTORY_PATH: _own(
                "OwnHistory", schemas.Page[schemas.OwnTransaction], _page(_OWN_TRANSACTION), is_list=True
            ),
            payout_users.PATH: {"get": _list_users()},
            _path(payout_users.ITEM_PATH): {"get": _get_user(), "patch": _update_user()},
            transactions.PATH: {"get": _list_transactions()},
            _path(transactions.ITEM_PATH): {"get": _get_transaction()},
            batches_endpoint.PATH: {"get": _list_batches(), "post": _create_batch()},
            batches_endpoint.PREVIEW_PATH: {"post": _preview_batch()},
            _path(batches_endpoint.ITEM_PATH): {"get": _get_batch()},
            _path(batches_endpoint.RESULTS_PATH): {"get": _list_results()},
        },
        "components": {
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A secret API key, `sk_…`"},
                "payoutHash": {
                    "type": "apiKey",
                    "in": "header",
                    "name": payout_hash.HEADER,
                    "description": "A payout hash; looked for in this header, then in the body's field "
                    f"`{payout_hash.FIELD}`, then in the query.",
                },
                "payoutHashInQuery": {"type": "apiKey", "in": "query", "name": payout_hash.FIELD},
            },
            "schemas": _schemas(),
        },
    }


def _create_payout() -> _Json:
    return {
        "operationId": "createPayout",
        "summary": "Create or update a payout user and allocate balance",
        "description": "Debits the business, credits the payout user and writes the history, in one transaction. "
        "The same call twice pays twice, unless both carry the same `Idempotency-Key` or the same `reference`.",
        "tags": ["Payouts"],
        "security": _BY_KEY,
        "parameters": [_idempotency_key("With the same key, e-mail and amount, calls pay once. Keys do not expire.")],
        "requestBody": _body(
            {"email": _EMAIL, "amount": _AMOUNT, "reference": _REFERENCE},
            {"email": "user@example.com", "amount": 10000, "reference": "order-1234"},
            required=["email", "amount"],
        ),
        "responses": _responses(
            201,
            schemas.Payout,
            {"hash": _HASH},
            responses.NOT_AN_OBJECT,
            responses.IDEMPOTENCY_KEY_MALFORMED,
            *REFUSAL_BY_OUTCOME.values(),
            responses.BODY_TOO_LARGE,
            responses.TOO_MANY_REQUESTS,
            field_errors={"email": [EMAIL_FORMAT], "amount": [AMOUNT_MIN]},
            headers=_REPLAYED,
        ),
    }


def _get_balance() -> _Json:
    return _operation(
        "getBalance",
        "Get the balances of the business",
        "Balance",
        responses=_read_responses(schemas.Balance, {"balance": 0, "payout_balance": 99990000}),
    )


def _list_users() -> _Json:
    email = _query("email", {"type": "string", "format": "email"}, "The one user with this e-mail, in any spelling.")
    return _operation(
        "listPayoutUsers",
        "List payout users, newest first",
        "Payout users",
        parameters=[email, *_page_parameters(USERS_CURSOR_PATTERN)],
        responses=_with_files(
            _read_responses(schemas.Page[schemas.User], _page(_USER), field_errors=_LIMIT_ERROR),
        ),
    )


def _get_user() -> _Json:
    return _operation(
        "getPayoutUser",
        "Get a payout user",
        "Payout users",
        parameters=[_USER_ID_PARAMETER],
        responses=_read_responses(schemas.User, _USER, responses.NOT_FOUND),
    )


def _update_user() -> _Json:
    return _operation(
        "updatePayoutUser",
        "Activate or deactivate a payout user",
        "Payout users",
        description="An inactive user's hash is refused. Allocations to the user go on, and the money waits.",
        parameters=[_USER_ID_PARAMETER],
        body=_body({"status": {"enum": list(UserStatus)}}, {"status": "inactive"}),
        responses=_read_responses(
            schemas.User,
            _USER | {"status": "inactive"},
            responses.NOT_AN_OBJECT,
            responses.NOT_FOUND,
            responses.BODY_TOO_LARGE,
            field_errors={"status": [payout_users.STATUS_INVALID]},
        ),
    )


def _list_transactions() -> _Json:
    when = {
        "type": "string",
        "anyOf": [{"format": "date-time"}, {"format": "date"}],
        "examples": ["2026-11-01", "2026-11-01T12:00:00Z"],
    }
    return _operation(
        "listTransactions",
        "List transactions, newest first",
        "Transactions",
        parameters=[
            _query("type", {"enum": list(TransactionType)}, "Only this type."),
            _query("user", _id_schema("usr"), "Only this payout user's."),
            _query("from", when, "At this time or later; a date begins at midnight in UTC."),
            _query("to", when, "Before this time; a date is included as a whole."),
            _query("reference", _REFERENCE_FILTER, "Only payments with this reference."),
            _query("idempotency_key", _KEY, "Only what calls with this idempotency key paid."),
            _query("min_amount", _BOUND, "Only amounts of so much or more, in cents."),
            _query("max_amount", _BOUND, "Only amounts of so much or less, in cents."),
            *_page_parameters(HISTORY_CURSOR_PATTERN),
        ],
        responses=_with_files(
            _read_responses(schemas.Page[schemas.Transaction], _page(_TRANSACTION), field_errors=_LIMIT_ERROR),
        ),
    )


def _get_transaction() -> _Json:
    return _operation(
        "getTransaction",
        "Get a transaction",
        "Transactions",
        parameters=[_path_parameter("transaction_id", "txn")],
        responses=_read_responses(schemas.Transaction, _TRANSACTION, responses.NOT_FOUND),
    )


def _preview_batch() -> _Json:
    wrong = "allocations.17.email"
    return _operation(
        "previewPayoutBatch",
        "See what a file would do",
        "Payout batches",
        description="Takes what `POST /payout/batches` takes, and accepts nothing. Tells how many rows are already "
        f"paid, and which rows without references equal one of the newest {PAYMENTS_LOOKED_AT_MAX} payments to the "
        "same person, or a row that waits to be paid.",
        parameters=[_idempotency_key("The key that the batch would have.")],
        body=_batch_body(),
        responses=_responses(
            200,
            schemas.BatchPreview,
            _PREVIEW,
            responses.NOT_AN_OBJECT,
            responses.IDEMPOTENCY_KEY_MALFORMED,
            responses.IDEMPOTENCY_KEY_REQUIRED,
            responses.UNAUTHORIZED,
            responses.PAYOUTS_DISABLED,
            responses.REQUEST_TIMEOUT,
            responses.BODY_TOO_LARGE,
            responses.IDEMPOTENCY_KEY_REUSED,
            responses.TOO_MANY_REQUESTS,
            responses.INTERNAL_ERROR,
            field_errors={wrong: [f"The {wrong} must be a valid email address."]},
        ),
    )


def _batch_body() -> _Json:
    row = {
        "type": "object",
        "properties": {
            "email": _EMAIL,
            "amount": _AMOUNT,
            "reference": _REFERENCE,
        },
        "required": ["email", "amount"],
        "additionalProperties": False,
    }
    body = _body(
        {"allocations": {"type": "array", "items": row, "minItems": 1, "maxItems": ROWS_MAX}},
        {"allocations": [{"email": "user@example.com", "amount": 10000, "reference": "order-1234"}]},
    )
    body["content"]["text/csv"] = {
        "schema": {"type": "string", "description": "The columns email, amount and, if you like, reference"},
        "example": "email,amount,reference\nuser@example.com,10000,order-1234\n",
    }
    body["content"]["application/x-ndjson"] = {
        "schema": {"type": "string", "description": "A row of `allocations` per line"},
        "example": '{"email": "user@example.com", "amount": 10000, "reference": "order-1234"}\n',
    }
    return body


def _create_batch() -> _Json:
    wrong = "allocations.17.email"
    return _operation(
        "createPayoutBatch",
        "Pay a file's worth of people",
        "Payout batches",
        description=f"Up to {ROWS_MAX} rows and {BODY_MAX_BYTES // 2**20} MiB. All rows are checked first; "
        "accepted means funded: the total is taken out of the payout balance at once, and the rows are paid in their "
        "order. References must differ within a batch. A row whose reference was used before for the same e-mail and "
        "amount is already paid: it is counted, and nothing is paid for it.",
        parameters=[_idempotency_key("With the same key and rows, calls pay once. Keys do not expire.")],
        body=_batch_body(),
        responses=_responses(
            202,
            schemas.Batch,
            _BATCH,
            responses.NOT_AN_OBJECT,
            responses.IDEMPOTENCY_KEY_MALFORMED,
            responses.IDEMPOTENCY_KEY_REQUIRED,
            responses.INSUFFICIENT_BALANCE,
            responses.UNAUTHORIZED,
            responses.PAYOUTS_DISABLED,
            responses.REQUEST_TIMEOUT,
            responses.BODY_TOO_LARGE,
            responses.IDEMPOTENCY_KEY_REUSED,
            responses.TOO_MANY_REQUESTS,
            responses.INTERNAL_ERROR,
            field_errors={wrong: [f"The {wrong} must be a valid email address."]},
            headers={"Location": _header("Where its progress is", {"type": "string"}), **_REPLAYED},
        ),
    )


def _list_batches() -> _Json:
    return _operation(
        "listPayoutBatches",
        "List payout batches, newest first",
        "Payout batches",
        parameters=_page_parameters(BATCHES_CURSOR_PATTERN),
        responses=_with_files(_read_responses(schemas.Page[schemas.Batch], _page(_BATCH), field_errors=_LIMIT_ERROR)),
    )


def _get_batch() -> _Json:
    return _operation(
        "getPayoutBatch",
        "Get a payout batch and its progress",
        "Payout batches",
        parameters=[_path_parameter("batch_id", "bat")],
        responses=_read_responses(schemas.Batch, _BATCH, responses.NOT_FOUND),
    )


def _list_results() -> _Json:
    return _operation(
        "listPayoutBatchResults",
        "List what became of each row, in their order",
        "Payout batches",
        parameters=[_path_parameter("batch_id", "bat"), *_page_parameters(RESULTS_CURSOR_PATTERN)],
        responses=_with_files(
            _read_responses(
                schemas.Page[schemas.BatchRow], _page(_BATCH_ROW), responses.NOT_FOUND, field_errors=_LIMIT_ERROR
            )
        ),
    )


def _idempotency_key(description: str) -> _Json:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": _KEY,
        "description": description,
    }


def _own(name: str, shape: Any, example: _Json, *, is_list: bool = False) -> _Json:
    """Describe a call that payout users make themselves: GET, and POST, which may have the hash in its body."""
    refusals = (responses.NOT_AN_OBJECT, responses.HASH_UNAUTHORIZED, responses.BODY_TOO_LARGE)
    parameters = _page_parameters(HISTORY_CURSOR_PATTERN) if is_list else []
    # Without a type, since it is not looked at where the header is sent.
    fields: _Json = {payout_hash.FIELD: {"description": "The payout hash, a string", "examples": [_HASH]}}
    fields |= {each["name"]: {"anyOf": [each["schema"], {"type": "null"}]} for each in parameters}
    shared = {
        "tags": ["Seen by the payout user"],
        "security": _BY_HASH,
        "parameters": parameters,
        "responses": _responses(
            200,
            shape,
            example,
            *refusals,
            responses.TOO_MANY_REQUESTS,
            responses.INTERNAL_ERROR,
            field_errors=_LIMIT_ERROR if is_list else None,
        ),
    }
    summary = "Get one's own transactions, newest first" if is_list else "Get one's own balance and status"
    body = _body(fields, {payout_hash.FIELD: _HASH}, required=[])
    body["required"] = False
    return {
        "get": {"operationId": f"get{name}", "summary": summary, **shared},
        "post": {"operationId": f"post{name}", "summary": summary, "requestBody": body, **shared},
    }


def _operation(
    operation_id: str,
    summary: str,
    tag: str,
    *,
    responses: _Json,
    description: str | None = None,
    parameters: list[_Json] | None = None,
    body: _Json | None = None,
) -> _Json:
    operation = {
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "tags": [tag],
        "security": _BY_KEY,
        "parameters": parameters,
        "requestBody": body,
        "responses": responses,
    }
    return {name: value for name, value in operation.items() if value is not None}


def _read_responses(shape: Any, example: _Json, *refusals: Refusal, field_errors: FieldErrors | None = None) -> _Json:
    general = (responses.UNAUTHORIZED, responses.TOO_MANY_REQUESTS, responses.INTERNAL_ERROR)
    return _responses(200, shape, example, *general, *refusals, field_errors=field_errors)


def _responses(
    status_code: int,
    shape: Any,
    example: _Json,
    *refusals: Refusal,
    field_errors: FieldErrors | None = None,
    headers: _Json | None = None,
) -> _Json:
    """Describe the responses: one entry for each status, with every text as an example."""
    texts: dict[int, dict[str, _Json]] = {}
    names: dict[int, list[str]] = {}
    response_headers: dict[int, _Json] = {}
    for refusal in refusals:
        texts.setdefault(refusal.status_code, {})[_example_name(refusal.error)] = {"error": refusal.error}
        names.setdefault(refusal.status_code, []).append(_reference("Error"))
        response_headers.setdefault(refusal.status_code, {}).update(
            {
                name: _header(_HEADER_TEXTS[name], {"type": "string"})
                for name in refusal.headers
                if name in _HEADER_TEXTS
            }
        )
    if field_errors is not None:
        texts.setdefault(400, {})["FieldErrors"] = field_errors
        names.setdefault(400, []).append(_reference("FieldErrors"))
    described = {status_code: _response("Success", _reference_to(shape), {"Success": example}, headers or {})}
    for status, examples in texts.items():
        choices = list(dict.fromkeys(names[status]))
        schema = {"$ref": choices[0]} if len(choices) == 1 else {"anyOf": [{"$ref": choice} for choice in choices]}
        description = " / ".join(str(each.get("error", "Field errors")) for each in examples.values())
        described[status] = _response(description, schema, examples, response_headers.get(status, {}))
    return {str(status): described[status] for status in sorted(described)}


_HEADER_TEXTS = {
    "WWW-Authenticate": "How to authenticate",
    "Retry-After": "Seconds to wait before the next call",
}


def _response(description: str, schema: _Json, examples: dict[str, _Json], headers: _Json) -> _Json:
    return {
        "description": description,
        "headers": {
            "X-Request-Id": _header("The caller's own, or a new one", {"type": "string"}, required=True),
            "RateLimit-Policy": _header("Where a rate limit is set: its size", {"type": "string"}),
            "RateLimit": _header("Where a rate limit is set: what is left", {"type": "string"}),
            **headers,
        },
        "content": {
            "application/json": {
                "schema": schema,
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


def _with_files(described: _Json) -> _Json:
    """Add what a list also comes as: all of it, in CSV or NDJSON."""
    content = described["200"]["content"]
    for media_type in (CSV, NDJSON):
        content[media_type] = {"schema": {"type": "string", "description": f"All rows, with `Accept: {media_type}`"}}
    described["200"]["headers"]["Content-Disposition"] = _header("Of a file: its name", {"type": "string"})
    return described


def _header(description: str, schema: _Json, *, required: bool = False) -> _Json:
    return {"description": description, "schema": schema, "required": required}


def _body(properties: _Json, example: _Json, *, required: list[str] | None = None) -> _Json:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _query(name: str, schema: _Json, description: str) -> _Json:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _path_parameter(name: str, prefix: str) -> _Json:
    return {"name": name, "in": "path", "required": True, "schema": _id_schema(prefix)}


def _id_schema(prefix: str) -> _Json:
    return {"type": "string", "pattern": f"^{prefix}_[0-9a-f]{{32}}$"}


def _page_parameters(cursor_pattern: str) -> list[_Json]:
    limit = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
    cursor = {"type": "string", "pattern": cursor_pattern}
    return [_query("limit", limit, "Rows of a page."), _query("cursor", cursor, "`next_cursor` of the page before.")]


_KEY: _Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"}
_REFERENCE_FILTER: _Json = {
    "type": "string",
    "minLength": 1,
    "maxLength": REFERENCE_MAX_CHARACTERS,
    "pattern": _REFERENCE["pattern"],
    "description": "As it was given, without white space around it",
}
_BOUND: _Json = {"type": "integer", "minimum": 0, "maximum": BALANCE_MAX_CENTS}
_USER_ID_PARAMETER = _path_parameter("user_id", "usr")


def _page(row: _Json) -> _Json:
    return {"data": [row], "has_more": False, "next_cursor": None}


def _example_name(text: str) -> str:
    return "".join(word.capitalize() for word in "".join(c if c.isalnum() else " " for c in text).split())


def _path(litestar_path: str) -> str:
    return litestar_path.replace(":str}", "}")


def _reference(name: str) -> str:
    return f"#/components/schemas/{name}"


def _reference_to(shape: Any) -> _Json:
    (found, _) = msgspec.json.schema_components([shape], ref_template=_reference("{name}"))
    return dict(found[0])


def _schemas() -> _Json:
    shapes = [
        schemas.Payout,
        schemas.Balance,
        schemas.OwnUser,
        schemas.User,
        schemas.Page[schemas.User],
        schemas.Page[schemas.Transaction],
        schemas.Page[schemas.OwnTransaction],
        schemas.Page[schemas.Batch],
        schemas.Page[schemas.BatchRow],
        schemas.BatchPreview,
    ]
    _, components = msgspec.json.schema_components(shapes, ref_template=_reference("{name}"))
    return {
        **components,
        "Error": {
            "type": "object",
            "properties": {"error": {"type": "string"}},
            "required": ["error"],
            "additionalProperties": False,
        },
        "FieldErrors": {
            "type": "object",
            "description": "Every rule that a field breaks, by field",
            "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "minProperties": 1,
        },
    }
