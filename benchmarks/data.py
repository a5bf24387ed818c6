"""Data: `gptfast data prepare` from a text file to shards, and batches from tokens on disk to the device.

Beside the preparation stand the tokenizer alone, given the same documents in memory, and nanoGPT's way: tiktoken for
each document, on as many threads, and a numpy memmap of uint16. All tokens are checked against tiktoken's. Batches are
read from one file of uint16; `get_batch` is nanoGPT's: a memmap, torch.from_numpy, torch.stack.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptfast import get_encoding
from gptfast.machine import synchronize
from gptfast.tokenizer import END_OF_TEXT

from .suite import Call, Case, Setup, Timed
from .tokenizer import vocabulary
from .tokenizer_peers import Job, Tiktoken
from .tokenizer_texts import SHARED, corpora, random_words

DOCUMENT = 4000  # characters, about what a web page has
WORKERS = os.cpu_count() or 1


def cases(setup: Setup) -> Iterator[Case]:
    with tempfile.TemporaryDirectory(prefix="gptfast-bench-") as name:
        yield preparation(setup, Path(name))
        for B, T in setup.size([(12, 1024), (64, 1024)], [(12, 1024)], [(2, 16)]):
            yield batches(setup, Path(name), B, T)


def documents(setup: Setup) -> list[str]:
    """A text in documents that neither begin nor end with white space."""
    if setup.dry or not (SHARED / "data").is_dir():
        text = random_words(20_000 if setup.dry else 2_000_000 if setup.quick else 12_000_000)
    else:
        text = next(corpora(SHARED / "data", setup.quick))[1]
    found, held = [], ""
    for paragraph in text.decode("utf-8", "ignore").replace(END_OF_TEXT, "").split("\n\n"):
        held = f"{held}\n\n{paragraph}" if held else paragraph.strip()
        if len(held) > DOCUMENT:
            found.append(held.strip())
            held = ""
    return [*found, held.strip()] if held.strip() else found


def preparation(setup: Setup, folder: Path) -> Case:
    texts, path = documents(setup), folder / "text.txt"
    path.write_text(END_OF_TEXT.join(texts), encoding="utf-8", newline="")
    size = path.stat().st_size
    (name, *_) = vocabulary(("gpt2", "r50k_base"), path.read_bytes(), folder)
    encoding = get_encoding(name)

    def ids(tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64))

    def prepare() -> Timed:
        from gptfast.data.prepare import PrepareConfig, prepare

        with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.redirect_stderr(io.StringIO()):
            start = time.perf_counter()
            manifest = prepare(PrepareConfig((str(path),), f"{out}/tokens", name, val_fraction=0.0, workers=WORKERS))
            seconds = time.perf_counter() - start
            shards = [np.load(f"{out}/tokens/{shard['file']}") for shard in manifest["splits"]["train"]["shards"]]
        return Timed(seconds, ids(np.concatenate(shards)))

    def alone() -> Timed:
        start = time.perf_counter()
        tokens, at = encoding.encode_batch_to_numpy(texts, disallowed_special=(), num_threads=WORKERS)
        seconds = time.perf_counter() - start
        return Timed(seconds, ids(np.insert(tokens, at[1:], encoding.eot_token)))

    def nanogpt() -> Timed:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.perf_counter()
            each = path.read_text(encoding="utf-8").split(END_OF_TEXT)
            rows = tiktoken().encode_ordinary_batch(each, num_threads=WORKERS)
            for row in rows:
                row.append(encoding.eot_token)
            file = np.memmap(f"{out}/train.bin", dtype=np.uint16, mode="w+", shape=(sum(map(len, rows)),))
            at = 0
            for i in range(0, len(rows), 1024):
                part = np.concatenate(rows[i : i + 1024])
                file[at : at + len(part)] = part
                at += len(part)
            file.flush()
            seconds = time.perf_counter() - start
            return Timed(seconds, ids(np.array(file)))

    forms: dict[str, Callable[[], Call]] = {"tokenizer alone": lambda: alone}
    if importlib.util.find_spec("tyro") and importlib.util.find_spec("rich"):  # else there is no such command
        forms = {"gptfast": lambda: prepare, **forms}
    found = importlib.util.find_spec("tiktoken") is not None
    if setup.peers and found:
        forms["nanoGPT"] = lambda: nanogpt

    @functools.cache
    def tiktoken() -> Any:
        return Tiktoken(Job("tiktoken", name, "", "", "", "", "")).encoding

    @functools.cache
    def reference() -> Tensor:
        rows = tiktoken().encode_ordinary_batch(texts, num_threads=WORKERS)
        return ids(np.concatenate([[*row, encoding.eot_token] for row in rows]))

    return Case(
        "data", "prepare", f"{size / 1e6:.3g} MB, {len(texts)} documents, {WORKERS} threads", Path(name).stem, tuple,
        forms, work=size, unit="MB/s", of=None if setup.on_gpu else "copy", need=size + 2 * len(alone().outputs),
        reference=reference if found else None,
    )  # fmt: skip


def batches(setup: Setup, folder: Path, B: int, T: int) -> Case:
    """Tokens that rise by one, so that a batch of any place in the file can be checked."""
    from gptfast.data import Loader, RandomOffsets, open_tokens

    count, wrap = setup.size(100, 100, 3), 50_000
    path = folder / "train.bin"
    if not path.exists():
        (np.arange(100_000 if setup.dry else 20_000_000) % wrap).astype(np.uint16).tofile(path)

    def right(x: Tensor, y: Tensor) -> Tensor:
        steps = torch.cat([x.diff(dim=1), y[:, -1:] - x[:, -1:]], dim=1) % wrap
        return (steps == 1).all().cpu() & torch.equal(x[:, 1:], y[:, :-1])

    def gptfast() -> Timed:
        sampler: Any = RandomOffsets(open_tokens(path), T, seed=int(torch.randint(1 << 30, ())))
        start = time.perf_counter()
        with Loader(sampler, B, setup.device) as loader:
            for _ in range(count):
                batch = next(loader)
            synchronize(setup.device)
            seconds = time.perf_counter() - start
        return Timed(seconds, right(batch.idx, batch.targets))

    def get_batch() -> tuple[Tensor, Tensor]:
        data = np.memmap(path, dtype=np.uint16, mode="r")  # anew each time, as nanoGPT does against a leak of memory
        ix = torch.randint(len(data) - T, (B,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in ix])
        if setup.on_gpu:
            return tuple(z.pin_memory().to(setup.device, non_blocking=True) for z in (x, y))  # type: ignore[return-value]
        return x, y

    def plain() -> Timed:
        start = time.perf_counter()
        for _ in range(count):
            x, y = get_batch()
        synchronize(setup.device)
        return Timed(time.perf_counter() - start, right(x, y))

    return Case(
        "data", "batches", f"{count} batches of B={B} T={T}", "int64", tuple,
        {"gptfast": lambda: gptfast, "get_batch": lambda: plain}, work=count * B * T, unit="tokens/s",
        of=None if setup.on_gpu else "copy", need=count * B * T * (2 + 16), reference=lambda: torch.tensor(True),
    )  # fmt: skip
