"""The HTTP interface, asked by OpenAI's own client and by clients that mean no good."""

from __future__ import annotations

import http.client
import json
import logging
import select
import socket
import threading
import urllib.request

import pytest
import torch
from serving import serving, until

resource = pytest.importorskip("resource", reason="memory is read as Unix gives it")
openai = pytest.importorskip("openai", reason="the client of these tests is openai (make test installs it)")
pytest.importorskip("fastapi", reason="the server needs fastapi (the extra `serve`)")

from gptfast.serve import guard  # noqa: E402
from gptfast.serve.app import make_app  # noqa: E402

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0) as client:
        yield client


def ask(port: int, body, path: str = "/v1/chat/completions", method: str = "POST", **headers: str | None):
    """Status, headers, and the JSON of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        every = {"Content-Type": "application/json", **headers}
        connection.request(method, path, data, {name: value for name, value in every.items() if value is not None})
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())
    finally:
        connection.close()


def health(port: int) -> dict:
    return ask(port, b"", "/health", "GET")[2]


# OpenAI's client


def test_chat(client, assistant):
    answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=9, seed=3, temperature=0)
    prompt = list(b"user: hi\nassistant:")
    want = assistant.model.generate(torch.tensor([prompt]), 9, temperature=0)[0, len(prompt) :].tolist()
    (choice,) = answer.choices
    assert choice.message.content == bytes(want).decode(errors="replace") and choice.message.role == "assistant"
    assert choice.finish_reason == "length" and answer.object == "chat.completion" and answer.model == "tiny"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (19, 9, 28)


def test_a_streamed_chat_is_the_same_text(client):
    how = {"model": "tiny", "messages": HI, "max_completion_tokens": 30, "seed": 5, "n": 3}
    whole = client.chat.completions.create(**how)
    chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    texts, finishes = [""] * 3, [None] * 3
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices] and len(set(texts)) == 3
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].object == "chat.completion.chunk"
    assert chunks[-1].usage == whole.usage and len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 10  # as it is made


def test_completions(client, assistant):
    text = client.completions.create(model="tiny", prompt="Once", temperature=0)
    assert text.usage.completion_tokens <= 16 and text.object == "text_completion"  # OpenAI's default
    several = client.completions.create(model="tiny", prompt=["Once", "upon"], temperature=0)
    ids = client.completions.create(model="tiny", prompt=[list(b"Once"), list(b"upon")], temperature=0)
    assert [c.text for c in several.choices] == [c.text for c in ids.choices]
    assert several.choices[0].text == text.choices[0].text and several.usage == ids.usage
    assert several.usage.prompt_tokens == 8
    nothing = client.completions.create(model="tiny", prompt="", temperature=0)  # begins behind an end-of-text
    assert nothing.choices == client.completions.create(model="tiny", prompt=[256], temperature=0).choices
    streamed = client.completions.create(model="tiny", prompt="Once", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text


def test_stop_strings_are_not_in_the_text(client):
    free = client.completions.create(model="tiny", prompt="Once", seed=2, max_tokens=40).choices[0].text
    stop = free[5:7]
    for stops in (stop, ["never", stop]):
        choice = client.completions.create(model="tiny", prompt="Once", seed=2, max_tokens=40, stop=stops).choices[0]
        assert choice.text == free[: free.index(stop)] and choice.finish_reason == "stop"


def test_the_templates_own_stop_ends_a_chat(assistant, script):
    script.text = b"yes.\nuser: and then?"
    with serving(make_app(assistant, rows=1)) as port:
        (choice,) = ask(port, {"messages": HI, "stop": "then"})[2]["choices"]
        assert choice["message"]["content"] == "yes." and choice["finish_reason"] == "stop"
        (choice,) = ask(port, {"prompt": "hi", "max_tokens": 30, "stop": "then"}, "/v1/completions")[2]["choices"]
        assert choice["text"] == "yes.\nuser: and "  # a completion has no template


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "gptfast"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    "change, param, message",
    [
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "7"}, "max_tokens", "valid integer"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"seed": 2**63}, "seed", "less than 9223372036854775808"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "'text'"),
        ({"messages": [*HI, *HI]}, "messages", "out of turn"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages", "must be the user's"),
        ({"messages": [{"role": "user", "content": "x" * 99}]}, "messages", "context holds 64"),
        ({"extra_body": {"min_p": 1}}, "min_p", "no parameter here"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only for stream"),
    ],
)
def test_what_is_refused_names_the_parameter(client, change, param, message):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "tiny", "messages": HI, **change})
    assert error.value.param == param and message in error.value.message
    assert error.value.type == "invalid_request_error"


def test_parameters_that_change_nothing_are_taken(client):
    client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *HI], max_tokens=1,
        logprobs=False, frequency_penalty=0, presence_penalty=0.0, logit_bias={}, user="me",
        response_format={"type": "text"},
    )  # fmt: skip


# Bodies, headers, keys


def test_other_errors_have_openais_shape(port, client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert error.value.code == "model_not_found"
    cases = [
        (ask(port, b"{"), 400, "not valid JSON"),
        (ask(port, b'{"prompt": "\xff"}'), 400, "not JSON in UTF-8"),
        (ask(port, b"[" * 500_000), 400, "nests too deep"),
        (ask(port, b'{"seed": ' + b"9" * 500_000 + b"}"), 400, "too many digits"),
        (ask(port, {"messages": HI, "max_tokens": float("nan")}), 400, "max_tokens"),
        (ask(port, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'), 400, "surrogate"),
        (ask(port, b'{"\\ud800": 1, "messages": []}'), 400, ""),
        # What a page elsewhere can send without being asked: a form, a text, and a Blob without a type.
        (ask(port, {"messages": HI}, **{"Content-Type": "application/x-www-form-urlencoded"}), 415, "application/json"),
        (ask(port, {"messages": HI}, **{"Content-Type": "text/plain;application/json"}), 415, "application/json"),
        (ask(port, {"messages": HI}, **{"Content-Type": None}), 415, "application/json"),
        (ask(port, b"x" * 12_000_000), 413, "larger than 1,048,576 bytes"),
        (ask(port, b"", "/v1/nothing"), 404, "no such path"),
        (ask(port, b"", "/../../etc/passwd", "GET"), 404, "no such path"),
        (ask(port, b"", "/v1/chat/completions", "GET"), 405, "no such method"),
        (ask(port, {"messages": HI}, Host="evil.example"), 403, "localhost only"),
    ]
    for (status, headers, body), want, message in cases:
        assert status == want and set(body) == {"error"} and message in body["error"]["message"], body
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert "access-control-allow-origin" not in headers


def test_the_type_of_a_body_may_have_parameters(port):
    how = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert ask(port, {"messages": HI, "max_tokens": 1}, **how)[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        answer = b""
        while piece := connection.recv(1 << 16):  # and the connection is closed
            answer += piece
    assert b"408 Request Timeout" in answer and b"\r\nconnection: close\r\n" in answer
    assert b'{"error": {"message": "the body did not arrive' in answer


def test_a_client_that_leaves_in_its_body_is_no_failure(port, caplog):
    logger = logging.getLogger("uvicorn")
    logger.addHandler(caplog.handler)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        health(port), health(port)  # by then it was seen
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_body_of_nothing_but_mistakes_is_refused_by_the_first(port):
    """A message about each would fill memory."""
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body, param in [
        (b'{"prompt": [' + b"-1, " * 200_000 + b"1]}", "prompt[0]"),
        (b'{"prompt": [' + b"{}, " * 200_000 + b"1]}", "prompt[0]"),
        (b'{"messages": [' + b"{}, " * 200_000 + b"1]}", "messages[0].role"),
        (json.dumps({f"k{i}": 1 for i in range(50_000)}).encode(), "k0"),
        (json.dumps({"messages": [{**HI[0], **{f"k{i}": 1 for i in range(50_000)}}]}).encode(), "messages[0].k0"),
    ]:
        path = "/v1/completions" if b"prompt" in body else "/v1/chat/completions"
        status, _, answer = ask(port, body, path)
        assert status == 400 and answer["error"]["param"] == param
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 150_000  # kB; it was 800,000


def test_huge_numbers_are_limits_like_others(port):
    status, _, body = ask(port, {"messages": HI, "max_tokens": 10**18, "temperature": 1e-300, "top_p": 5e-324})
    assert status == 200 and body["usage"]["total_tokens"] <= 64
    _, _, body = ask(port, {"messages": HI, "max_tokens": 10**18, "max_completion_tokens": 2})  # the newer name counts
    assert body["usage"]["completion_tokens"] <= 2


def test_the_page_may_talk_to_this_server_and_be_in_no_frame(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
        policy = page.headers["Content-Security-Policy"].split("; ")
        assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} <= set(policy)
    assert not any("unsafe" in part or "http" in part for part in policy)


def test_a_key_is_asked_for_everywhere_but_on_the_page_and_for_health(assistant):
    with serving(make_app(assistant, rows=1, key="s3cret")) as port:
        for given in (None, "", "Bearer s3cre", "Bearer s3cret2", "Bearer \xff", "s3cret"):
            headers = {} if given is None else {"Authorization": given}
            for path in ("/v1/models", "/v1/nothing"):
                status, headers_, body = ask(port, b"", path, "GET", **headers)
                assert status == 401 and body["error"]["code"] == "invalid_api_key", given
                assert headers_["www-authenticate"] == "Bearer"
        assert ask(port, b"", "/v1/models", "GET", Authorization="Bearer s3cret", Host="any.example")[0] == 200
        assert health(port)["status"] == "ok"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="wrong", max_retries=0).models.list()


# Many, slow and vanished clients


def raw(port: int, body: dict) -> socket.socket:
    """A connection on which a request was sent and nothing is read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
    )
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(assistant, script, stream):
    script.gate = threading.Semaphore(0)
    with serving(make_app(assistant, rows=1)) as port:
        gone = raw(port, {"messages": HI, "stream": stream})
        until(lambda: health(port)["active"] == 1)
        gone.close()
        until(lambda: (script.gate.release(), health(port)["active"] == 0)[1])
        assert len(script.calls) < 40  # of the 45 that the context has room for
        script.gate.release(100)
        assert ask(port, {"messages": HI, "max_tokens": 3})[2]["choices"][0]["message"]["content"] == "abc"


