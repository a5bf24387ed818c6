"""CRC-32C (Castagnoli) of a buffer, in numpy: at memory speed, because a multiple of its polynomial has four terms.

A CRC is the remainder of the message, read as a polynomial over GF(2), by the polynomial P. It stays the same when any
multiple of P is added. Q = x^5685 + x^1362 + x^426 + 1 is one (found by search; tests/weights/test_crc32c.py divides
it), and so is Q(x^k) for k = 2^j, since squaring over GF(2) squares each term. So the first words of a message may be
taken away if they are added (XOR) at three places further on, and whole blocks of words at once: three XORs a word
shrink a buffer of any length to 5685 words, then to 5685 bytes, and a table gives the remainder of those.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_REFLECTED = 0x82F63B78  # P without its leading term, its bits in reverse order
_TERMS = (5685, 1362, 426, 0)
_WIDE = 16  # the first fold is Q(x^(64 * 16)): blocks of half a megabyte
_CHUNK = 8 << 20  # bytes that are copied at a time


@cache
def _byte_table() -> np.ndarray:
    """[256]: what a byte adds to the remainder when it is the last one."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_REFLECTED), table >> 1)
    return table


@cache
def _tail_table() -> np.ndarray:
    """[d, 256]: what a byte adds to the remainder when d bytes follow it."""
    step = _byte_table()
    table = np.empty((_TERMS[0] + 8, 256), np.uint32)
    table[0] = step
    for d in range(1, len(table)):
        table[d] = step[table[d - 1] & 0xFF] ^ (table[d - 1] >> 8)
    return table


def _fold(words: np.ndarray, scale: int) -> np.ndarray:
    """The last 5685 * scale of `words` (or all, where there are fewer), to which those before have been added."""
    whole = _TERMS[0] * scale
    steps = [whole - term * scale for term in _TERMS[1:]]
    start = 0
    while len(words) - start > whole:
        count = min(steps[0], len(words) - start - whole)
        block = words[start : start + count]
        for step in steps:
            words[start + step : start + step + count] ^= block
        start += count
    return words[start:]


def crc32c(data: np.ndarray) -> int:
    """The CRC-32C of bytes, uint8 [n]. Holds a copy of at most some 9 MB of them."""
    size = len(data)
    if size < 4:
        crc = 0xFFFFFFFF
        for byte in data.tolist():
            crc = int(_byte_table()[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    lead = -size % 8  # zeros in front change no remainder
    rest = np.zeros(0, np.uint64)
    for start in range(-lead, size, _CHUNK):
        piece = data[max(start, 0) : start + _CHUNK]
        front = max(-start, 0)
        buffer = np.empty(rest.nbytes + front + len(piece), np.uint8)
        buffer[: rest.nbytes] = rest.view(np.uint8)
        buffer[rest.nbytes : rest.nbytes + front] = 0
        buffer[rest.nbytes + front :] = piece
        if start <= 0:
            buffer[front : front + 4] ^= 0xFF  # the register starts as ones
        rest = _fold(buffer.view(np.uint64), _WIDE)
    tail = _fold(_fold(rest, 1).view(np.uint8), 1)
    distance = np.arange(len(tail) - 1, -1, -1)
    return int(np.bitwise_xor.reduce(_tail_table()[distance, tail])) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """How LevelDB and TensorFlow store a CRC, so that a CRC of data with CRCs in it is no degenerate one."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
