"""The sorted table of LevelDB's format, in which TensorFlow keeps the index of a checkpoint.

    data blocks   key -> value, keys in order; each key gives only what differs from the one before
    index block   a key not before a block's last -> where the block is
    footer        48 bytes: where the index block is, and a magic number

After each block: a byte that says how it is compressed (TensorFlow does not compress) and a masked CRC-32C of both.
Files are of unknown origin: every length is held against what is left of the file before it is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import GptfastError
from .crc32c import crc32c, masked

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5
# GPT-2's largest index is some 40 KB, with names of some 30 letters.
MAX_BYTES, MAX_KEY, MAX_ENTRIES = 4 << 20, 256, 1 << 16


class Damaged(Exception):
    """The bytes are not what they should be; says which."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of up to 64 bits, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise Damaged("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise Damaged("a number has more than 64 bits")


def read_table(path: Path) -> dict[str, bytes]:
    """All keys and values of a table. Raises GptfastError for a file that is none or is damaged."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"it has more than {MAX_BYTES:,} bytes, which no index of a GPT-2 has")
        return parse_table(path.read_bytes())
    except OSError as error:
        raise GptfastError(f"cannot read {path}: {error.strerror}") from None
    except Damaged as error:
        raise GptfastError(f"{path} is no index of a TensorFlow checkpoint, or is damaged ({error})") from None


def parse_table(data: bytes) -> dict[str, bytes]:
    """As `read_table`, from bytes. Raises Damaged."""
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise Damaged("it does not end as such a table does")
    footer = data[-_FOOTER:]
    _, at = varint(footer, 0)  # the block of filters, which TensorFlow leaves empty
    _, at = varint(footer, at)
    table: dict[str, bytes] = {}
    last = b""
    for _, handle in _entries(_block(data, *_handle(footer, at))):
        for key, value in _entries(_block(data, *_handle(handle, 0))):
            if table and key <= last:
                raise Damaged("its keys are not in order")
            if len(table) >= MAX_ENTRIES:
                raise Damaged(f"it has more than {MAX_ENTRIES:,} entries")
            last = key
            try:
                table[key.decode()] = value
            except UnicodeDecodeError:
                raise Damaged("a name is not UTF-8") from None
    return table


def _handle(data: bytes, at: int) -> tuple[int, int]:
    offset, at = varint(data, at)
    size, _ = varint(data, at)
    return offset, size


def _block(data: bytes, offset: int, size: int) -> bytes:
    """A block's entries, its CRC checked and its restart points taken off."""
    end = offset + size
    if end + _TRAILER > len(data):
        raise Damaged("a block lies outside it")
    if data[end] != 0:
        raise Damaged("it is compressed, which TensorFlow's are not; write the checkpoint again")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if masked(crc32c(np.frombuffer(data, np.uint8, size + 1, offset))) != stored:
        raise Damaged("a block's CRC-32C does not fit its content")
    block = data[offset:end]
    restarts = 4 * int.from_bytes(block[-4:], "little") + 4
    if size < 4 or restarts > size:
        raise Damaged("a block is shorter than its restart points")
    return block[: size - restarts]


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    entries: list[tuple[bytes, bytes]] = []
    at, key = 0, b""
    while at < len(block):
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        size, at = varint(block, at)
        if shared > len(key) or shared + unshared > MAX_KEY or at + unshared + size > len(block):
            raise Damaged("an entry reaches outside its block")
        if len(entries) >= MAX_ENTRIES:
            raise Damaged(f"it has more than {MAX_ENTRIES:,} entries")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        entries.append((key, block[at : at + size]))
        at += size
    return entries
