"""`gptfast tokenizer bench`: how fast one file is encoded here, beside tiktoken and gigatoken, interleaved.

The suite with many texts, peers and worst cases is benchmarks/tokenizer_suite.py.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import GptfastError
from .published import PUBLISHED
from .threads import thread_count
from .vocabularies import TIKTOKEN_NAMES, cached_file, get_encoding

Job = Callable[[], int]  # returns the number of tokens


@dataclass(frozen=True)
class Bench:
    """Measure how fast a text is encoded, beside tiktoken and, where it is installed, gigatoken."""

    input: Annotated[Path, tyro.conf.Positional]
    """A UTF-8 text, of some megabytes."""
    encoding: str = "gpt2"
    """The tokenizer: a name, or the path of a vocabulary."""
    rounds: int = 5
    """How often each is measured, in turns; the fastest counts."""
    threads: int | None = None
    """All cores by default, or GPTFAST_NUM_THREADS."""


def jobs(name: str, text: str, threads: int) -> dict[str, Job]:
    """What is measured: all of `text` as one document, to numpy where nothing else is said."""
    ours = get_encoding(name)
    ids: Any = []  # of the job before; encoding once more would warm the caches before the first

    def encode(n: int) -> int:
        nonlocal ids
        ids = ours.encode_to_numpy(text, disallowed_special=(), num_threads=n)
        return len(ids)

    def decode() -> int:
        ours.decode_bytes(ids)
        return len(ids)

    found: dict[str, Job] = {"gptfast, 1 thread": lambda: encode(1)}
    if threads > 1:
        found[f"gptfast, {threads} threads"] = lambda: encode(threads)
    found["gptfast, to a list"] = lambda: len(ours.encode_ordinary(text, num_threads=1))
    found["gptfast, decode"] = decode
    if name in TIKTOKEN_NAMES:
        import tiktoken

        theirs = tiktoken.get_encoding(name)
        found["tiktoken"] = lambda: len(theirs.encode_to_numpy(text, disallowed_special=()))
        found |= _gigatoken(name, text)
    return found


def _gigatoken(name: str, text: str) -> dict[str, Job]:
    path, published = cached_file(name), PUBLISHED[name]
    if path is None or path.name != published.sources[0].cache_name or importlib.util.find_spec("gigatoken") is None:
        return {}
    scheme = {"gpt2": "gpt2", "cl100k": "gpt4", "o200k": "o200k"}[published.pattern]
    tokenizer = importlib.import_module("gigatoken").Tokenizer.from_tiktoken(path, scheme, {})
    return {"gigatoken": lambda: len(tokenizer.encode(text))}


def main(argv: list[str]) -> None:
    options = tyro.cli(Bench, args=argv, prog="gptfast tokenizer bench")
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    try:
        text = options.input.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GptfastError(f"cannot read {options.input}: {error}") from None
    if not text or options.rounds < 1:
        raise GptfastError(
            f"nothing to measure: {options.input} has {len(text):,} characters, --rounds is {options.rounds}"
        )
    megabytes = len(text.encode()) / 1e6
    todo = jobs(options.encoding, text, thread_count(options.threads))
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    tokens: dict[str, int] = {}
    console = Console(stderr=True)
    for _ in track(range(options.rounds), "measuring", console=console, disable=not console.is_terminal):
        for name, job in todo.items():
            began = time.perf_counter()
            tokens[name] = job()
            seconds[name].append(time.perf_counter() - began)
    table = Table("", "first MB/s", "best MB/s", "M tokens/s", "tokens")
    for name, times in seconds.items():
        figures = megabytes / times[0], megabytes / min(times), tokens[name] / min(times) / 1e6
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures), f"{tokens[name]:,}")
    Console().print(table)
    print(f"{options.input}: {megabytes:,.1f} MB, encoding {options.encoding}, {options.rounds} rounds in turns")
