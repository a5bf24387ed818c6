"""`gptfast tokenizer train|encode|decode|count`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import GptfastError
from .encoding import Encoding
from .published import END_OF_TEXT
from .vocabularies import get_encoding

STANDARD = Path("-")  # standard input or output


@dataclass(frozen=True)
class Train:
    """Learn a byte-pair vocabulary from text."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    """Files, folders or globs, as for `gptfast data prepare`."""
    out: Path
    """The file to write: .json (as tokenizers loads it) or .tiktoken (as tiktoken loads it)."""
    vocab_size: int = 32_768
    """Tokens in all: 256 bytes, merges and special tokens."""
    pattern: str = "gpt2"
    """How text is split before merging: gpt2, cl100k, o200k, or a regular expression."""
    special: tuple[str, ...] = (END_OF_TEXT,)
    """Special tokens. In text they separate documents."""
    threads: int | None = None
    """All cores by default, or GPTFAST_NUM_THREADS."""


@dataclass(frozen=True)
class Encode:
    """Text to token ids, one line of them for each line of text, or all of them in a .npy."""

    input: Annotated[Path, tyro.conf.Positional] = STANDARD
    """A UTF-8 file; - is standard input."""
    encoding: str = "gpt2"
    """The tokenizer: a name, or the path of a vocabulary."""
    out: Path | None = None
    """A .npy to write in place of text: uint16, or uint32 above 65,536 tokens."""
    plain: bool = False
    """Take special tokens in the text for plain text."""
    threads: int | None = None
    """All cores by default, or GPTFAST_NUM_THREADS."""


@dataclass(frozen=True)
class Decode:
    """Token ids to the bytes of their text."""

    input: Annotated[Path, tyro.conf.Positional] = STANDARD
    """A .npy, or text with ids between white space; - is standard input."""
    encoding: str = "gpt2"
    """The tokenizer: a name, or the path of a vocabulary."""
    out: Path = STANDARD
    """The file to write; - is standard output."""


@dataclass(frozen=True)
class Count:
    """How many tokens texts have."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    """Files, folders or globs, as for `gptfast data prepare`."""
    encoding: tuple[str, ...] = ("gpt2",)
    """One or more tokenizers: names, or paths of vocabularies."""


def train(argv: list[str]) -> None:
    options = tyro.cli(Train, args=argv, prog="gptfast tokenizer train")
    from ..data.readers import find_inputs
    from .display import TrainDisplay
    from .formats import check_pattern
    from .train import split_pattern

    if options.out.suffix not in (".json", ".tiktoken"):
        raise GptfastError(f"--out {options.out} must end in .json or .tiktoken")
    if not options.out.parent.is_dir() or options.out.is_dir():
        missing = f"there is no folder {options.out.parent}" if not options.out.is_dir() else "it is a folder"
        raise GptfastError(f"--out {options.out} cannot be written: {missing}")
    check_pattern(options.out, split_pattern(options.pattern))
    files = find_inputs(options.inputs)
    began = time.perf_counter()
    with TrainDisplay() as display:
        encoding = Encoding.train(
            files,
            options.vocab_size,
            pattern=options.pattern,
            special_tokens=options.special,
            num_threads=options.threads,
            progress=display.on_progress,
        )
    encoding.save(options.out)
    print(f"{options.out}: {encoding.n_vocab:,} tokens, {time.perf_counter() - began:.1f} s")


def encode(argv: list[str]) -> None:
    options = tyro.cli(Encode, args=argv, prog="gptfast tokenizer encode")
    encoding = get_encoding(options.encoding)
    special: Any = () if options.plain else "all"
    if options.out is not None:
        if options.input == STANDARD:
            raise GptfastError("--out needs a file to read: encode_file maps it; name one in place of -")
        ids = encoding.encode_file(options.input, options.out, allowed_special=special, num_threads=options.threads)
        print(f"{options.out}: {len(ids):,} tokens, {ids.dtype}")
        return
    lines = _lines(options.input)
    for batch in iter(lambda: [line for line, _ in zip(lines, range(1 << 10), strict=False)], []):
        texts = encoding.encode_batch(
            batch, allowed_special=special, disallowed_special=(), num_threads=options.threads
        )
        sys.stdout.writelines(" ".join(map(str, ids)) + "\n" for ids in texts)


def _lines(path: Path) -> Iterator[str]:
    at = 0
    try:
        with open(0 if path == STANDARD else path, "rb", closefd=path != STANDARD) as file:
            for line in file:
                yield line.decode("utf-8")
                at += len(line)
    except OSError as error:
        raise GptfastError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GptfastError(
            f"{path} is not UTF-8 at byte {at + error.start:,} ({error.reason}); convert it to UTF-8"
        ) from None


def decode(argv: list[str]) -> None:
    options = tyro.cli(Decode, args=argv, prog="gptfast tokenizer decode")
    encoding = get_encoding(options.encoding)
    blocks = _ids_from_npy(options.input) if options.input.suffix == ".npy" else _ids_from_text(options.input)
    try:
        if options.out == STANDARD:
            for ids in blocks:
                sys.stdout.buffer.write(encoding.decode_bytes(ids))
            sys.stdout.flush()
            return
        from ..files import atomic_write

        with atomic_write(options.out) as file:
            for ids in blocks:
                file.write(encoding.decode_bytes(ids))
    except (KeyError, OverflowError) as error:
        raise GptfastError(
            f"{options.input} holds an id that {encoding.name!r} does not have: {error.args[0]}"
        ) from None


def _ids_from_npy(path: Path) -> Iterator[Any]:
    import numpy as np

    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise GptfastError(f"cannot read {path}: {error}") from None
    if not isinstance(ids, np.ndarray):
        raise GptfastError(f"{path} is an archive of arrays (.npz), not one array of ids")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise GptfastError(f"{path} holds {ids.dtype} {ids.shape}, not one row of ids")
    for start in range(0, len(ids), 1 << 20):
        yield np.asarray(ids[start : start + (1 << 20)])


def _ids_from_text(path: Path) -> Iterator[list[int]]:
    for number, line in enumerate(_lines(path), 1):
        try:
            yield [int(word) for word in line.split()]
        except ValueError as error:
            raise GptfastError(f"{path}, line {number:,} holds something that is no id: {error}") from None


def count(argv: list[str]) -> None:
    options = tyro.cli(Count, args=argv, prog="gptfast tokenizer count")
    from rich.console import Console
    from rich.table import Table

    from ..data.readers import find_inputs, read_pieces

    encodings = {name: get_encoding(name) for name in options.encoding}
    can_cut = all(encoding._can_cut for encoding in encodings.values())
    table = Table(
        "", "bytes", *encodings, *(["bytes / token"] if len(encodings) == 1 else []), box=None, pad_edge=False
    )
    for path in find_inputs(options.inputs):
        size, tokens = 0, dict.fromkeys(encodings, 0)
        for piece in read_pieces([path], can_cut=can_cut, keep_bom=True):
            size += len(piece.text.encode())
            for name, encoding in encodings.items():
                tokens[name] += encoding.count(piece.text)
        share = [f"{size / max(*tokens.values(), 1):.2f}"] if len(encodings) == 1 else []
        table.add_row(str(path), f"{size:,}", *(f"{n:,}" for n in tokens.values()), *share)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
