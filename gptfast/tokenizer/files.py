"""A UTF-8 file to token ids: mapped, encoded block by block on all threads, and written as it goes."""

from __future__ import annotations

import codecs
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import extension
from ..errors import GptfastError
from ..files import atomic_write
from .streaming import last_cut

BLOCK_BYTES = 1 << 26  # the ids of a block take up to four times as much, and what is written half of that


def encode_file(
    bpe: Any,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    dtype: np.dtype[Any],
    special: Sequence[str],
    threads: int,
    can_cut: bool,
) -> np.ndarray:
    """See `Encoding.encode_file`. `can_cut`: the pattern leaves places where text can be cut."""
    try:
        with open(path, "rb") as file:
            # What has no size (a pipe, a file of /proc) may have content all the same.
            size = os.fstat(file.fileno()).st_size
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else file.read()
    except (OSError, ValueError) as error:
        raise GptfastError(f"cannot read {os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from None
    blocks = _encoded_blocks(bpe, memoryview(data), os.fspath(path), frozenset(special), threads, can_cut)
    if out is None:
        return np.concatenate([np.empty(0, dtype=dtype), *(ids.astype(dtype, copy=False) for ids in blocks)])
    _write(Path(out), blocks, dtype)
    return np.load(out, mmap_mode="r" if Path(out).stat().st_size > 128 else None)


def _write(out: Path, blocks: Iterator[np.ndarray], dtype: np.dtype[Any]) -> None:
    """A .npy whose length is known only at the end: numpy leaves room in the header for it to grow in place."""
    tokens = 0
    with atomic_write(out) as file:

        def write_header() -> int:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (tokens,)}
            np.lib.format.write_array_header_1_0(file, header)
            return int(file.tell())

        begins = write_header()
        for ids in blocks:
            file.write(ids.astype(dtype, copy=False).data)
            tokens += len(ids)
        file.seek(0)
        if write_header() != begins:
            raise AssertionError("numpy wrote a header of another size for another length")


def _encoded_blocks(
    bpe: Any, data: memoryview, path: str, special: frozenset[str], threads: int, can_cut: bool
) -> Iterator[np.ndarray]:
    start = 0
    while start < len(data):
        end = _block_end(data, start, special) if can_cut else len(data)
        try:
            yield bpe.encode_buffer(data[start:end], list(special), threads)
        except ValueError as error:
            validator = extension.Utf8Validator()
            validator.feed(data[start:end])
            invalid = validator.finish()
            if invalid is None:
                raise
            raise GptfastError(f"{path} is not UTF-8 at byte {start + invalid:,}; convert it to UTF-8") from error
        start = end


def _block_end(data: memoryview, start: int, special: frozenset[str]) -> int:
    """Where the block that begins at `start` can end: the last such place within BLOCK_BYTES, or the first after."""
    end = start + BLOCK_BYTES
    longest = max(map(len, special), default=1)
    while end < len(data):
        for window in (1 << 13, 1 << 18, BLOCK_BYTES):
            begin = max(end - window, start)
            while begin > start and data[begin] & 0xC0 == 0x80:  # inside a character
                begin -= 1
            try:
                text = codecs.getincrementaldecoder("utf-8")().decode(data[begin:end])
            except UnicodeDecodeError:
                return end  # encoding this block will name the byte
            cut = last_cut(text, special)
            if cut and (cut >= longest or begin == start):
                return begin + len(text[:cut].encode())
        end += BLOCK_BYTES
    return len(data)
