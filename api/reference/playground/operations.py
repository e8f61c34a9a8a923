"""The OpenAPI document as a page shows it: operations with their inputs, answers and a call with curl."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]

KEY_VARIABLE = "PAYOUTS_KEY"
URL_VARIABLE = "PAYOUTS_URL"
HASH_VARIABLE = "PAYOUT_HASH"

_MOVES_MONEY = {"createPayout", "createPayoutBatch"}
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Field:
    """One value that is sent or answered, in words; `name` says where it is (`data[].id`)."""

    name: str
    type: str
    description: str
    is_required: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in the path, the query or a header. `prefix` is that of the ids that it takes, if it does."""

    field: Field
    place: str
    choices: tuple[str, ...]
    placeholder: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Body:
    """One way to write the body, with an example."""

    media_type: str
    example: str
    description: str
    is_required: bool
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A status with its headers, and an example of every text that it comes with."""

    status_code: int
    phrase: str
    headers: tuple[Field, ...]
    examples: tuple[str, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    tag: str
    by_hash: bool
    """The payout user's hash authenticates, not a key."""
    moves_money: bool
    parameters: tuple[Parameter, ...]
    bodies: tuple[Body, ...]
    accepts: tuple[str, ...]
    """The media types that a success comes in; JSON first."""
    answers: tuple[Answer, ...]
    curl: str


def read_operations(document: Json) -> list[Operation]:
    """Read all operations, in the document's order."""
    reader = _Reader(document)
    return [
        reader.read_operation(path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def write_json(value: Any) -> str:
    """Write JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


class _Reader:
    """Reads parts of one document, whose references it follows."""

    def __init__(self, document: Json) -> None:
        self._document = document

    def read_operation(self, path: str, method: str, operation: Json) -> Operation:
        parameters = tuple(self._read_parameter(each) for each in operation.get("parameters", ()))
        body = operation.get("requestBody", {})
        bodies = tuple(
            self._read_body(media_type, content, is_required=body["required"])
            for media_type, content in body.get("content", {}).items()
        )
        answers = tuple(self._read_answer(int(status), each) for status, each in operation["responses"].items())
        success = next(each for status, each in operation["responses"].items() if status.startswith("2"))
        by_hash = any("payoutHash" in requirement for requirement in operation["security"])
        return Operation(
            id=operation["operationId"],
            method=method.upper(),
            path=path,
            summary=operation["summary"],
            description=operation.get("description", ""),
            tag=operation["tags"][0],
            by_hash=by_hash,
            moves_money=operation["operationId"] in _MOVES_MONEY,
            parameters=parameters,
            bodies=bodies,
            accepts=tuple(success["content"]),
            answers=answers,
            curl=_write_curl(method.upper(), path, bodies, by_hash=by_hash),
        )

    def _read_parameter(self, parameter: Json) -> Parameter:
        schema = parameter["schema"]
        examples = schema.get("examples", [schema["default"]] if "default" in schema else [])
        pattern = schema.get("pattern", "")
        return Parameter(
            field=Field(
                parameter["name"],
                self._describe(schema),
                parameter.get("description", ""),
                parameter.get("required", False),
            ),
            place=parameter["in"],
            choices=tuple(str(choice) for choice in schema.get("enum", ())),
            placeholder=str(examples[0]) if examples else "",
            prefix=pattern[1:5] if pattern.startswith("^") and pattern[4:5] == "_" else "",
        )

    def _read_body(self, media_type: str, content: Json, *, is_required: bool) -> Body:
        schema = content["schema"]
        example = content["example"]
        return Body(
            media_type=media_type,
            example=example if isinstance(example, str) else write_json(example),
            description=schema.get("description", ""),
            is_required=is_required,
            fields=tuple(self._list_fields(schema)),
        )

    def _read_answer(self, status_code: int, response: Json) -> Answer:
        content = response["content"][_JSON]
        headers = (
            Field(name, "", header["description"], header.get("required", False))
            for name, header in response["headers"].items()
        )
        return Answer(
            status_code=status_code,
            phrase=HTTPStatus(status_code).phrase,
            headers=tuple(headers),
            examples=tuple(write_json(example["value"]) for example in content["examples"].values()),
            fields=tuple(self._list_fields(content["schema"])) if status_code < 300 else (),
        )

    def _follow(self, schema: Json) -> Json:
        """Return what a schema refers to, and of a choice with null the other one."""
        while True:
            if "$ref" in schema:
                schema = self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            elif (others := [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]) and len(
                others
            ) == 1:
                schema = others[0]
            else:
                return schema

    def _list_fields(self, schema: Json, prefix: str = "") -> Iterator[Field]:
        """Yield the fields of an object, and behind each those that are inside it."""
        schema = self._follow(schema)
        for name, each in schema.get("properties", {}).items():
            followed = self._follow(each)
            # What is said at the place itself comes before what is said of its type.
            description = each.get("description", followed.get("description", ""))
            yield Field(prefix + name, self._describe(each), description, name in schema.get("required", ()))
            inner, path = (followed["items"], "[].") if followed.get("type") == "array" else (followed, ".")
            yield from self._list_fields(inner, prefix + name + path)

    def _describe(self, schema: Json) -> str:
        """Say in words what a value may be."""
        followed = self._follow(schema)
        named = followed.get("type", "")
        types = [named] if isinstance(named, str) else list(named)
        text = " or ".join(name for name in types if name)
        if "enum" in followed:
            text = " or ".join(str(choice) for choice in followed["enum"])
        text = " ".join(filter(None, (text, _describe_bounds(followed))))
        is_nullable = any(each.get("type") == "null" for each in schema.get("anyOf", ()))
        return f"{text} or null" if is_nullable and text else text


def _describe_bounds(schema: Json) -> str:
    bounds = []
    for noun, least, most in (
        ("", "minimum", "maximum"),
        (" characters", "minLength", "maxLength"),
        (" items", "minItems", "maxItems"),
    ):
        if least in schema and most in schema:
            bounds.append(f"{schema[least]} to {schema[most]}{noun}")
        elif most in schema:
            bounds.append(f"at most {schema[most]}{noun}")
        elif least in schema:
            bounds.append(f"at least {schema[least]}{noun}")
    return f"({', '.join(bounds)})" if bounds else ""


def _write_curl(method: str, path: str, bodies: tuple[Body, ...], *, by_hash: bool) -> str:
    """Write the call for a shell in which the server's address and the key are variables."""
    who = f"X-Payout-Hash: ${HASH_VARIABLE}" if by_hash else f"Authorization: Bearer ${KEY_VARIABLE}"
    lines = [f'curl -X {method} "${URL_VARIABLE}{path}"', f'-H "{who}"']
    if bodies and bodies[0].is_required:
        compact = json.dumps(json.loads(bodies[0].example))
        lines += [f"-H 'Content-Type: {bodies[0].media_type}'", f"-d {shlex.quote(compact)}"]
    return " \\\n  ".join(lines)
