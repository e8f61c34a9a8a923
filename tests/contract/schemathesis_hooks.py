"""What schemathesis is told beyond the document: which texts are e-mails, CSV and NDJSON by the product's rules, and
that references are new and integers of batches are written without a point, which JSON Schema has no words for."""

from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis import strategies as st

EMAILS = st.from_regex(r"[a-z0-9]{1,20}@[a-z0-9]{1,20}\.[a-z]{2,5}", fullmatch=True)
AMOUNTS = st.integers(1, 10_000)
CSV_ROWS = st.builds("{},{}\r\n".format, EMAILS, AMOUNTS)
NDJSON_ROWS = st.builds('{{"email": "{}", "amount": {}}}\n'.format, EMAILS, AMOUNTS)

schemathesis.openapi.format("email", EMAILS)
schemathesis.openapi.media_type(
    "text/csv", st.lists(CSV_ROWS, min_size=1).map(lambda rows: ("email,amount\r\n" + "".join(rows)).encode())
)
schemathesis.openapi.media_type(
    "application/x-ndjson", st.lists(NDJSON_ROWS, min_size=1).map(lambda rows: "".join(rows).encode())
)


@schemathesis.serializer("text/csv", "application/x-ndjson")
def serialize_text(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Leave the examples in CSV and NDJSON out: beside a strategy of ours, only bytes would do, which JSON has not."""
    for item in raw_schema["paths"].values():
        for operation in item.values():
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if media_type != "application/json":
                    content.pop("example", None)


@schemathesis.hook
def map_body(_: schemathesis.HookContext, body: Any) -> Any:
    """Make short references new ones, and write a batch's amounts as the integers that they are."""
    rows = body.get("allocations", [body]) if isinstance(body, dict) else []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("reference"), str) and 0 < len(row["reference"].strip()) < 200:
            row["reference"] += uuid4().hex
        if isinstance(row, dict) and row is not body and isinstance(row.get("amount"), float):
            row["amount"] = int(row["amount"]) if row["amount"].is_integer() else row["amount"]
    return body
