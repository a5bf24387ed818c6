"""GPT-2's spelling of bytes as printable characters, in which vocab.bpe, encoder.json and tokenizer.json are written.

Bytes that print as themselves in Latin-1 stay; the others, in order, become U+0100 and on (a space is "Ġ", U+0120).
"""

from __future__ import annotations

from collections.abc import Iterable

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(value for value in range(256) if value not in _PRINTABLE)
BYTES = (*_PRINTABLE, *_OTHERS)  # in the order in which GPT-2 numbers them
ALPHABET = "".join(map(chr, _PRINTABLE)) + "".join(chr(0x100 + i) for i in range(len(_OTHERS)))

_TO_LATIN = dict(zip(map(ord, ALPHABET), map(chr, BYTES), strict=True))
_TO_ALPHABET = {ord(latin): chr(character) for character, latin in _TO_LATIN.items()}
_KNOWN = frozenset(ALPHABET)


def spell(token: bytes) -> str:
    return token.decode("latin-1").translate(_TO_ALPHABET)


def unspell(text: str) -> bytes | None:
    """The bytes that `text` spells; None where it has characters that spell none."""
    return text.translate(_TO_LATIN).encode("latin-1") if _KNOWN.issuperset(text) else None


def unspell_all(texts: Iterable[str]) -> list[bytes] | None:
    """The same for many at once, several times as fast."""
    texts = list(texts)
    data = unspell("".join(texts))
    if data is None:
        return None
    tokens, start = [], 0
    for text in texts:
        tokens.append(data[start : start + len(text)])
        start += len(text)
    return tokens
