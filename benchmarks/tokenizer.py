"""Text to ids and back on one core, beside every other tokenizer that is installed; ids are checked against tiktoken's.

Each sample is a process of its own (tokenizer_peers.py). First pass: the vocabulary is loaded, caches are empty. Second
pass: the same text again, in a new object. MB/s are of UTF-8. More texts, two threads and worst cases, with the bars
that gptfast is held to: `python -m gptfast.benchmarks.tokenizer_suite`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .suite import Call, Case, Setup, Timed
from .tokenizer_peers import PEERS, Job, as_json, installed
from .tokenizer_texts import SHARED, corpora, random_words

ENCODINGS = ("r50k_base", "cl100k_base", "o200k_base")
TIMEOUT = 600  # seconds for one process
LOAD = (
    "import json, time; start = time.perf_counter(); import {0}; "
    "ids = {0}.get_encoding({1!r}).encode_ordinary('hello world'); seconds = time.perf_counter() - start; "
    "print(json.dumps([seconds, ids]))"
)


class Kind(NamedTuple):
    """One way to call a tokenizer."""

    name: str
    call: str  # a method of tokenizer_peers.Peer
    given: str  # what it is given: see Job; a list of ids where a tokenizer takes no array
    passes: int  # the last of which counts


KINDS = (
    Kind("encode, first pass", "encode", "str", 1),
    Kind("encode, second pass", "encode", "str", 2),
    Kind("2 KB documents, first pass", "batch", "texts", 1),
    Kind("to a list, second pass", "to_list", "str", 2),
    Kind("decode, second pass", "decode", "array", 2),
)


def vocabulary(names: tuple[str, ...], text: bytes, folder: Path) -> list[str]:
    """Those of `names` that are on this machine; where none is, a small one learned from `text`, `folder`/trained.json;
    where that cannot be, "bytes". Nothing is downloaded.
    """
    from gptfast.tokenizer.vocabularies import cached_file

    if (SHARED / "tiktoken").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    if found := [name for name in names if cached_file(name)]:
        return found
    if importlib.util.find_spec("regex") is None:  # which training needs
        return ["bytes"]
    from gptfast import Encoding

    encoding = Encoding.train([text.decode("utf-8", "ignore")], 4096)
    for name in ("trained.json", "trained.tiktoken"):
        encoding.save(folder / name)
    return [str(folder / "trained.json")]


def texts(setup: Setup) -> Iterator[tuple[str, bytes]]:
    """Novels, code and many languages where they are on this machine, else random words."""
    if setup.dry or not (SHARED / "data").is_dir():
        yield "random words", random_words(20_000 if setup.dry else 2_000_000)
        return
    for name, text in islice(corpora(SHARED / "data", quick=True), 1 if setup.quick else None):
        if name in ("english", "code", "multilingual"):
            yield name, text[: 1_000_000 if setup.quick else None].decode("utf-8", "ignore").encode()


def cases(setup: Setup) -> Iterator[Case]:
    with tempfile.TemporaryDirectory(prefix="gptfast-bench-") as name:
        folder, encodings = Path(name), list[str]()
        for label, text in texts(setup):
            path = folder / f"{label}.txt"
            path.write_bytes(text)
            encodings = encodings or vocabulary(ENCODINGS[: 1 if setup.dry or setup.quick else None], text, folder)
            for encoding in encodings:
                for kind in KINDS:
                    yield _case(setup, label, path, encoding, kind)
        for encoding in encodings:
            if not encoding.endswith(".json"):
                yield _load(setup, encoding)


def _names(setup: Setup) -> list[str]:
    return list(installed()) if setup.peers else ["gptfast"]


def _case(setup: Setup, label: str, text: Path, encoding: str, kind: Kind) -> Case:
    whole = "batch" if kind.call == "batch" else "whole"
    ids = text.with_name(f"{Path(encoding).stem}-{label}-{whole}.npy")
    job = Job("", encoding, kind.call, str(text), kind.given, str(ids), str(text.parent), kind.passes)
    checked = importlib.util.find_spec("tiktoken") is not None
    if not ids.exists():  # what encoders are checked against, and decoders are given
        call, given = ("batch", "texts") if kind.call == "batch" else ("encode", "str")
        judge = "tiktoken" if checked else "gptfast"
        _sample(replace(job, peer=judge, call=call, given=given, passes=1, save=True))
    size, tokens = text.stat().st_size, len(np.load(ids, mmap_mode="r"))
    takes = {name: "list" if kind.given == "array" and not PEERS[name].takes_array else kind.given for name in PEERS}
    return Case(
        "tokenizer", kind.name, f"{label}, {size / 1e6:.3g} MB", Path(encoding).stem, tuple,
        {name: _form(replace(job, peer=name, given=takes[name])) for name in _names(setup)}, work=size, unit="MB/s",
        of=None if setup.on_gpu else "copy", need=size + 4 * tokens,
        reference=(lambda: torch.tensor(True)) if checked else None,
    )  # fmt: skip


def _form(job: Job) -> Callable[..., Call]:
    def call() -> Timed:
        one = _sample(job)
        return Timed(one["seconds"][-1], torch.tensor(one["right"]), one["peaks"][-1])

    return lambda: call


def _load(setup: Setup, encoding: str) -> Case:
    """To import the package, load an encoding and encode two words."""

    def form(package: str) -> Callable[..., Call]:
        def call() -> Timed:
            seconds, ids = _fresh(["-c", LOAD.format(package, encoding)])
            return Timed(seconds, torch.tensor(ids))

        return lambda: call

    def reference() -> Any:
        import tiktoken

        return torch.tensor(tiktoken.get_encoding(encoding).encode_ordinary("hello world"))

    names = [name for name in _names(setup) if name in ("gptfast", "tiktoken")]
    return Case(
        "tokenizer", "import and load", "two words", encoding, tuple, {name: form(name) for name in names},
        work=1, unit="calls/s", reference=reference if importlib.util.find_spec("tiktoken") else None,
    )  # fmt: skip


def _sample(job: Job) -> Any:
    return _fresh(["-m", "gptfast.benchmarks.tokenizer_peers", as_json(job)])


def _fresh(arguments: list[str]) -> Any:
    """What a new Python process prints as JSON. Raises RuntimeError with the last line of its complaint."""
    env = os.environ | {"RAYON_NUM_THREADS": "1", "FASTOKENS_BPE_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=TIMEOUT, env=env)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
