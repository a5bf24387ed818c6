"""`gptfast data prepare`: text files to token shards, in bounded memory, on all cores.

    reader thread   files -> documents -> pieces -> train or val -> units of about 256 Ki characters
    pool            unit -> tokens (the tokenizer is native code that runs outside Python's lock)
    main thread     tokens, in order -> shards

How the text falls into units depends only on the text and the settings, so the number of units written is the whole
state of a run: after a kill, finished units are read again but not tokenized, and the output is the same to the byte.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import tyro

from ..errors import GptfastError
from ..tokenizer import ENCODING_NAMES, END_OF_TEXT, Encoding, get_encoding
from .display import Display
from .readers import PIECE_CHARS, NotUtf8, OnRead, Piece, find_inputs, read_pieces
from .shards import SPLITS, Progress, ShardWriter
from .split import Part, SplitRule, choose_split
from .tokens import FORMAT_VERSION, VOCABULARY

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class PrepareConfig:
    """Turn text into token shards for training."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    """Files, folders (searched through) or globs of .txt, .jsonl, .parquet, each also .bz2, .gz, .xz or .zst."""
    out: str
    """Folder to write: new, empty, or left unfinished by the same command."""
    encoding: str = "gpt2"
    """Tokenizer: a name such as gpt2, cl100k_base or bytes (needs no vocabulary), or the path of a vocabulary."""
    field: str = "text"
    """Name of the text field of .jsonl records and the text column of .parquet files."""
    val_fraction: float = 0.1
    """Share for validation: one document of each ceil(1/share); with fewer documents, the end of each. 0: none."""
    val_input: tuple[str, ...] = ()
    """Files, folders or globs of the validation documents; takes the place of --val-fraction."""
    shard_tokens: int = 100_000_000
    """A shard is closed once it has this many tokens."""
    invalid_utf8: Literal["refuse", "replace"] = "refuse"
    """Bytes that are not UTF-8: refuse stops and names the place, replace puts U+FFFD there."""
    seed: int = 0
    """Chooses which document of each group goes to validation."""
    workers: int = os.cpu_count() or 1
    """Threads that tokenize."""


class Encoded(NamedTuple):
    ids: np.ndarray
    starts: list[int]  # where in ids documents begin
    text_bytes: int


class Unit(NamedTuple):
    split: str
    parts: list[Part]


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Run the whole job and return the manifest. Raises GptfastError; shards finished by then are kept."""
    if not 0 <= config.val_fraction <= 0.5:
        raise GptfastError(f"--val-fraction {config.val_fraction:g} must be between 0 and 0.5")
    for name, value in (("--shard-tokens", config.shard_tokens), ("--workers", config.workers)):
        if value < 1:
            raise GptfastError(f"{name} must be at least 1, not {value}")
    files = find_inputs(config.inputs)
    val_files = find_inputs(config.val_input) if config.val_input else []
    encoding = get_encoding(config.encoding)
    if END_OF_TEXT not in encoding.special_tokens_set:
        raise GptfastError(f"{encoding} has no special token {END_OF_TEXT} to end documents with; choose another")
    if both := set(files) & set(val_files):
        raise GptfastError(f"{min(both)} is both a training and a validation input")

    def read(paths: list[Path], on_read: OnRead = lambda n: None) -> Iterator[Piece]:
        try:
            yield from read_pieces(
                paths, config.field, config.invalid_utf8 == "replace", on_read, can_cut=encoding._can_cut
            )
        except NotUtf8 as error:
            raise GptfastError(f"{error}, or pass --invalid-utf8 replace to put U+FFFD there") from None

    for paths in filter(None, (files, val_files)):
        if next(read(paths), None) is None:
            raise GptfastError(f"no text in {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""))
    whole = SplitRule(config.seed)
    by_fraction = config.val_fraction > 0 and not val_files
    rule = choose_split(read(files), config.val_fraction, config.seed) if by_fraction else whole

    progress = Progress(Path(config.out), _settings(config, encoding, files, val_files))
    if _saved_name(encoding) == VOCABULARY:
        encoding.save(progress.folder / VOCABULARY)
    with Display(sum(path.stat().st_size for path in (*files, *val_files))) as display, ExitStack() as stack:
        parts = chain(
            rule.apply(read(files, display.on_read)),
            (("val", part) for _, part in whole.apply(read(val_files, display.on_read))),
        )
        writers = {
            split: stack.enter_context(ShardWriter(progress, split, encoding.dtype, config.shard_tokens))
            for split in SPLITS
        }
        units = _read_ahead(_unfinished(_units(parts), dict(progress.units)), depth=config.workers)
        stack.enter_context(closing(units))
        results = _in_order(units, lambda unit: _encode(encoding, unit), config.workers)
        stack.enter_context(closing(results))
        for split, encoded in results:
            writers[split].write(*encoded)
            display.on_written(encoded.text_bytes, len(encoded.ids))
    manifest = {
        "format_version": FORMAT_VERSION,
        "encoding": {
            "name": _saved_name(encoding),
            "hash": encoding.hash,
            "n_vocab": encoding.n_vocab,
            "eot_token": encoding.eot_token,
        },
        "dtype": str(encoding.dtype),
        "validation": "the files of --val-input" if val_files else rule.describe(),
        "splits": {split: _totals(shards) for split, shards in progress.shards.items() if shards},
    }
    progress.finish(manifest)
    return manifest


def _saved_name(encoding: Encoding) -> str:
    """Published encodings are named; any other is saved beside its tokens, so that the folder can be moved."""
    return encoding.name if encoding.name in ENCODING_NAMES else VOCABULARY


def _totals(shards: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] - shard["continues"] for shard in shards),
        "text_bytes": sum(shard["text_bytes"] for shard in shards),
        "shards": shards,
    }