def test_a_client_that_does_not_read_holds_up_nobody(assistant, script):
    with serving(make_app(assistant, rows=16)) as port:
        deaf = [raw(port, {"messages": HI, "stream": True, "n": 8}) for _ in range(2)]
        assert ask(port, {"messages": HI, "max_tokens": 3})[0] == 200
        until(lambda: health(port)["active"] == 0)  # their texts were made all the same
        for connection in deaf:
            connection.close()


def test_a_full_queue_is_429_and_a_stopped_engine_503(assistant, script):
    script.gate = threading.Semaphore(0)
    app = make_app(assistant, rows=1, waiting=1)
    with serving(app) as port:
        held = [raw(port, {"messages": HI, "stream": True}), raw(port, {"messages": HI})]
        until(lambda: (health(port)["active"], health(port)["waiting"]) == (1, 1))
        status, headers, body = ask(port, {"messages": HI})
        assert status == 429 and headers["retry-after"] == "1" and body["error"]["code"] == "queue_full"
        app.state.engine.close()
        script.gate.release()
        until(lambda: ask(port, b"", "/health", "GET")[0] == 503)
        assert ask(port, {"messages": HI})[0] == 503
        streamed, whole = map(rest, held)
        assert b"200 OK" in streamed and b'data: {"error":' in streamed and b"[DONE]" not in streamed
        assert b"503 Service Unavailable" in whole and b"the server is stopping" in whole


