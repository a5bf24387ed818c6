"""CRC-32C against its published check values, its definition bit by bit, and what TensorFlow stored."""

from __future__ import annotations

import numpy as np
import pytest

from gptfast.weights import crc32c as module
from gptfast.weights.crc32c import crc32c, masked


def by_definition(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_values(data, value):
    assert crc32c(np.frombuffer(data, np.uint8)) == value


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 1000, 5684, 5685, 5686, 5693, 45_481, 45_489, 200_003])
def test_equals_the_definition(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert crc32c(data) == by_definition(data.tobytes())


def test_long_data_in_pieces_of_any_length(monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 3_000_001, dtype=np.uint8)
    whole = crc32c(data)
    for chunk in (4096, 65_536, 1 << 20):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        assert crc32c(data) == whole
    flipped = data.copy()
    flipped[1_234_567] ^= 1
    assert crc32c(flipped) != whole


def test_the_sparse_polynomial_is_a_multiple():
    remainder = 0
    powers = []
    value = 1
    for _ in range(5686):
        powers.append(value)
        value <<= 1
        if value >> 32:
            value ^= 0x1EDC6F41 | 1 << 32
    for term in module._TERMS:
        remainder ^= powers[term]
    assert remainder == 0


def test_mask_is_leveldbs():
    # LevelDB's crc32c_test: the mask of a CRC is another number, and differs from the mask of the mask.
    crc = crc32c(np.frombuffer(b"foo", np.uint8))
    assert masked(crc) != crc and masked(masked(crc)) != crc
    assert masked(0) == 0xA282EAD8
