"""One tiny GPT with random weights, in our class and in transformers', on a byte tokenizer; and a judge."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import Server

import gptfast

CONTEXT = 48


@pytest.fixture(scope="session")
def encoding() -> gptfast.Encoding:
    return gptfast.get_encoding("bytes")


@pytest.fixture(scope="session")
def folder(encoding: gptfast.Encoding, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(encoding.n_vocab, CONTEXT, n_layer=2, n_head=2, n_embd=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # far from uniform, so that a wrong position shows
    path = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model(folder: Path) -> gptfast.GPT:
    return gptfast.GPT.from_pretrained(folder).eval()


@pytest.fixture(scope="session")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
