"""Where tokens lie in a text: in its UTF-8 bytes and in its characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Offsets(NamedTuple):
    """Token i is text.encode()[bytes[i] : bytes[i + 1]], and begins within the character text[characters[i]]."""

    ids: np.ndarray  # uint32 [N]
    bytes: np.ndarray  # int64 [N + 1]
    characters: np.ndarray  # int64 [N + 1]


def locate(text: str, ids: np.ndarray, lengths: np.ndarray) -> Offsets:
    """Where in `text` its tokens `ids` lie; `lengths` has the bytes of each id."""
    in_bytes = np.concatenate([[0], np.cumsum(lengths[ids], dtype=np.int64)])
    begins = (np.frombuffer(text.encode(), dtype=np.uint8) & 0xC0) != 0x80  # of a character
    in_characters = np.concatenate([np.cumsum(begins, dtype=np.int64) - 1, [len(text)]])
    return Offsets(ids, in_bytes, in_characters[in_bytes])


def decode_with_offsets(tokens: Sequence[bytes]) -> tuple[str, list[int]]:
    """The text of `tokens`, and for each the first character that holds bytes of it. Strict about UTF-8."""
    offsets, characters = [], 0
    for token in tokens:
        continues = 0x80 <= token[0] < 0xC0
        offsets.append(max(0, characters - continues))
        characters += sum(not 0x80 <= byte < 0xC0 for byte in token)
    return b"".join(tokens).decode("utf-8", errors="strict"), offsets
