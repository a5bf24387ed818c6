r"""Split patterns: which of the core's hand-written ones a `pat_str` is, and a splitter for every other `pat_str`.

tiktoken runs its patterns in Rust (fancy-regex, Unicode 16). `Splitter` runs them in the PyPI package `regex`,
translated by rust_syntax, on text where equals replace the code points that the two engines see differently. What may
differ still:

- A set that names every neighbour of a code point that Unicode assigned after 16 leaves no equal to replace it with,
  and a back-reference takes two code points that have the same equal for one.
- Properties other than categories and scripts, where they changed after Unicode 16 for old code points
  (Extended_Pictographic did) or are known to one engine only (Age). Where case is ignored, the script and rarer
  properties of U+0130, and its case if the pattern names it.
- A group that repeats and may match nothing, such as (a|b*)*, and what a capture group holds after such a repeat.
- Where tiktoken panics, this does not: an empty match is no piece, and there is no limit on backtracking.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import regex

from ..errors import GptfastError
from .rust_syntax import Translation, Unsupported, translate
from .unassigned import UNASSIGNED

CODE_POINTS = 0x110000

# Each with the spellings that published encodings use for it; tests/tokenizer/test_patterns.py proves them equal.
# cl100k_base before tiktoken 0.7, Llama 3's and other patterns without `\s++$` are not: they split a final "\n ".
_CONTRACTIONS = "'(?:[sdmt]|ll|ve|re)"
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
PATTERNS = {
    _CONTRACTIONS + r"| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt2",
    _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s": "cl100k",
    _O200K: "o200k",
}


def known_pattern(pat_str: str) -> str | None:
    """ "gpt2", "cl100k" or "o200k" where the core has a splitter for exactly this pattern, else None."""
    return PATTERNS.get(pat_str)


class Splitter:
    """Splits text by any pattern of tiktoken's. Raises GptfastError for one that is not valid or not supported."""

    def __init__(self, pat_str: str) -> None:
        self.pat_str = pat_str
        try:
            self._translation = translate(pat_str)
            self._regex = regex.compile(self._translation.pattern)
        except (Unsupported, regex.error) as error:
            raise GptfastError(f"the split pattern {pat_str!r} cannot be used: {error}") from error

    def pieces(self, text: str) -> tuple[bytes, np.ndarray]:
        """The pieces of `text` joined (UTF-8), and where each ends in them (int64 [N], bytes).

        Text that the pattern does not match is in no piece, as in tiktoken. Raises UnicodeEncodeError for surrogates.
        """
        data = text.encode()
        widths = None
        if not text.isascii():
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
            replaced = self._stand_ins[codes]
            if not np.array_equal(replaced, codes):
                text = replaced.tobytes().decode("utf-32-le")
        if not self._regex.groups:  # the fast way: no match objects
            lengths = np.fromiter(map(len, self._regex.findall(text)), np.int64)
            if lengths.sum() == len(text) and lengths.all():
                ends = np.cumsum(lengths)
                return data, ends if widths is None else np.cumsum(widths)[ends - 1]
        spans = np.fromiter(chain.from_iterable(self._spans(text)), np.int64).reshape(-1, 2)
        if widths is not None:
            spans = np.concatenate([[0], np.cumsum(widths)])[spans]
        pieces = [data[start:end] for start, end in spans.tolist()]
        return b"".join(pieces), np.cumsum(spans[:, 1] - spans[:, 0])

    def _spans(self, text: str) -> Iterable[tuple[int, int]]:
        spans = [match.span() for match in self._regex.finditer(text)]
        return self._spans_one_by_one(text) if any(start == end for start, end in spans) else spans

    def _spans_one_by_one(self, text: str) -> Iterator[tuple[int, int]]:
        # After an empty match Rust goes on one character further; `regex` first looks for another match right there.
        at = 0
        while at <= len(text) and (match := self._regex.search(text, at)):
            start, end = match.span()
            if start < end:
                yield start, end
            at = end + (start == end)

    @property
    def compiled(self) -> regex.Pattern[str]:
        return self._regex

    @functools.cached_property
    def _stand_ins(self) -> np.ndarray:
        return _stand_ins(self._translation)


@functools.cache
def _assigned_later() -> tuple[np.ndarray, np.ndarray]:
    """Of the code points that Unicode 16 has not assigned: those that `regex` takes for assigned, and the others."""
    vacant = np.zeros(CODE_POINTS, dtype=bool)
    for word in UNASSIGNED.split():
        first, _, last = word.partition("-")
        vacant[int(first, 16) : int(last or first, 16) + 1] = True
    # Unicode plans nothing for planes 4 to 13, three quarters of the vacant ones.
    planned = vacant.copy()
    planned[0x40000:0xE0000] = False
    candidates = np.flatnonzero(planned).astype(np.uint32)
    later = "".join(regex.findall(r"\P{Cn}+", candidates.tobytes().decode("utf-32-le")))
    assigned = np.frombuffer(later.encode("utf-32-le"), np.uint32)
    vacant[assigned] = False
    return assigned, np.flatnonzero(vacant)


def _stand_ins(translation: Translation) -> np.ndarray:
    """What to put in place of each code point [0x110000] so that `regex` sees the class that it has in Unicode 16.

    Every code point and its stand-in lie in the same part of the line of code points, as cut by the characters and
    ranges that the pattern names, so that the pattern cannot tell them apart by anything but their properties.
    """
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    cuts = np.array(sorted({0, CODE_POINTS} | translation.cuts))

    def replace(code_points: np.ndarray, candidates: np.ndarray) -> None:
        part = np.searchsorted(cuts, code_points, "right")
        first = np.minimum(np.searchsorted(candidates, cuts[part - 1]), len(candidates) - 1)
        found = (candidates[first] >= cuts[part - 1]) & (candidates[first] < cuts[part])
        table[code_points[found]] = candidates[first[found]]

    replace(*_assigned_later())
    replace(np.array([0x295]), np.array([0x296]))  # Lo since Unicode 17, Ll before
    if translation.ignores_case:
        # `regex` takes both for other cases of I and i, which they are in Turkish; letters without case stand in.
        replace(np.array([0x130]), np.array([0x2110]))
        replace(np.array([0x131]), np.array([0x138]))
        # Lower-case letters that got their upper case in Unicode 17 and 18.
        replace(np.array([0x277, 0x27C, 0xA7D3, 0xA7D5, 0xAB4B, 0xAB4C]), np.array([0x138]))
    return table
