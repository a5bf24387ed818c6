"""Requests of any shape, made from the server's own OpenAPI schema: never a 500, and always OpenAI's error."""

from __future__ import annotations

import http.client
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

text = st.text(st.sampled_from('ab\0é😀\ud800\udc00<"\\'), max_size=8)  # half surrogate pairs included
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), text,
    st.sampled_from([10**400, -(2**63), 2**64, 1e308, 5e-324, float("nan"), "\ud800", "\0", "<|endoftext|>", ""]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)


def valid(schema: dict, defs: dict) -> st.SearchStrategy:
    """Values of a schema as far as its types go; limits are left for the server to check."""
    if "$ref" in schema:
        return valid(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in schema:
        return st.one_of([valid(branch, defs) for branch in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object":
            fields = {name: valid(inner, defs) for name, inner in schema["properties"].items()}
            required = schema.get("required", ())
            return st.fixed_dictionaries(
                {name: fields[name] for name in required},
                optional={k: v for k, v in fields.items() if k not in required},
            )
        case "array":
            return st.lists(valid(schema["items"], defs), min_size=schema.get("minItems", 0), max_size=4)
        case "integer":
            return st.integers(1, 20)
        case "number":
            return st.floats(0.01, 1)
        case "boolean":
            return st.booleans()
        case "string":
            return st.text("ab é", min_size=1, max_size=8)
        case "null":
            return st.none()
    raise AssertionError(f"the schema has something new: {schema}")


@pytest.fixture(scope="module")
def connection(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def schemas(connection):
    connection.request("GET", "/openapi.json")
    document = json.loads(connection.getresponse().read())
    defs = document["components"]["schemas"]
    return {
        path: valid(operation["post"]["requestBody"]["content"]["application/json"]["schema"], defs)
        for path, operation in document["paths"].items() if "post" in operation
    }  # fmt: skip


def send(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"Content-Type": "application/json", "Host": "localhost"})
    response = connection.getresponse()
    return response.status, response.read()


def expect(status: int, data: bytes) -> None:
    assert status in (200, 400, 404, 413, 429), data
    if status != 200:
        error = json.loads(data)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
    elif data.startswith(b"data: "):
        assert data.endswith(b"data: [DONE]\n\n") and b'"error"' not in data
    else:
        assert json.loads(data)["choices"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_valid_requests_and_those_with_something_else_in_a_field(connection, schemas, path):
    answered = set()

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        body = data.draw(schemas[path])
        body.pop("model", None)
        if body.get("stream_options"):
            body["stream"] = True
        if "messages" in body and data.draw(st.booleans()):
            body["messages"] = [{"role": "user", "content": "hi"}]
        for name in data.draw(st.lists(st.sampled_from(sorted(body)) | text, max_size=1)):
            body[name] = data.draw(anything)
        status, answer = send(connection, path, json.dumps(body).encode())
        answered.add(status)
        expect(status, answer)

    check()
    assert {200, 400} <= answered  # both sides of the line were reached


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_body(connection, body):
    expect(*send(connection, "/v1/completions", body))


def test_it_is_still_there(connection):
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok", "active": 0, "waiting": 0}
