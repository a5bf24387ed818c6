"""The compiled byte-pair encoder, `gptfast._core.BPE`; patterns that it does not know are split by a regex engine."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import extension
from ..errors import GptfastError
from .special import special_regex

if TYPE_CHECKING:
    import numpy as np


def build(
    tokens: Sequence[bytes], ids: Sequence[int], special: dict[str, int], pat_str: str, pattern: str | None = None
) -> Any:
    """An encoder of `tokens` (in order of merge rank) with their `ids`. Raises GptfastError.

    `pattern` is the core's name of `pat_str`, where the caller knows it.
    """
    ids = _checked_ids(ids)
    return _build(pat_str, special, pattern, lambda bpe, known: bpe(tokens, ids, special, known))


def from_tiktoken(
    data: Any, special: dict[str, int], pat_str: str, pattern: str | None = None, parts: bytes = b""
) -> Any:
    """The same from the content of a .tiktoken file, which is parsed in C++; `parts` as cache.py keeps them."""
    return _build(pat_str, special, pattern, lambda bpe, known: bpe.from_tiktoken(data, special, known, parts))


def _build(pat_str: str, special: dict[str, int], pattern: str | None, make: Callable[[Any, str], Any]) -> Any:
    module, reason = extension.load()
    if module is None or not hasattr(module, "BPE"):
        raise GptfastError(
            f"the tokenizer needs the compiled core, gptfast._core, which is not usable "
            f"({reason if module is None else 'it was built before there was a tokenizer in it'}); "
            "install gptfast with a C++ compiler at hand: `gptfast doctor` shows the command"
        )
    splitter = None
    if pattern is None:
        from .patterns import Splitter, known_pattern

        pattern = known_pattern(pat_str)
        splitter = None if pattern else Splitter(pat_str)
    _checked_ids(special.values())
    try:
        bpe = make(module.BPE, pattern or "")
    except ValueError as error:
        raise GptfastError(str(error)) from None
    for text, i in special.items():
        if (token := bpe.token_bytes(i)) != text.encode() and _is_ordinary(bpe, token, i):
            raise GptfastError(f"the special token {text!r} has the id {i} of the token {token!r}; give it another")
    return SplitBPE(bpe, splitter, special) if splitter else bpe


def _checked_ids(ids: Iterable[Any]) -> list[int]:
    try:
        checked = list(map(operator.index, ids))
    except TypeError:
        wrong = next(i for i in ids if not hasattr(i, "__index__"))
        raise GptfastError(f"{wrong!r} is no id; ids are whole numbers from 0 to 4294967295") from None
    if checked and not 0 <= min(checked) <= max(checked) < 1 << 32:
        wrong = next(i for i in checked if not 0 <= i < 1 << 32)
        raise GptfastError(f"the id {wrong} is out of range; ids are whole numbers from 0 to 4294967295")
    return checked


def _is_ordinary(bpe: Any, token: bytes, i: int) -> bool:
    try:
        return bool(bpe.token_id(token) == i)
    except KeyError:
        return False


class SplitBPE:
    """The interface of `gptfast._core.BPE` for a pattern that it does not know: a regex engine splits the text."""

    def __init__(self, bpe: Any, splitter: Any, special: dict[str, int]) -> None:
        self._bpe, self._splitter, self._special = bpe, splitter, special

    def __getattr__(self, name: str) -> Any:  # decoding and look-ups
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._bpe, name)

    def split(self, text: str) -> np.ndarray:
        return self._splitter.pieces(text)[1]

    def encode_to_numpy(self, text: str, allowed: Sequence[str], threads: int = 1) -> np.ndarray:
        import numpy as np

        arrays: list[Any] = [np.empty(0, dtype=np.uint32)]
        for part, special in self._parts(text, allowed):
            if part:
                arrays.append(self._bpe.encode_pieces(*self._splitter.pieces(part)))
            if special is not None:
                arrays.append(np.array([special], dtype=np.uint32))
        return np.concatenate(arrays)

    def _parts(self, text: str, allowed: Sequence[str]) -> Iterator[tuple[str, int | None]]:
        """Ordinary text, and the id of the special token that follows it."""
        text.encode()  # UnicodeEncodeError where it is no text
        start = 0
        for found in special_regex(frozenset(allowed)).finditer(text) if allowed else ():
            yield text[start : found.start()], self._special[found.group()]
            start = found.end()
        yield text[start:], None

    def encode(self, text: str, allowed: Sequence[str], threads: int = 1) -> list[int]:
        ids: list[int] = self.encode_to_numpy(text, allowed).tolist()
        return ids

    def encode_buffer(self, data: Any, allowed: Sequence[str], threads: int = 1) -> np.ndarray:
        return self.encode_to_numpy(str(memoryview(data), "utf-8"), allowed)

    def encode_batch(self, texts: Sequence[str], allowed: Sequence[str], threads: int = 1) -> list[list[int]]:
        return [self.encode(text, allowed) for text in texts]

    def encode_batch_to_numpy(
        self, texts: Sequence[str], allowed: Sequence[str], threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        arrays = [self.encode_to_numpy(text, allowed) for text in texts]
        ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.uint32), *arrays]), ends

    def count(self, text: str, threads: int = 1) -> int:
        return len(self.encode_to_numpy(text, ()))
