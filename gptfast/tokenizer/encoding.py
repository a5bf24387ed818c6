"""`Encoding`: text to token ids and back, with tiktoken's interface and more than it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any

from ..errors import GptfastError
from . import core
from .decoding import Decoding
from .published import END_OF_TEXT
from .special import Special, allowed_in, occurring
from .threads import thread_count

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from .offsets import Offsets

PARALLEL_CHARS = 1 << 16  # shorter text is encoded before a thread has started
FEW_SPECIAL = 16  # so many are handed to the core as they are
NONE: frozenset[str] = frozenset()


class Encoding(Decoding):
    """tiktoken's `Encoding`, method for method, plus `encode_file`, `encode_iterator`, `count`, `train` and others.

    Wherever `num_threads` is None, the environment variable GPTFAST_NUM_THREADS counts, and without it all cores are
    used. The ids do not depend on it. An Encoding never changes: any number of threads may use one.
    """

    def __init__(
        self,
        name: str,
        *,
        pat_str: str,
        mergeable_ranks: dict[bytes, int],
        special_tokens: dict[str, int],
        explicit_n_vocab: int | None = None,
    ) -> None:
        """An encoding of your own: `mergeable_ranks` gives each token's id, and the ids are the order of merging.

        Raises GptfastError where that is no byte-level vocabulary, and AssertionError where `explicit_n_vocab` is not
        the number of tokens.
        """
        tokens = sorted(mergeable_ranks, key=mergeable_ranks.__getitem__)
        ids = [mergeable_ranks[token] for token in tokens]
        if not ids:
            raise GptfastError(
                f"the encoding {name!r} has no tokens; a byte-level vocabulary needs at least all 256 bytes"
            )
        largest = max(ids[-1], *special_tokens.values(), 0)
        if explicit_n_vocab:
            assert len(ids) + len(special_tokens) == explicit_n_vocab
            assert largest == explicit_n_vocab - 1
        self._set(name, pat_str, core.build(tokens, ids, special_tokens, pat_str), special_tokens, largest)

    def _set(self, name: str, pat_str: str, bpe: Any, special_tokens: dict[str, int], max_token_value: int) -> None:
        self.name, self._pat_str, self.max_token_value = name, pat_str, max_token_value
        self._bpe = bpe
        self._special_tokens = dict(special_tokens)
        self._special_token_values = set(special_tokens.values())
        self._all_special = frozenset(special_tokens)

    @classmethod
    def _from_core(
        cls, name: str, pat_str: str, bpe: Any, special_tokens: dict[str, int], max_token_value: int
    ) -> Encoding:
        """Around an encoder that is already built."""
        encoding = cls.__new__(cls)
        encoding._set(name, pat_str, bpe, special_tokens, max_token_value)
        return encoding

    @classmethod
    def train(
        cls,
        texts_or_files: Path | Iterable[str | Path],
        vocab_size: int,
        *,
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        name: str = "trained",
        num_threads: int | None = None,
        progress: Callable[[str, int, int | None], object] | None = None,
    ) -> Encoding:
        """A new vocabulary of `vocab_size` tokens, learned from documents (str) and files (Path).

        `pattern` is "gpt2", "cl100k", "o200k" or a `pat_str`. Memory, ties and errors: `gptfast.tokenizer.train.train`.
        """
        from .train import train

        return train(
            texts_or_files,
            vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            name=name,
            threads=num_threads,
            progress=progress,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary: .tiktoken as tiktoken loads it, or .json as tokenizers loads it (tokenizer.json)."""
        from .formats import save

        save(self, path)

    def __repr__(self) -> str:
        return f"<Encoding {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from .vocabularies import ENCODINGS, get_encoding

        if ENCODINGS.get(self.name) is self:
            return get_encoding, (self.name,)
        return _rebuild, (type(self), self.name, self._pat_str, self._mergeable_ranks, self._special_tokens)

    def __copy__(self) -> Encoding:
        return self

    def __deepcopy__(self, memo: Any) -> Encoding:
        return self

    # Encoding

    def encode_ordinary(self, text: str, *, num_threads: int | None = None) -> list[int]:
        """The ids of `text`; special tokens in it are plain text."""
        return self._encode(text, NONE, num_threads)

    def encode(
        self,
        text: str,
        *,
        allowed_special: Special = NONE,
        disallowed_special: Special = "all",
        num_threads: int | None = None,
    ) -> list[int]:
        """The ids of `text`, in which the special tokens of `allowed_special` ("all", or a set) are recognised.

        Raises ValueError where it holds one of `disallowed_special`: by default any that is not allowed, since text
        from outside should not steer a model; () lets them be plain text.
        """
        allowed = allowed_in(text, self._all_special, allowed_special, disallowed_special)
        return self._encode(text, allowed, num_threads)

    def _encode(self, text: str, allowed: Set[str], num_threads: int | None) -> list[int]:
        special, threads = self._known(allowed, [text]), _threads(num_threads, text)
        try:
            ids: list[int] = self._bpe.encode(text, special, threads)
        except UnicodeEncodeError:
            ids = self._bpe.encode(_without_surrogates(text), special, threads)
        return ids

    def encode_to_numpy(
        self,
        text: str,
        *,
        allowed_special: Special = NONE,
        disallowed_special: Special = "all",
        num_threads: int | None = None,
    ) -> np.ndarray:
        """`encode` to a uint32 array [N], without a Python list in between. UnicodeEncodeError for lone surrogates."""
        allowed = allowed_in(text, self._all_special, allowed_special, disallowed_special)
        ids: np.ndarray = self._bpe.encode_to_numpy(text, self._known(allowed, [text]), _threads(num_threads, text))
        return ids

    def encode_ordinary_batch(self, text: Iterable[str], *, num_threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text, in parallel."""
        return self.encode_batch(text, num_threads=num_threads, disallowed_special=())

    def encode_batch(
        self,
        text: Iterable[str],
        *,
        num_threads: int | None = None,
        allowed_special: Special = NONE,
        disallowed_special: Special = "all",
    ) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        texts, allowed = self._batch(text, allowed_special, disallowed_special)
        try:
            ids: list[list[int]] = self._bpe.encode_batch(texts, allowed, thread_count(num_threads))
        except UnicodeEncodeError:
            texts = [_without_surrogates(text) for text in texts]
            ids = self._bpe.encode_batch(texts, allowed, thread_count(num_threads))
        return ids

    def encode_batch_to_numpy(
        self,
        text: Iterable[str],
        *,
        num_threads: int | None = None,
        allowed_special: Special = NONE,
        disallowed_special: Special = "all",
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one array uint32 [N], and where each text's begin and end, int64 [B + 1]."""
        texts, allowed = self._batch(text, allowed_special, disallowed_special)
        result: tuple[np.ndarray, np.ndarray]
        try:
            result = self._bpe.encode_batch_to_numpy(texts, allowed, thread_count(num_threads))
        except UnicodeEncodeError:
            texts = [_without_surrogates(text) for text in texts]
            result = self._bpe.encode_batch_to_numpy(texts, allowed, thread_count(num_threads))
        return result

    def _batch(self, text: Iterable[str], allowed: Special, disallowed: Special) -> tuple[list[str], list[str]]:
        texts = list(text)
        allowed_set = allowed_in("", self._all_special, allowed, disallowed)
        if disallowed:
            for one in texts:
                allowed_in(one, self._all_special, allowed_set, disallowed)
        return texts, self._known(allowed_set, texts)

    def encode_iterator(
        self, chunks: Iterable[str], *, allowed_special: Special = NONE, disallowed_special: Special = "all"
    ) -> Iterator[int]:
        """The ids of the text that `chunks` are when joined, one after the other, however it is cut into chunks.

        Memory is bounded by the longest chunk, except in text that nowhere has a place to cut (a million letters
        without a space), and for a `pat_str` that is not of a known shape: that text is held until its end.
        """
        from .streaming import parts

        allowed = frozenset(allowed_in("", self._all_special, allowed_special, disallowed_special))
        disallowed = self._all_special - allowed if disallowed_special == "all" else disallowed_special
        for part in parts(chunks, frozenset(self._known(allowed)), frozenset(disallowed), self._can_cut):
            yield from self._encode(part, allowed, None)

    def encode_file(
        self,
        path: str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        *,
        allowed_special: Special = "all",
        num_threads: int | None = None,
    ) -> np.ndarray:
        """The ids of a UTF-8 file as an array of `self.dtype`; special tokens in it separate documents.

        The file is mapped, not read, and encoded on all threads. `out` names a .npy to write, whole or not at all: then
        memory is bounded, and the array returned is mapped too. Raises GptfastError that names the byte where the file
        is no UTF-8.
        """
        from .files import encode_file

        special = self._known(allowed_in("", self._all_special, allowed_special, ()))
        return encode_file(self._bpe, path, out, self.dtype, special, thread_count(num_threads), self._can_cut)

    def encode_with_offsets(
        self, text: str, *, allowed_special: Special = NONE, disallowed_special: Special = "all"
    ) -> Offsets:
        """`encode`, and where each token begins in the UTF-8 bytes and in the characters of `text`."""
        from .offsets import locate

        allowed = allowed_in(text, self._all_special, allowed_special, disallowed_special)
        text = _without_surrogates(text)
        ids = self._bpe.encode_to_numpy(text, self._known(allowed, [text]), _threads(None, text))
        return locate(text, ids, self._token_lengths)

    def encode_with_unstable(
        self, text: str, *, allowed_special: Special = NONE, disallowed_special: Special = "all"
    ) -> tuple[list[int], list[list[int]]]:
        """The tokens of `text` that stay whatever follows it, and what may come after them: see core_bpe.py."""
        allowed = allowed_in(text, self._all_special, allowed_special, disallowed_special)
        return self._core_bpe.encode_with_unstable(text, allowed)

    def encode_single_token(self, text_or_bytes: str | bytes) -> int:
        """The id of one token, special ones included. Raises KeyError for anything else."""
        token = _bytes(text_or_bytes)
        try:
            return int(self._bpe.token_id(token))
        except KeyError:
            return self._core_bpe.encode_single_token(token)

    def count(self, text: str, *, num_threads: int | None = None) -> int:
        """The number of tokens of `text`; special tokens in it are plain text."""
        try:
            return int(self._bpe.count(text, _threads(num_threads, text)))
        except UnicodeEncodeError:
            return int(self._bpe.count(_without_surrogates(text), _threads(num_threads, text)))

    def truncate(self, text: str, max_tokens: int) -> str:
        """The beginning of `text` that its first `max_tokens` tokens hold, without half a character at the end."""
        from .streaming import BLOCK_CHARS, parts

        if max_tokens < 0:
            raise GptfastError(f"cannot truncate to {max_tokens} tokens; give 0 or more")
        kept = size = 0
        blocks = (text[i : i + BLOCK_CHARS] for i in range(0, len(text), BLOCK_CHARS))
        for part in parts(blocks, NONE, NONE, self._can_cut):
            ids = self._encode(part, NONE, None)
            if len(ids) > max_tokens - kept:
                data = self.decode_bytes(ids[: max_tokens - kept])
                return text[:size] + data.decode("utf-8", errors="ignore")
            kept, size = kept + len(ids), size + len(part)
        return text

    # What it consists of

    def token_byte_values(self) -> list[bytes]:
        """The bytes of every token but the special ones, sorted."""
        return self._core_bpe.token_byte_values()

    @property
    def eot_token(self) -> int:
        """The id of <|endoftext|>, which ends a document. Raises KeyError where there is none."""
        return self._special_tokens[END_OF_TEXT]

    @functools.cached_property
    def special_tokens_set(self) -> set[str]:
        """The texts of the special tokens."""
        return set(self._special_tokens)

    def is_special_token(self, token: int) -> bool:
        assert isinstance(token, int)
        return token in self._special_token_values

    @property
    def n_vocab(self) -> int:
        """The size of a model's vocabulary: one more than the largest id."""
        return self.max_token_value + 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id."""
        import numpy as np

        return np.dtype(np.uint16 if self.n_vocab <= 1 << 16 else np.uint32)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) over the split pattern, every token's bytes with its id, and the special tokens."""
        digest = hashlib.sha256(self._pat_str.encode())
        tokens = [f"\n{i} {token.hex()}" for token, i in sorted(self._mergeable_ranks.items())]
        tokens += [f"\n{self.encode_single_token(token)} {token}" for token in sorted(self._special_tokens)]
        digest.update("".join(tokens).encode())
        return digest.hexdigest()

    # tiktoken's private parts, which some programs use

    @functools.cached_property
    def _mergeable_ranks(self) -> dict[bytes, int]:
        ranks: dict[bytes, int] = self._bpe.mergeable_ranks()
        return ranks

    def _encode_single_piece(self, text_or_bytes: str | bytes) -> list[int]:
        """Byte-pair encoding of the whole, without splitting."""
        return self._core_bpe.encode_single_piece(_bytes(text_or_bytes))

    def _encode_only_native_bpe(self, text: str) -> list[int]:
        """`encode_ordinary` with the splitting done by a regex engine."""
        from .patterns import Splitter

        ids: list[int] = self._bpe.encode_pieces(*Splitter(self._pat_str).pieces(text)).tolist()
        return ids

    def _encode_bytes(self, text: bytes) -> list[int]:
        """The tokens of bytes that need not be UTF-8."""
        return self._core_bpe._encode_bytes(text)

    # Helpers

    @functools.cached_property
    def _token_lengths(self) -> np.ndarray:
        """uint32 [n_vocab]: the bytes of each id."""
        import numpy as np

        lengths = np.zeros(self.n_vocab, dtype=np.uint32)
        for special, i in self._special_tokens.items():
            lengths[i] = len(special.encode())
        for token, i in self._mergeable_ranks.items():
            lengths[i] = len(token)
        return lengths

    @functools.cached_property
    def _can_cut(self) -> bool:
        from .streaming import can_cut

        return can_cut(self._pat_str)

    def _known(self, allowed: Set[str], texts: Sequence[str] | None = None) -> list[str]:
        """The special tokens among `allowed`; of very many only those in `texts`, for which the core then looks."""
        if not allowed:
            return []
        known = self._all_special if allowed is self._all_special else self._all_special & allowed
        return list(known) if texts is None or len(known) <= FEW_SPECIAL else occurring(texts, known)


def _rebuild(
    cls: type[Encoding], name: str, pat_str: str, mergeable_ranks: dict[bytes, int], special_tokens: dict[str, int]
) -> Encoding:
    return cls(name, pat_str=pat_str, mergeable_ranks=mergeable_ranks, special_tokens=special_tokens)


def _threads(num_threads: int | None, text: str) -> int:
    return 1 if num_threads is None and len(text) < PARALLEL_CHARS else thread_count(num_threads)


def _bytes(text_or_bytes: str | bytes) -> bytes:
    return text_or_bytes.encode("utf-8") if isinstance(text_or_bytes, str) else text_or_bytes


def _without_surrogates(text: str) -> str:
    """Pairs of surrogates joined to the character they stand for, lone ones replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
