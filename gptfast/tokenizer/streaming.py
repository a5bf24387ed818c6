"""Where text can be cut without changing its tokens, and the cutting of a stream of text at such places.

Let a text be read from left to right, pre-token by pre-token, as the patterns of GPT-2 and its successors do. They look
back at nothing, so what stands behind a cut splits as it would in the whole, if the cut is the end of a pre-token. That
end must not depend on text that was not there yet, though: ` \\n` can become ` \\n \\n`, and "x's" hangs on its "s".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .published import PAT_STR
from .special import raise_disallowed_special_token, special_regex

# In all of the known patterns a pre-token ends, whatever follows, at
#  - the left edge of a space after something else than white space: only white space is matched across it;
#  - the right edge of a lone line break, unless white space follows, or "/" (of an o200k match such as "//\n/");
#  - the left edge of punctuation after a letter or number, but for "'", which begins a contraction.
# What stands left of these edges is a whole run of its class, so no pattern has looked beyond the character at the cut.
# Python's \s and \w may know other characters than the pattern's: \S is never the patterns' white space, and \w without
# "_" never anything but a letter or number.
PUNCTUATION = (
    r"!-&(-/:-@\[-`{-~\u2014\u2026\u3001\u3002\u300C-\u300F\uFF01\uFF08\uFF09\uFF0C\uFF1A\uFF1B\uFF1F\u060C\u061F\u0964"
)
SAFE_CUT = re.compile(rf"(?<=\S)(?= )|(?<=\S\n)(?=[^\s/])|(?<=[^\W_])(?=[{PUNCTUATION}])")

BLOCK_CHARS = 1 << 14

# Patterns of the same shape: Llama 3's (cl100k_base before tiktoken 0.7), and Qwen 2's.
_ALIKE = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("{1,3}", "")
}


def can_cut(pat_str: str) -> bool:
    """Whether SAFE_CUT holds for this pattern."""
    from .patterns import known_pattern

    return pat_str in PAT_STR.values() or pat_str in _ALIKE or pat_str == "bytes" or known_pattern(pat_str) is not None


def last_cut(text: str, specials: frozenset[str] = frozenset()) -> int:
    """The last place where `text` can be cut, whatever follows it; 0 where there is none.

    It lies in no special token, nor where one may have begun whose end is not there yet.
    """
    longest = max(map(len, specials), default=1)
    end = len(text) - longest + 1
    stop, window = end, 256
    while stop > 0:
        start = max(stop - window, 0)
        # The character behind a cut is looked at, so the search goes one further.
        for found in reversed(list(SAFE_CUT.finditer(text, start, stop + 1))):
            cut = found.start()
            if 0 < cut <= stop and not (specials and _is_inside(text, cut, specials, longest)):
                return cut
        stop, window = start, window * 8
    return 0


def _is_inside(text: str, cut: int, specials: frozenset[str], longest: int) -> bool:
    """Whether any special token, wherever it begins, has text on both sides of `cut`."""
    start = max(cut - longest + 1, 0)
    while found := special_regex(specials).search(text, start, cut + longest - 1):
        if found.start() >= cut:
            return False
        if found.end() > cut:
            return True
        start = found.start() + 1
    return False


def parts(
    chunks: Iterable[str], allowed: frozenset[str], disallowed: frozenset[str], can_cut: bool = True
) -> Iterator[str]:
    """The text of `chunks`, cut so that the tokens of the parts are those of the whole.

    Holds a few dozen characters more than BLOCK_CHARS or the largest chunk, or as many as there are without a place to
    cut; all of them when not `can_cut`. Raises ValueError for a special token that is `disallowed`, before its part.
    """
    held, waiting, size, wanted = "", [], 0, BLOCK_CHARS
    longest = max(map(len, disallowed), default=1)
    for chunk in chunks:
        if not isinstance(chunk, str):
            raise TypeError(f"a chunk of text must be a str, not {type(chunk).__name__}")
        waiting.append(chunk)
        size += len(chunk)
        if size < wanted:
            continue
        before = len(held)
        held = "".join([held, *waiting])
        _refuse(held, disallowed, max(before - longest + 1, 0))
        cut = last_cut(held, allowed | disallowed) if can_cut else 0
        if cut:
            yield held[:cut]
            held = held[cut:]
        # Text without a place to cut is looked at again when there is twice as much of it: linear time in all.
        waiting, size, wanted = [], 0, max(BLOCK_CHARS, len(held))
    rest = "".join([held, *waiting])
    _refuse(rest, disallowed, max(len(held) - longest + 1, 0))
    if rest:
        yield rest


def _refuse(text: str, disallowed: frozenset[str], start: int) -> None:
    if disallowed and (found := special_regex(disallowed).search(text, start)):
        raise_disallowed_special_token(found.group())
