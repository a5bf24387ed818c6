"""What a model answers, and where an answer ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gptfast
import gptfast.sampling
from gptfast.evaluate.judge import Answer
from gptfast.evaluate.responses import answers, read_instructions, respond
from gptfast.finetune.templates import Template
from gptfast.sampling import stream_text

TEMPLATE = Template("t", "Q{instruction} {input}\nA{output}#")


def writes(monkeypatch: pytest.MonkeyPatch, text: bytes) -> list[tuple[list[int], int]]:
    """The model writes `text`, a byte a token; its prompts and limits are returned."""
    asked: list[tuple[list[int], int]] = []

    def stream(model: object, idx: torch.Tensor, n: int, temperature: float, eos_id: int) -> Iterator[torch.Tensor]:
        asked.append((idx[0].tolist(), n))
        assert temperature == 0
        yield from (torch.tensor([token]) for token in [*text, eos_id][:n])

    monkeypatch.setattr(gptfast.sampling, "stream", stream)
    return asked


def test_completion_is_greedy(model, encoding) -> None:
    written = model.generate(torch.tensor([list(b"abc")]), 9, temperature=0, eos_id=encoding.eot_token)[0, 3:].tolist()
    text = bytes(t for t in written[: (written + [256]).index(256)]).decode("utf-8", "replace")
    assert "".join(stream_text(model, encoding, list(b"abc"), 9, temperature=0)) == text
    assert "".join(stream_text(model, encoding, "abc", 9, temperature=0)) == text


@pytest.mark.parametrize(
    ("stops", "n", "want"),
    [
        ([], 99, "one é two#three"), (["#"], 99, "one é two"), (["tw", " t"], 99, "one é"),
        ([], 3, "one"), (["x"], 5, "one \N{REPLACEMENT CHARACTER}"),
    ],
)  # fmt: skip
def test_where_an_answer_ends(model, encoding, monkeypatch, stops: list[str], n: int, want: str) -> None:
    asked = writes(monkeypatch, "one é two#three".encode())
    assert "".join(stream_text(model, encoding, [], n, stops, temperature=0)) == want
    assert asked == [([encoding.eot_token], n)]


def test_the_template_asks_and_ends(model, encoding, monkeypatch) -> None:
    asked = writes(monkeypatch, b" red #no")
    done: list[float] = []
    examples: list[dict[str, Any]] = [
        {"instruction": "name", "input": "a colour", "output": "blue"},
        {"instruction": "say", "output": "hi", "model_response": " hello"},
    ]
    assert answers(model, encoding, TEMPLATE, examples, done.append) == [
        Answer("name\na colour", "blue", "red"), Answer("say", "hi", "hello")
    ]  # fmt: skip
    prompt = list(b"Qname a colour\nA")
    assert asked == [(prompt, 48 - len(prompt))] and sum(done) == 2


def test_a_prompt_without_room(model, encoding) -> None:
    with pytest.raises(gptfast.GptfastError, match="fills the model's context of 48 tokens"):
        respond(model, encoding, TEMPLATE, {"instruction": "x" * 48, "output": "y"})


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"instruction": "a"}, "its 'output' is None"),
        ({"instruction": "a", "output": " "}, "its 'output' is ' '"),
        ({"instruction": "a", "output": "b", "model_response": 5}, "its 'model_response' is 5"),
        ({"output": "b"}, "neither 'instruction' nor"),
        ({"messages": [{"role": "user", "content": "x"}]}, "its 'instruction' is None"),
        ({"messages": [{"role": "user", "content": "x"}], "output": "b"}, "its 'instruction' is None"),
    ],
)
def test_bad_instructions(tmp_path: Path, example: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"instruction": "fine", "output": "fine"}, example]))
    with pytest.raises(gptfast.GptfastError, match=f"example 1 .*{message}"):
        read_instructions(path)
