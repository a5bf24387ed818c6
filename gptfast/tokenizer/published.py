"""The vocabularies that OpenAI has published: addresses, sha256, split patterns and special tokens. Data only.

They are facts that tiktoken states too, kept here because loading tiktoken takes longer than loading a vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable


def special(*names: str) -> tuple[str, ...]:
    """The special tokens of these names.

    None stands whole in the source: hypothesis draws the constants of a package into random text, and text that is a
    special token is refused.
    """
    return tuple(f"<|{name}|>" for name in names)


(END_OF_TEXT,) = special("endoftext")
ADDRESS = "https://openaipublic.blob.core.windows.net/"

# The core's name of a pattern -> the pattern as tiktoken spells it.
PAT_STR = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class Source:
    """A file that OpenAI publishes: its path below ADDRESS, and the sha256 of its content."""

    def __init__(self, path: str, sha256: str) -> None:
        self.path, self.sha256 = path, sha256

    @property
    def url(self) -> str:
        return ADDRESS + self.path

    @property
    def cache_name(self) -> str:
        """What tiktoken's cache calls it."""
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()


class Published:
    """One encoding. Each of `sources` has all of its tokens; the first is the one to download."""

    def __init__(
        self, sources: tuple[Source, ...], pattern: str, special_tokens: Callable[[], dict[str, int]], n_vocab: int
    ) -> None:
        self.sources, self.pattern, self.n_vocab = sources, pattern, n_vocab
        self._special_tokens = special_tokens

    @property
    def special_tokens(self) -> dict[str, int]:
        return self._special_tokens()


def _tiktoken(name: str, sha256: str) -> Source:
    return Source(f"encodings/{name}.tiktoken", sha256)


R50K = _tiktoken("r50k_base", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930")
P50K = _tiktoken("p50k_base", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069")
CL100K = _tiktoken("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7")
O200K = _tiktoken("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d")
# GPT-2's merges. They make r50k_base's tokens in the same order (tests/tokenizer/test_vocabularies.py), so that either
# file serves for both names, and encoder.json, which numbers them, is not needed.
MERGES = Source("gpt-2/encodings/main/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")


def _numbered(first: int, *names: str) -> dict[str, int]:
    return dict(zip(special(*names), range(first, first + len(names)), strict=True))


def _gpt2() -> dict[str, int]:
    return {END_OF_TEXT: 50_256}


def _p50k_edit() -> dict[str, int]:
    return _gpt2() | _numbered(50_281, "fim_prefix", "fim_middle", "fim_suffix")


def _cl100k() -> dict[str, int]:
    names = ("endoftext", "fim_prefix", "fim_middle", "fim_suffix")
    return _numbered(100_257, *names) | _numbered(100_276, "endofprompt")


def _o200k() -> dict[str, int]:
    return {END_OF_TEXT: 199_999} | _numbered(200_018, "endofprompt")


def _harmony() -> dict[str, int]:
    named = {
        199_998: "startoftext", 199_999: "endoftext", 200_002: "return", 200_003: "constrain", 200_005: "channel",
        200_006: "start", 200_007: "end", 200_008: "message", 200_012: "call",
    }  # fmt: skip
    return _o200k() | _numbered(199_998, *(named.get(i, f"reserved_{i}") for i in range(199_998, 201_088)))


PUBLISHED = {
    "gpt2": Published((R50K, MERGES), "gpt2", _gpt2, 50_257),
    "r50k_base": Published((R50K, MERGES), "gpt2", _gpt2, 50_257),
    "p50k_base": Published((P50K,), "gpt2", _gpt2, 50_281),
    "p50k_edit": Published((P50K,), "gpt2", _p50k_edit, 50_284),
    "cl100k_base": Published((CL100K,), "cl100k", _cl100k, 100_277),
    "o200k_base": Published((O200K,), "o200k", _o200k, 200_019),
    "o200k_harmony": Published((O200K,), "o200k", _harmony, 201_088),
}
