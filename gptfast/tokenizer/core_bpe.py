"""tiktoken's `CoreBPE`, which some programs call as `encoding._core_bpe`, and what tiktoken does with unfinished text.

Text that will go on has unstable tokens at its end: more text could merge with them or move the split before them.
`encode_with_unstable` gives the tokens before those, and every token sequence that may come to stand in their place.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Collection
from typing import Any

from .special import special_regex

SPACES = frozenset(b" \n\t")


class CoreBPE:
    """Around a `gptfast._core.BPE` or `SplitBPE`; no method checks for special tokens that are not allowed."""

    def __init__(self, bpe: Any, special: dict[str, int]) -> None:
        self._bpe, self._special = bpe, special

    def encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = self._bpe.encode(text, [])
        return ids

    def encode(self, text: str, allowed_special: Collection[str]) -> list[int]:
        ids: list[int] = self._bpe.encode(text, self._known(allowed_special))
        return ids

    def encode_to_tiktoken_buffer(self, text: str, allowed_special: Collection[str]) -> Any:
        return self._bpe.encode_to_numpy(text, self._known(allowed_special))

    def encode_single_token(self, piece: bytes) -> int:
        try:
            return int(self._bpe.token_id(piece))
        except KeyError:
            special = self._special.get(piece.decode("utf-8", errors="replace"))
            if special is None:
                raise
            return special

    def encode_single_piece(self, piece: bytes) -> list[int]:
        ids: list[int] = self._bpe.encode_piece(piece)
        return ids

    def decode_bytes(self, tokens: Any) -> bytes:
        data: bytes = self._bpe.decode(tokens)
        return data

    def decode_single_token_bytes(self, token: int) -> bytes:
        try:
            data: bytes = self._bpe.token_bytes(token)
        except TypeError:
            if not isinstance(token, int):
                raise
            raise OverflowError(f"the id {token} is out of range; ids are 0 .. 4294967295") from None
        return data

    def token_byte_values(self) -> list[bytes]:
        values: list[bytes] = self._bpe.token_byte_values()
        return values

    def _encode_bytes(self, data: bytes) -> list[int]:
        """The tokens of bytes that may end, or go on, as no UTF-8. Splits are guessed from the valid beginning."""
        try:
            return self.encode_ordinary(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            valid = error.start
        tokens, last = self._encode_last_piece(data[:valid].decode("utf-8"), ())
        last = self._widen(tokens, last)
        # The last piece is merged anew with what follows it: most likely this is text cut inside a character.
        stable = tokens[: len(tokens) - last]
        return stable + self.encode_single_piece(self.decode_bytes(tokens[len(stable) :]) + data[valid:])

    def encode_with_unstable(self, text: str, allowed_special: Collection[str]) -> tuple[list[int], list[list[int]]]:
        tokens, last = self._encode_last_piece(text, self._known(allowed_special))
        if last == 0:  # a special token is stable
            return tokens, []
        last = self._widen(tokens, last)
        stable, unstable = tokens[: len(tokens) - last], self.decode_bytes(tokens[len(tokens) - last :])
        return stable, [list(sequence) for sequence in self._completions(unstable)]

    def _known(self, allowed: Collection[str]) -> list[str]:
        return [token for token in allowed if token in self._special]

    def _encode_last_piece(self, text: str, allowed: Collection[str]) -> tuple[list[int], int]:
        """The tokens of `text`, and how many of them are those of its last pre-token; 0 after a special token."""
        ids: list[int] = self._bpe.encode(text, list(allowed))
        specials = special_regex(frozenset(allowed)).finditer(text) if allowed else ()
        rest = text[max((found.end() for found in specials), default=0) :]
        ends = self._bpe.split(rest).tolist()
        if not ends:
            return ids, 0
        start = ends[-2] if len(ends) > 1 else 0
        return ids, len(self.encode_single_piece(rest.encode()[start : ends[-1]]))

    def _widen(self, tokens: list[int], last: int) -> int:
        """Takes in all tokens of white space before: a line break to come may join them into one pre-token."""
        if last > 0 and self._is_space(tokens[len(tokens) - last]):
            while last < len(tokens) and self._is_space(tokens[len(tokens) - last - 1]):
                last += 1
        return last

    def _is_space(self, token: int) -> bool:
        data = self.decode_single_token_bytes(token)
        return SPACES.issuperset(data) and token not in self._special.values()

    @functools.cached_property
    def _sorted_tokens(self) -> list[bytes]:
        return self.token_byte_values()

    def _tokens_from(self, prefix: bytes) -> list[bytes]:
        """All tokens that begin with `prefix`."""
        tokens, found = self._sorted_tokens, []
        for i in range(bisect.bisect_left(tokens, prefix), len(tokens)):
            if not tokens[i].startswith(prefix):
                break
            found.append(tokens[i])
        return found

    def _completions(self, unstable: bytes) -> set[tuple[int, ...]]:
        """Every sequence of tokens that `unstable` and more text may become, up to the token that reaches its end."""
        found: set[tuple[int, ...]] = {(self.encode_single_token(token),) for token in self._tokens_from(unstable)}
        # A token that straddles the end may begin at each byte: put every such token there and encode the whole.
        texts, others = [], []
        for data in {
            unstable[:i] + token for i in range(1, len(unstable)) for token in self._tokens_from(unstable[i:])
        }:
            try:
                texts.append(data.decode("utf-8"))
            except UnicodeDecodeError:
                others.append(self._merge(data))
        token_bytes, size = self._bpe.token_bytes, len(unstable)
        for tokens in [*self._bpe.encode_batch(texts, []), *others]:
            length = count = 0
            while length < size:
                length += len(token_bytes(tokens[count]))
                count += 1
            found.add(tuple(tokens[:count]))
        # What follows may also split white space that is one pre-token so far ("\n\n" before "0" is "\n", "\n").
        character = _last_character(unstable)
        if character.isspace() and character not in "\x1c\x1d\x1e\x1f" and len(unstable) > len(character.encode()):
            cut = len(unstable) - len(character.encode())
            found.add((*self._merge(unstable[:cut]), *self._merge(unstable[cut:])))
        return found

    def _merge(self, data: bytes) -> list[int]:
        return self.encode_single_piece(data)


def _last_character(data: bytes) -> str:
    """The last character of UTF-8, or "" where `data` does not end in a whole one."""
    for length in range(1, 5):
        try:
            return data[-length:].decode("utf-8")
        except UnicodeDecodeError:
            continue
    return ""
