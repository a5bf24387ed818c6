"""The class of every code point, against tiktoken's regex engine, and the script that writes the tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from gptfast import _core

ROOT = Path(__file__).parents[2]
CODES = np.array([c for c in range(0x110000) if not 0xD800 <= c < 0xE000], dtype=np.uint32)
WIDTHS = 1 + (CODES >= 0x80).astype(np.int64) + (CODES >= 0x800) + (CODES >= 0x10000)
BYTES = [bytes([value]) for value in range(256)]

# Where a short text with the code point in it is split says what the splitter takes the code point for: each row has a
# class, and the boundaries right before and behind the code point ("_") in the five probes.
PROBES = [("o200k", "a", "a"), ("o200k", "1", "1"), ("o200k", "!", "!"), ("o200k", "A", "Aa"), ("gpt2", "a", "a")]
SIGNS = {
    "other": ["a|_a", "1|_|1", "!_!", "A|_Aa", "a|_|a"],
    "space": ["a|_a", "1|_|1", "!|_|!", "A|_Aa", "a|_|a"],
    "newline": ["a|_|a", "1|_|1", "!_|!", "A|_|Aa", "a|_|a"],
    "number": ["a|_|a", "1_1", "!|_|!", "A|_|Aa", "a|_|a"],
    "upper": ["a|_a", "1|_|1", "!_|!", "A_Aa", "a_a"],
    "lower": ["a_a", "1|_|1", "!_|!", "A_|Aa", "a_a"],
    "letter": ["a_a", "1|_|1", "!_|!", "A_Aa", "a_a"],
    "mark": ["a_a", "1|_|1", "!_|!", "A_Aa", "a|_|a"],
}
PATTERNS = {
    "other": r"[^\s\p{L}\p{N}\p{M}]",
    "space": r"[^\S\r\n]",
    "newline": r"[\r\n]",
    "number": r"\p{N}",
    "upper": r"[\p{Lu}\p{Lt}]",
    "lower": r"\p{Ll}",
    "letter": r"[\p{Lm}\p{Lo}]",
    "mark": r"\p{M}",
}


def tiktoken_members(pattern: str) -> np.ndarray:
    """The code points that the pattern matches in tiktoken: what it does not match has no token."""
    ranks = {value: rank for rank, value in enumerate(BYTES)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ids = encoding.encode_to_numpy(CODES.tobytes().decode("utf-32-le"))
    return np.frombuffer(ids.astype(np.uint8).tobytes().decode().encode("utf-32-le"), np.uint32)


def boundaries(pattern: str, before: str, after: str) -> np.ndarray:
    """For each code point of CODES: 2 if a piece ends before it, plus 1 if one ends behind it."""
    bpe = _core.BPE(BYTES, list(range(256)), {}, pattern)
    line = f"{before}_{after}\n"  # none of these ends can join a line's end or the next line
    text = np.tile(np.array([ord(c) for c in line], dtype=np.uint32), (len(CODES), 1))
    text[:, 1] = CODES
    ends = bpe.split(text.tobytes().decode("utf-32-le"))
    starts = np.concatenate([[0], np.cumsum(WIDTHS + len(line) - 1)])
    cut = np.zeros(starts[-1] + 1, dtype=np.int64)
    cut[ends] = 1
    return 2 * cut[starts[:-1] + 1] + cut[starts[:-1] + 1 + WIDTHS]


def test_every_code_point_has_the_class_that_tiktoken_gives_it():
    seen = [boundaries(*probe) for probe in PROBES]
    unclaimed = np.ones(len(CODES), dtype=bool)
    for name, signs in SIGNS.items():
        is_class = np.ones(len(CODES), dtype=bool)
        for sign, bits in zip(signs, seen, strict=True):
            before, after = sign.split("_")
            is_class &= bits == 2 * before.endswith("|") + after.startswith("|")
        if name == "space":  # U+0020 joins what follows
            is_class |= CODES == 0x20
        expected = tiktoken_members(PATTERNS[name])
        different = np.setxor1d(CODES[is_class], expected)
        assert not len(different), f"{name}: {len(different)} code points differ, first U+{different[0]:04X}"
        unclaimed &= ~is_class
    assert CODES[unclaimed].tolist() == []


def test_the_long_s_is_an_s_only_where_the_pattern_ignores_case():
    # U+017F is the one code point beyond ASCII that (?i:[sdmt]|ll|ve|re) matches.
    members = tiktoken_members("(?i:[sdmtlver])")
    assert members[members >= 0x80].tolist() == [0x17F]
    for pattern, pieces in {"gpt2": ["x", "'", "ſa"], "cl100k": ["x", "'ſ", "a"], "o200k": ["x'ſ", "a"]}.items():
        ends = _core.BPE(BYTES, list(range(256)), {}, pattern).split("x'ſa")
        assert ends.tolist() == np.cumsum([len(piece.encode()) for piece in pieces]).tolist(), pattern


def test_the_script_writes_the_files_that_are_here():
    spec = importlib.util.spec_from_file_location("unicode_tables", ROOT / "csrc" / "tools" / "unicode_tables.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        outputs = script.outputs()
    except SystemExit as reason:
        pytest.skip(str(reason))
    for path, text in outputs.items():
        assert path.read_text(encoding="ascii") == text, f"{path.name}: run csrc/tools/unicode_tables.py"
