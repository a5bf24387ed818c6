"""What `gptfast serve` gives one client and many at once, and whether its memory grows.

    python benchmarks/serve.py [RUN] [--clients 32] [--tokens 128] [--requests 2000] [--json FILE]

Without RUN a random model of nanoGPT's "baby GPT" size is made: 6 layers, 384 wide, context 256, over bytes. The
server is a process of its own; the clients are one more, and speak HTTP over plain sockets, since what they cost is not
what is measured. Prints tokens/s of one client and of all together, each client's time to its first token and its
longest wait for a further one; the longest wait of four streams among which comes a prompt that fills the context, and
the time to its first token; and the server's resident memory over many short requests, some of which leave early.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

import gptfast
from gptfast.doctor import devices, versions


@dataclass
class Options:
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """A run or a model folder; by default a random one."""
    clients: int = 32
    """That stream at once."""
    tokens: int = 128
    """Of each answer, at most."""
    rounds: int = 3
    """Of one client, then all; the medians are printed."""
    requests: int = 2000
    """Short ones, over which memory is watched."""
    json: Path | None = None
    """Also write the figures here."""


@dataclass
class Stream:
    tokens: int
    seconds: float
    first: float
    """Seconds to the first token."""
    gap: float
    """The longest wait for a further one."""


async def stream(
    port: int, tokens: int, seed: int, leave: bool = False, prompt: list[int] | None = None,
    begun: asyncio.Event | None = None,
) -> Stream:  # fmt: skip
    """One answer; with `leave` the client goes away after its beginning, which `begun` tells."""
    request = {"prompt": prompt or f"Client {seed} says: ", "max_tokens": tokens, "seed": seed, "stream": True}
    body = json.dumps({**request, "stream_options": {"include_usage": True}}).encode()
    start = last = time.perf_counter()
    first, gap, made = 0.0, 0.0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"the server answered {status!r}")
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if b'"text"' in line:
                gap = max(gap, now - last) if first else 0.0
                first, last = first or now - start, now
                if begun:
                    begun.set()
                if leave:
                    break
            elif b'"usage"' in line:
                made = json.loads(line[6:])["usage"]["completion_tokens"]
        if not leave and not made:
            raise RuntimeError("an answer broke off")
        return Stream(made, time.perf_counter() - start, first, gap)
    finally:
        writer.close()


async def together(port: int, clients: int, tokens: int) -> tuple[float, list[Stream]]:
    """Tokens/s of all, and each."""
    start = time.perf_counter()
    streams = await asyncio.gather(*(stream(port, tokens, seed) for seed in range(clients)))
    return sum(s.tokens for s in streams) / (time.perf_counter() - start), streams


async def beside_a_long_prompt(port: int, tokens: int, streams: int = 4) -> tuple[float, float]:
    """The longest wait of any of `streams` for a further token, and the long prompt's for its first, in seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    context = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["data"][0]["context_length"]
    writer.close()
    begun = asyncio.Event()
    others = [asyncio.create_task(stream(port, tokens, seed, begun=begun)) for seed in range(streams)]
    await begun.wait()
    long = await stream(port, 1, 0, prompt=[65] * (context - 1))
    return max(s.gap for s in await asyncio.gather(*others)), long.first


async def many(port: int, pid: int, requests: int, clients: int) -> list[float]:
    """Resident memory in MB before, and after each tenth of `requests`."""
    memory = [resident(pid)]
    for _ in range(10):
        todo = iter(range(requests // 10))

        async def worker(todo: Iterator[int] = todo) -> None:
            for i in todo:
                await stream(port, 8, i, leave=i % 7 == 0)

        await asyncio.gather(*(worker() for _ in range(clients)))
        memory.append(resident(pid))
    return memory


def resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def random_model(folder: Path) -> None:
    """Never says end-of-text, so that all answers have the same length."""
    torch.manual_seed(0)
    config = gptfast.GPTConfig(vocab_size=257, context_length=256, n_layer=6, n_head=6, n_embd=384, tie_weights=False)
    model = gptfast.GPT(config)
    assert model.ln_f.bias is not None
    with torch.no_grad():
        model.ln_f.weight[0], model.ln_f.bias[0] = 0.0, 1.0  # so the first number of every hidden state is 1
        model.lm_head.weight[256, 0] = -100.0
    model.save_pretrained(folder)


def main() -> None:
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "gptfast.cli", "serve", str(options.run or temporary), "--port", "0"]
        if options.run is None:
            random_model(Path(temporary))
            command += ["--encoding", "bytes"]
        server = subprocess.Popen([*command, "--rows", str(options.clients)], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        try:
            said = ""
            while (found := re.search(r"http://127.0.0.1:(\d+)", said)) is None:
                line = server.stderr.readline()
                said += line
                if not line:
                    sys.exit(f"the server did not start: {said}")
            port = int(found[1])
            print(said.splitlines()[0])
            asyncio.run(together(port, options.clients, 16))  # the first calls are slower
            one, all_, streams, long = [], [], [], []
            for _ in range(options.rounds):
                one.append(asyncio.run(together(port, 1, options.tokens))[0])
                speed, latest = asyncio.run(together(port, options.clients, options.tokens))
                all_.append(speed)
                streams += latest
                long.append(asyncio.run(beside_a_long_prompt(port, options.tokens)))
            memory = asyncio.run(many(port, server.pid, options.requests, options.clients))
        finally:
            server.terminate()
            server.wait()
    figures = {
        "one_client": statistics.median(one), "all_clients": statistics.median(all_),
        "ratio": statistics.median(all_) / statistics.median(one),
        "first_median": statistics.median(s.first for s in streams), "first_worst": max(s.first for s in streams),
        "gap_worst": max(s.gap for s in streams), "long_gap": statistics.median(gap for gap, _ in long),
        "long_first": statistics.median(first for _, first in long), "memory_mb": memory, "clients": options.clients,
    }  # fmt: skip
    print(f"1 client     {figures['one_client']:8,.0f} tokens/s")
    print(f"{options.clients} clients   {figures['all_clients']:8,.0f} tokens/s, {figures['ratio']:.1f} times as many")
    print(f"first token  {figures['first_median']:8.3f} s median, {figures['first_worst']:.3f} s worst")
    print(f"further one  {figures['gap_worst']:8.3f} s worst wait")
    print(f"long prompt  {figures['long_gap']:8.3f} s others' wait, {figures['long_first']:.3f} s its first token")
    print(f"memory over {options.requests:,} requests: {', '.join(f'{m:,.0f}' for m in memory)} MB")
    if options.json:
        machine, installed = ({found.name: found.value for found in of()} for of in (devices, versions))
        record = {"machine": machine, "versions": installed, **figures}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
