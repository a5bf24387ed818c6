"""The judge against a server of our own: good answers and every way in which a server can fail."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from judge_server import Server, says

from gptfast.errors import GptfastError
from gptfast.evaluate.judge import Answer, Judge

ANSWER = Answer("Name a colour.\n{braces}", "red", "blue {0}")


def test_what_is_sent_and_what_comes_back(server: Server) -> None:
    server.replies = [says("87")]
    done: list[float] = []
    assert Judge(server.url + "/", "gpt-x", "secret").scores([ANSWER] * 9, done.append) == [87] * 9
    assert sum(done) == 9
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "gpt-x" and body["temperature"] == 0
    (message,) = body["messages"]
    assert message["role"] == "user" and all(text in message["content"] for text in ANSWER)
    assert "0" in message["content"] and "100" in message["content"] and "integer" in message["content"]


def test_no_key_is_sent_where_there_is_none(server: Server) -> None:
    server.replies = [says("1")]
    Judge(server.url, "m").scores([ANSWER])
    assert "Authorization" not in server.requests[0][1]
    assert "secret" not in repr(Judge(server.url, "m", "secret"))


def test_scores_are_in_the_order_of_the_answers(server: Server) -> None:
    def reply(body: Any) -> Any:
        number = int(body["messages"][0]["content"].split("<")[1].split(">")[0])
        time.sleep(0.1 if number == 0 else 0)  # the first comes last
        return says(str(number))

    server.replies = [reply]
    assert Judge(server.url, "m").scores([Answer("i", "r", f"<{n}>") for n in range(8)]) == list(range(8))


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0", 0), ("100", 100), (" 42.\n", 42), ("**55**", 55), ("Score: 7", 7), ("80/100", 80), ("101", None),
        ("-5", None), (".5", None), ("3.5", None), ("I would say 80, perhaps 90", None), ("good", None),
        ("", None), ("1e2", None),
    ],
)  # fmt: skip
def test_replies(server: Server, reply: str, score: int | None) -> None:
    server.replies = [says(reply)]
    assert Judge(server.url, "m").scores([ANSWER]) == [score]


@pytest.mark.parametrize("body", ["no JSON <html>", "[]", "{}", '{"choices": []}', says(None)[1], says(5)[1], "null"])
def test_what_is_no_chat_completion(server: Server, body: str) -> None:
    server.replies = [(200, body, {})]
    with pytest.raises(GptfastError, match="sent no chat completion but"):
        Judge(server.url, "m", pause=0).scores([ANSWER])
    assert len(server.requests) == 1


@pytest.mark.parametrize("trouble", [(500, "", {}), (503, "busy", {}), (429, "", {"Retry-After": "0"}), 0.0])
def test_troubles_that_pass(server: Server, trouble: Any) -> None:
    server.replies = [trouble, trouble, says("9")]
    assert Judge(server.url, "m", pause=0.001).scores([ANSWER]) == [9]
    assert len(server.requests) == 3


def test_troubles_that_stay(server: Server) -> None:
    server.replies = [(500, json.dumps({"error": {"message": "out of memory"}}), {})]
    with pytest.raises(GptfastError, match="failed 4 times in a row: 500 .*out of memory"):
        Judge(server.url, "m", pause=0.001).scores([ANSWER])
    assert len(server.requests) == 4


def test_a_server_that_says_nothing(server: Server) -> None:
    server.replies = [1.0]
    with pytest.raises(GptfastError, match="failed 2 times in a row: timed out"):
        Judge(server.url, "m", timeout=0.05, retries=1, pause=0.001).scores([ANSWER])


def test_a_refusal_is_not_repeated(server: Server) -> None:
    server.replies = [(401, json.dumps({"error": {"message": "bad key"}}), {})]
    with pytest.raises(GptfastError, match="refuses: 401 Unauthorized: bad key"):
        Judge(server.url, "m", "wrong", pause=0).ask("x")
    assert len(server.requests) == 1


def test_a_redirect_does_not_take_the_key_along(server: Server) -> None:
    other = Server()
    server.replies = [(302, "", {"Location": other.url})]
    with pytest.raises(GptfastError, match="refuses: 302"):
        Judge(server.url, "m", "secret", pause=0).ask("x")
    assert len(server.requests) == 1 and not other.requests
    other.server_close()


def test_nobody_there(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(GptfastError, match="failed 2 times in a row: .*is it running"):
        Judge(server.url, "m", retries=1, pause=0.001).scores([ANSWER])


@pytest.mark.parametrize(
    "url", ["", "localhost:8000/v1", "ftp://x/v1", "file:///etc/passwd", "http://", "http://h:x/v1", "http://a b/v1"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(GptfastError, match="is no address that begins with http"):
        Judge(url, "m")


def test_a_key_that_no_header_holds_is_not_shown() -> None:
    with pytest.raises(GptfastError, match="characters that no HTTP header may have") as error:
        Judge("http://127.0.0.1:1/v1", "m", "sec\nret")
    assert "sec" not in str(error.value)
