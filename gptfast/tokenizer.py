"""Text to token ids and back: tiktoken's encodings, and "bytes", which needs no vocabulary file."""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from .errors import GptfastError

END_OF_TEXT = "<|endoftext|>"
TIKTOKEN_NAMES = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base")
ENCODING_NAMES = (*TIKTOKEN_NAMES, "bytes")
Special = str | Collection[str]  # "all" or the names of special tokens


class Encoding:
    """tiktoken's `Encoding`, method for method, with numpy output and a hash that names the exact vocabulary.

    What is not defined here is tiktoken's own (`encode`, `encode_batch`, `decode`, `n_vocab`, ...).
    """

    def __init__(self, core: Any, name: str, pattern: str) -> None:
        self._core = core
        self.name = name
        self._pattern = pattern

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # never delegate what copying and pickling look for
            raise AttributeError(attribute)
        return getattr(self._core, attribute)

    def __repr__(self) -> str:
        return f"<Encoding {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_encoding, (self.name,)

    @property
    def n_vocab(self) -> int:
        """The number of ids, special tokens included: ids are 0 .. n_vocab - 1."""
        return int(self._core.n_vocab)

    @property
    def eot_token(self) -> int:
        """The id of <|endoftext|>, which ends every document."""
        return int(self._core.eot_token)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.n_vocab <= 1 << 16 else np.uint32)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) over the split pattern, every token's bytes in order of id, and the special tokens."""
        digest = hashlib.sha256(self._pattern.encode())
        for token in sorted(self._core.token_byte_values()):
            digest.update(f"\n{self._core.encode_single_token(token)} {token.hex()}".encode())
        for special in sorted(self._core.special_tokens_set):
            digest.update(f"\n{self._core.encode_single_token(special)} {special}".encode())
        return digest.hexdigest()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The ids of ordinary text, `self.dtype` [N]; special tokens in it are plain text. No Python list is made."""
        ids: np.ndarray = self._core.encode_to_numpy(text, disallowed_special=())
        return ids.astype(self.dtype)

    def count(self, text: str) -> int:
        """The number of tokens of ordinary text."""
        return len(self.encode_to_numpy(text))


class _ByteCore:
    """The "bytes" encoding with tiktoken's interface: ids 0-255 are the UTF-8 bytes, 256 is <|endoftext|>."""

    n_vocab = 257
    eot_token = 256
    special_tokens_set = frozenset({END_OF_TEXT})

    def encode_ordinary(self, text: str) -> list[int]:
        # Lone surrogates, which are no text and have no UTF-8, become "?": tiktoken accepts and replaces them too.
        return list(text.encode("utf-8", errors="replace"))

    def encode_to_numpy(
        self,
        text: str,
        *,
        allowed_special: str | Collection[str] = (),
        disallowed_special: str | Collection[str] = "all",
    ) -> np.ndarray:
        if not allowed_special and not disallowed_special:
            return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8)
        ids = self.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
        return np.array(ids, dtype=np.uint16)

    def encode(
        self,
        text: str,
        *,
        allowed_special: str | Collection[str] = (),
        disallowed_special: str | Collection[str] = "all",
    ) -> list[int]:
        if END_OF_TEXT not in text:
            return self.encode_ordinary(text)
        if allowed_special == "all" or END_OF_TEXT in allowed_special:
            first, *rest = (self.encode_ordinary(part) for part in text.split(END_OF_TEXT))
            return sum(([self.eot_token, *part] for part in rest), first)
        if disallowed_special == "all" or END_OF_TEXT in disallowed_special:
            raise ValueError(
                f"the text holds the special token {END_OF_TEXT!r}; pass allowed_special={{{END_OF_TEXT!r}}} to encode "
                "it as one token, or disallowed_special=() to encode it as plain text"
            )
        return self.encode_ordinary(text)

    def encode_ordinary_batch(self, text: Iterable[str], *, num_threads: int = 8) -> list[list[int]]:
        return [self.encode_ordinary(one) for one in text]

    def encode_batch(self, text: Iterable[str], *, num_threads: int = 8, **special: Any) -> list[list[int]]:
        return [self.encode(one, **special) for one in text]

    def encode_single_token(self, text_or_bytes: str | bytes) -> int:
        token = text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes
        if token == END_OF_TEXT.encode():
            return self.eot_token
        if len(token) != 1:
            raise KeyError(token)
        return token[0]

    def decode_single_token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise KeyError(f"{token} is not an id of the bytes encoding")
        return END_OF_TEXT.encode() if token == self.eot_token else bytes([token])

    def decode_tokens_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [self.decode_single_token_bytes(int(token)) for token in tokens]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.decode_tokens_bytes(tokens))

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        return self.decode_bytes(tokens).decode("utf-8", errors=errors)

    def decode_batch(
        self, batch: Iterable[Sequence[int]], *, errors: str = "replace", num_threads: int = 8
    ) -> list[str]:
        return [self.decode(tokens, errors) for tokens in batch]

    def is_special_token(self, token: int) -> bool:
        return token == self.eot_token

    def token_byte_values(self) -> list[bytes]:
        return [bytes([value]) for value in range(256)]


@functools.lru_cache
def get_encoding(name: str) -> Encoding:
    """The encoding called `name`: one of ENCODING_NAMES. Loaded once a process.

    Raises GptfastError for an unknown name, or when the vocabulary is neither cached nor reachable.
    """
    if name == "bytes":
        return Encoding(_ByteCore(), name, "bytes")
    if name not in TIKTOKEN_NAMES:
        near = difflib.get_close_matches(name, ENCODING_NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise GptfastError(f"unknown tokenizer {name!r}; {hint}known: {', '.join(ENCODING_NAMES)}")
    import tiktoken

    try:
        core = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # no network and no cache, or a cached file that is not what it should be
        reason = str(error).split(" (Caused")[0].splitlines()[0][:200]
        raise GptfastError(
            f"the vocabulary of {name!r} could not be loaded ({reason}); set TIKTOKEN_CACHE_DIR to a folder that holds "
            "it, connect once so that it can be downloaded, or use the encoding 'bytes', which needs none"
        ) from error
    return Encoding(core, name, core._pat_str)
