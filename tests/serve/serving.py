"""A decoder that says what it is told to, a server in a thread, and waiting for what must come."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
import torch

import gptfast


class Script:
    """Stands in for `Decoder`: row by row the tokens that `text` holds, whatever the prompt. `gate`: each step
    waits for a permit, if there is one. `calls`: what the engine asked for.
    """

    def __init__(self, text: bytes = b"", gate: threading.Semaphore | None = None) -> None:
        self.text, self.gate, self.calls = text, gate, []

    def __call__(self, model: gptfast.GPT, rows: int) -> Script:
        self.device, self.context, self.lengths = torch.device("cpu"), model.config.context_length, [0] * rows
        self.place = [0] * rows
        return self

    def logits(self, rows: list[int]) -> torch.Tensor:
        out = torch.full((len(rows), 300), -100.0)
        for i, row in enumerate(rows):
            out[i, self.text[self.place[row] % len(self.text)]] = 0
            self.place[row] += 1
        return out

    def prefill(self, idx: torch.Tensor, row: int, start: int) -> torch.Tensor:
        self.calls.append(("read", [row] * idx.shape[1]))
        self.place[row] = 0
        return self.logits([row])

    def step(self, tokens: torch.Tensor, rows: list[int] | None = None) -> torch.Tensor:
        if self.gate is not None:
            assert self.gate.acquire(timeout=20), "a step was not permitted"
        rows = list(range(len(self.place))) if rows is None else rows
        self.calls.append(("step", rows))
        return self.logits(rows)


@contextlib.contextmanager
def serving(app) -> Iterator[int]:
    """A server of `app` in a thread; its port."""
    uvicorn = pytest.importorskip("uvicorn", reason="the server needs uvicorn (the extra `serve`)")
    from gptfast.serve.command import bind

    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            app.state.engine.close()
            server.should_exit = True
            thread.join(20)


def until(true, seconds: float = 20) -> None:
    """Wait until `true()`; fails where that does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


# A program that is `gptfast` with a slow model, so that there is an answer to stop.
SLOW = """
import sys, time, torch
from gptfast.cli import main
from gptfast.decode import Decoder
torch.set_num_threads(1)
step = Decoder.step
Decoder.step = lambda *a: (time.sleep(0.2), step(*a))[1]
sys.exit(main(sys.argv[1:]))
"""
