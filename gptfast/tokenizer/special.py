"""Special tokens in text: finding them, and tiktoken's complaint about those that were not expected."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Set
from typing import NoReturn

from ..errors import GptfastError

Special = str | Collection[str]  # "all" or the names of special tokens


@functools.lru_cache(maxsize=128)
def special_regex(tokens: frozenset[str]) -> re.Pattern[str]:
    """Matches any of `tokens`; of several that begin at one place the longest."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=lambda token: (-len(token), token))))


@functools.lru_cache(maxsize=128)
def _common_character(tokens: frozenset[str]) -> str:
    """A character that is in every token, or "". The largest: of "<|name|>" that is "|", the rarest in prose."""
    return max(set.intersection(*map(set, tokens)), default="")


def find_special(text: str, tokens: frozenset[str]) -> re.Match[str] | None:
    """The first of `tokens` in `text`."""
    if _common_character(tokens) not in text:  # a search for one character is many times faster
        return None
    return special_regex(tokens).search(text)


def occurring(texts: Iterable[str], tokens: frozenset[str]) -> list[str]:
    """Those of `tokens` that are in `texts`, as they are read from left to right."""
    character, found = _common_character(tokens), set[str]()
    for text in texts:
        if character in text:
            found.update(special_regex(tokens).findall(text))
    return list(found)


def allowed_in(text: str, specials: frozenset[str], allowed: Special, disallowed: Special) -> Set[str]:
    """The special tokens to recognise in `text`, by tiktoken's rules. Raises ValueError where it holds another."""
    if allowed == "all":
        allowed = specials
    if disallowed == "all" and allowed is not specials:
        disallowed = specials - allowed if allowed else specials  # type: ignore[operator]  # TypeError if it is no set
    elif disallowed == "all":
        disallowed = ()
    if disallowed and (found := find_special(text, frozenset(disallowed))):
        raise_disallowed_special_token(found.group())
    return allowed  # type: ignore[return-value]


def raise_disallowed_special_token(token: str) -> NoReturn:
    raise GptfastError(
        f"Encountered text corresponding to disallowed special token {token!r}: to encode it as that token, pass "
        f"allowed_special={{{token!r}, ...}}; to encode it as plain text, pass "
        f"disallowed_special=(enc.special_tokens_set - {{{token!r}}}), or disallowed_special=() for all special tokens"
    )