def _settings(config: PrepareConfig, encoding: Encoding, files: list[Path], val_files: list[Path]) -> dict[str, Any]:
    """All that the output depends on: a run goes on only where none of it has changed."""

    def state(paths: list[Path]) -> list[list[Any]]:
        return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]

    return {
        "format_version": FORMAT_VERSION,
        "encoding": [_saved_name(encoding), encoding.hash],
        "dtype": str(encoding.dtype),
        "field": config.field,
        "val_fraction": config.val_fraction,
        "shard_tokens": config.shard_tokens,
        "invalid_utf8": config.invalid_utf8,
        "seed": config.seed,
        "inputs": state(files),
        "val_input": state(val_files),
    }


def _units(parts: Iterator[tuple[str, Part]]) -> Iterator[Unit]:
    """Gather small documents, so that work is handed over in pieces worth a thread's while."""
    gathered: dict[str, list[Part]] = {split: [] for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for split, part in parts:
        gathered[split].append(part)
        characters[split] += len(part.text)
        if characters[split] >= PIECE_CHARS:
            yield Unit(split, gathered[split])
            gathered[split], characters[split] = [], 0
    yield from (Unit(split, rest) for split, rest in gathered.items() if rest)


def _unfinished(units: Iterator[Unit], finished: dict[str, int]) -> Iterator[Unit]:
    for unit in units:
        if finished[unit.split]:
            finished[unit.split] -= 1
        else:
            yield unit


def _encode(encoding: Encoding, unit: Unit) -> tuple[str, Encoded]:
    texts = [part.text for part in unit.parts]
    begins = np.array([part.begins for part in unit.parts])
    ends = np.array([part.eot for part in unit.parts])
    ids, at = encoding.encode_batch_to_numpy(texts, disallowed_special=(), num_threads=1)  # the pool has the threads
    with_ends = np.insert(ids.astype(encoding.dtype), at[1:][ends], encoding.eot_token)
    starts = (at[:-1] + np.cumsum(ends) - ends)[begins]  # moved by the end-of-text tokens before
    return unit.split, Encoded(with_ends, starts.tolist(), len("".join(texts).encode()))


def _read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, made by another thread up to `depth` before they are asked for."""
    ready: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                room.acquire()
                if stopped.is_set():
                    return
                ready.put((item, None))
            ready.put((None, StopIteration()))
        except BaseException as error:  # handed over: the consumer raises it
            ready.put((None, error))

    thread = threading.Thread(target=work, name="gptfast-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            room.release()
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        room.release()
        thread.join()


def _in_order(items: Iterator[T], function: Callable[[T], R], workers: int) -> Generator[R, None, None]:
    """`map` on a pool of threads with at most 2 * workers results in flight: memory stays bounded."""
    with ThreadPoolExecutor(workers, thread_name_prefix="gptfast-encode") as pool:
        flight: deque[Future[R]] = deque()
        for item in items:
            flight.append(pool.submit(function, item))
            if len(flight) == 2 * workers:
                yield flight.popleft().result()
        while flight:
            yield flight.popleft().result()


def main(argv: list[str]) -> int:
    """`gptfast data prepare INPUT... --out DIR`."""
    config = tyro.cli(PrepareConfig, args=argv, prog="gptfast data prepare")
    began = time.perf_counter()
    manifest = prepare(config)
    seconds = time.perf_counter() - began
    for split, total in manifest["splits"].items():
        print(
            f"{split}: {total['tokens']:,} tokens in {total['documents']:,} documents, "
            f"{total['text_bytes'] / 1e6:,.1f} MB of text, {len(total['shards'])} shards"
        )
    print(f"{config.out}: encoding {config.encoding}, {manifest['dtype']}, {seconds:.1f} s")
    return 0