def rest(connection: socket.socket) -> bytes:
    """What comes until a moment passes in which nothing does."""
    data = b""
    while select.select([connection], [], [], 0.5)[0] and (piece := connection.recv(1 << 16)):
        data += piece
    return data


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_fails_is_said_and_the_server_stays_up(assistant, script):
    script.step = lambda tokens, rows=None: 1 / 0
    with serving(make_app(assistant, rows=1)) as port:
        status, _, body = ask(port, {"messages": HI})
        assert status == 500 and "the model failed" in body["error"]["message"]
        assert health(port)["status"] == "failed" and ask(port, {"messages": HI})[0] == 503


def test_many_clients_all_progress(port, client):
    """Four times as many as there are rows."""
    texts: dict[int, list[str]] = {}

    def one(number: int) -> None:
        chunks = client.completions.create(model="tiny", prompt=f"{number}: ", seed=number, max_tokens=20, stream=True)
        texts[number] = [chunk.choices[0].text for chunk in chunks]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(texts) == 32 and all(len(pieces) >= 2 for pieces in texts.values())
    alone = client.completions.create(model="tiny", prompt="9: ", seed=9, max_tokens=20).choices[0].text
    assert "".join(texts[9]) == alone
    assert health(port) == {"status": "ok", "active": 0, "waiting": 0}
