"""A tiny model, alone and behind a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from serving import Script, serving

import gptfast
from gptfast.assistant import Assistant
from gptfast.serve import engine as engine_module
from gptfast.tokenizer import get_encoding

CONTEXT = 64


@pytest.fixture(scope="session")
def assistant() -> Assistant:
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(vocab_size=300, context_length=CONTEXT, n_layer=2, n_head=2, n_embd=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return Assistant(model.eval(), get_encoding("bytes"), name="tiny")  # 257 tokens; the model has 43 ids more


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script(b"abcdefghij")
    monkeypatch.setattr(engine_module, "Decoder", script)
    return script


@pytest.fixture(scope="package")
def port(assistant: Assistant) -> Iterator[int]:
    pytest.importorskip("fastapi", reason="the server needs fastapi (the extra `serve`)")
    from gptfast.serve.app import make_app

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    with serving(make_app(assistant, rows=8, waiting=64)) as port:
        yield port
    torch.set_num_threads(before)
