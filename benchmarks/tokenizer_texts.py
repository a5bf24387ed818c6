"""The texts that tokenizers and data preparation are measured with, as UTF-8."""

from __future__ import annotations

import lzma
import os
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

# The folder with data/ (texts) and tiktoken/ (vocabularies): GPTFAST_SHARED, or ../shared beside the checkout.
SHARED = Path(os.environ.get("GPTFAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CORPORA = ("english", "code", "multilingual", "nonlatin", "html")
WORST = ("a", "spaces", "digits", "letters", "emoji", "marks", "newlines")
MILLION = 1_000_000
RANGES = {"digits": (48, 58), "letters": (97, 123), "emoji": (0x1F600, 0x1F650), "marks": (0x300, 0x370)}


def write_texts(data: Path, folder: Path, quick: bool) -> dict[str, int]:
    """All texts as `folder`/NAME.txt; returns their sizes in bytes."""
    sizes = {}
    for name, text in (*corpora(data, quick), *unique(quick), *worst()):
        (folder / f"{name}.txt").write_bytes(text)
        sizes[name] = len(text)
    return sizes


def corpora(data: Path, quick: bool) -> Iterator[tuple[str, bytes]]:
    """12 MB of English novels; the others as they are (4 MB), because repeating a text would flatter caches."""

    def read(name: str) -> str:
        with lzma.open(data / name) as file:
            return file.read(2 * MILLION if quick else 12 * MILLION).decode("utf-8", "ignore")

    yield "english", read("novels/novels_train.txt.xz").encode()
    for name in ("code", "html", "multilingual"):
        text = read(f"text/{name}.txt.xz")
        yield name, text.encode()
    yield "nonlatin", "".join(line for line in text.splitlines(keepends=True) if not mostly_latin(line)).encode()


def mostly_latin(line: str) -> bool:
    """Whether at least half of the letters are Latin, or there are none."""
    letters = [char for char in line if char.isalpha()]
    return 2 * sum(map(is_latin, letters)) >= len(letters)


@cache
def is_latin(char: str) -> bool:
    return unicodedata.name(char, "").startswith("LATIN")


def unique(quick: bool) -> Iterator[tuple[str, bytes]]:
    """Twice 100 MB of words of 8 to 12 random letters; of 9 million a few dozen occur again."""
    size = 10 * MILLION if quick else 100 * MILLION
    for name, seed in (("unique", 0), ("unique2", 1)):
        rng = np.random.default_rng(seed)
        count = size // 10
        grid, lengths = rng.integers(97, 123, (count, 13), dtype=np.uint8), rng.integers(8, 13, count)
        grid[np.arange(count), lengths] = 32
        yield name, grid[np.arange(13) <= lengths[:, None]].tobytes()[:size]


def worst() -> Iterator[tuple[str, bytes]]:
    """A million characters of each kind that has no place to split, or nothing but places."""
    rng = np.random.default_rng(0)
    for name, char in (("a", "a"), ("spaces", " "), ("newlines", "\n")):
        yield name, (char * MILLION).encode()
    for name, (first, end) in RANGES.items():
        yield name, "".join(map(chr, rng.integers(first, end, MILLION))).encode()


def random_words(size: int) -> bytes:
    """`size` bytes of English-like text without any file: 50,000 words of random letters, by Zipf's law, in sentences
    of 12 and paragraphs of 120; always the same.
    """
    rng = np.random.default_rng(0)
    lengths = 1 + rng.poisson(4, 50_000)
    words = ["".join(map(chr, rng.integers(97, 123, n))) for n in lengths]
    chances = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), 120 * (size // 500 + 1), p=chances / chances.sum()).reshape(-1, 10, 12)
    paragraphs = (". ".join(" ".join(words[i] for i in line) for line in lines) for lines in drawn)
    return ".\n\n".join(paragraphs).encode()[:size]
