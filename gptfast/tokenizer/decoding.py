"""The half of `Encoding` that turns token ids back into bytes and text."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from .core_bpe import CoreBPE
from .threads import thread_count


class Decoding:
    """tiktoken's methods for decoding. Ids are a sequence of int or an array of integers."""

    _bpe: Any
    _special_tokens: dict[str, int]

    @functools.cached_property
    def _core_bpe(self) -> CoreBPE:
        return CoreBPE(self._bpe, self._special_tokens)

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`. Raises KeyError for an id that is no token's."""
        data: bytes = self._bpe.decode(tokens)
        return data

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """The text of `tokens`; `errors` says what becomes of bytes that are no UTF-8, such as half a character."""
        return self.decode_bytes(tokens).decode("utf-8", errors=errors)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of one token, special ones included. Raises KeyError for an id that is no token's."""
        return self._core_bpe.decode_single_token_bytes(token)

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self.decode_single_token_bytes(token) for token in tokens]

    def decode_with_offsets(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text of `tokens`, and for each the first character that holds bytes of it. Strict about UTF-8."""
        from .offsets import decode_with_offsets

        return decode_with_offsets(self.decode_tokens_bytes(tokens))

    def decode_batch(
        self, batch: Iterable[Sequence[int]], *, errors: str = "replace", num_threads: int | None = None
    ) -> list[str]:
        """`decode` of each list of tokens, in parallel."""
        return [data.decode("utf-8", errors=errors) for data in self.decode_bytes_batch(batch, num_threads=num_threads)]

    def decode_bytes_batch(self, batch: Iterable[Sequence[int]], *, num_threads: int | None = None) -> list[bytes]:
        """`decode_bytes` of each list of tokens, in parallel."""
        data: list[bytes] = self._bpe.decode_batch(list(batch), thread_count(num_threads))
        return data
