"""Split patterns: `Splitter` and the core's own splitters, piece by piece, against tiktoken."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptfast import _core
from gptfast.errors import GptfastError
from gptfast.tokenizer.patterns import PATTERNS, Splitter, known_pattern

BYTES = [bytes([value]) for value in range(256)]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# What tokenizers in the wild use, then a pattern or more for each thing that the two engines write or see differently.
CUSTOM = [
    LLAMA_3,
    LLAMA_3.replace("{1,3}", ""),  # Qwen 2
    LLAMA_3.replace("{1,3}", "{1,2}"),  # nanochat
    r"\p{N}{1,3}|[一-龥぀-ゟ゠-ヿ]+|"  # DeepSeek V3
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\w+|[^\w\s]+|\s+",
    r"[\w']+",  # the rest is skipped
    r"\p{L}+",
    r"(?i)\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s",
    r"[^\n]+|\n",
    r".",
    r"(?s).{1,3}",
    r"\s+$|\S+|\s",
    r"(?m)^[^\n]+$|\n",
    r"(?m)\s+$|\S|\s",
    r"a$|b\z|\A.|(?s:.)\Z|[^ab]",
    r"\b\w+\b|\B.|\s",
    r"\b{start}\w|\w\b{end}|\<.|.\>",
    r"(?<=a)b|(?<!a)b|a(?=b)|[^ab]",
    r"(?<=\s\w{1,3})\w|\w+?(?=\w)|.",
    r"(?>a+)b|a++|(?:ab){2}+|a{1,2}|.|x{,3}y",
    r"([a-zé])\1|(?P<x>\s)(?P=x)|(?<y>[!-/])\k<y>|\w",
    r"(?i)(k)\1|s+|[^k]",
    r"(?i:[a-z]+)|[A-Z]+|\d+",
    r"(?i:straße|ǆ|ſt|i̇)|(?i)[à-ý]+|[i]|.",
    r"(?i)i+|[^i]",
    r"(?i)[İ-ň]+|ı|I",
    r"(?i)[^ı]",
    r"(?i)\p{Lu}+|\p{Nd}+|[^\p{Ll}]",
    r"((?i)a)b+|.",  # the flag outlives its capture group
    r"(?:(?i)a)b+|.",
    "(?x) a b  # a comment | with a bar\n | [ ] \\# (?#another)+ | .",
    r"[[:alpha:]]+|[[:^ascii:]]+|[[:punct:][:space:]]",
    r"[\w&&[^\d_]]+|[\p{L}--[a-zA-Z]~~\d]+|[a-z--b-d&&c-z]",
    r"[]a]+|[^]a]|[-a]|[a-]|[a-c-e]",
    r"[a[b-d]&&[^c]]+|[&|~-]",
    r"[\x{4e00}-\x{9fff}\u{3040}-\u30FF]+|\x61|\U0001F600|[\u0590-\u05ff\u0600-ۿ]+",
    r"\h+|\H",
    r"\R|\N|\O",
    r"\p{Greek}+|\p{Han}+|\p{Script=Cyrillic}+|\p{^L}|\P{Latin}|\p{Latin}",
    r"\p{graph}+|\p{blank}|\P{print}",
    r"a{|a{2|{1,}|x{2}|}|\{|]",
    r"ab{1,2}?|a{2}{3}|a+{2}|.",
    r"a\Kb|.",
    r"(?:a|b(?:c|d))*?e|[a-e]",
    r"\p{Cn}|\p{L}|\p{M}|\p{N}",
]
# Letters in which the engines or Unicode versions differ, and a few of every class.
LETTERS = (
    "abcdeszxikAKSTI'’ \t\n\r\v\x1c\x85\xa0\u2028\u3000 019½٣Ⅷ_-.,!?#$&|~[]{}\\/"
    "éßẞſıİKſµΩσςǅǆʕʖɷɼĸℐÅø中文字ひ가ا한עऀ़́⃝️\u200b\u200d\ufeff😀👍🏽"
    "\u0378\u0558\u0590\u05c8\u088f\u0c5c\u1acf\u1c89\u20c1\ua7ce\ua7d2\ua7d3\ua7dd\uab6c\ud7ff\uffff\ufffd"
    "\U00010940\U00010d50\U00011de0\U000105c0\U00016ebb\U0001f8d0\U000323af\U000323b0\U00033479\U000e0100\U0010ffff"
)
characters = st.one_of(st.sampled_from(LETTERS), st.sampled_from("ab '\n1"), st.characters(codec="utf-8"))
texts = st.text(characters, max_size=24)


def tiktoken_pieces(pattern: str, text: str) -> list[bytes]:
    """The pieces into which tiktoken splits. Every part of the text is a token, so that a piece is one token."""
    data = text.encode()
    parts = {data[i:j] for i in range(len(data)) for j in range(i + 2, len(data) + 1)}
    tokens = BYTES + sorted(parts)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("parts", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return [tokens[token] for token in encoding.encode_ordinary(text)]


@functools.cache
def splitter(pattern: str) -> Splitter:
    return Splitter(pattern)


def cut(data: bytes, ends: np.ndarray) -> list[bytes]:
    bounds = [0, *ends.tolist()]
    assert bounds[-1] == len(data)
    return [data[i:j] for i, j in itertools.pairwise(bounds)]


def core_pieces(name: str, text: str) -> list[bytes]:
    return cut(text.encode(), _core.BPE(BYTES, list(range(256)), {}, name).split(text))


@pytest.mark.parametrize("pattern", CUSTOM)
def test_splitter_is_tiktoken(pattern):
    @settings(max_examples=60, deadline=None)
    @example(LETTERS)
    @example("straße STRASSE İstanbul ıIiİ kKK'sſ'ſ 's'S ab aB Ab\n \n a\n\n")
    @example("\n \r\n  a\t\n")
    @example("")
    @given(texts)
    def check(text):
        assert cut(*splitter(pattern).pieces(text)) == tiktoken_pieces(pattern, text)

    check()


CLASSES = [r"\w", r"\p{L}", r"\p{N}", r"\p{M}", r"\s", r"\P{C}", r"\p{Ll}", r"(?i)\p{Lu}", r"(?i)[^\p{Ll}]"]


@pytest.mark.parametrize("pattern", CLASSES)
def test_every_code_point_has_its_class_in_unicode_16(pattern):
    text = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    ranks = {value: rank for rank, value in enumerate(BYTES)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    expected = encoding.encode_to_numpy(text).astype(np.uint8).tobytes()
    assert splitter(pattern).pieces(text)[0] == expected


@pytest.mark.parametrize(("pattern", "name"), PATTERNS.items())
def test_every_spelling_of_a_known_pattern_is_that_pattern(pattern, name):
    assert known_pattern(pattern) == name
    bpe = _core.BPE(BYTES, list(range(256)), {}, name)
    for alphabet, longest in [("aZ' \n1!", 5), ("a's\n\r \t\u3000ſ/9é\u0301ǅ", 3)]:
        for length in range(longest + 1):
            for letters in itertools.product(alphabet, repeat=length):
                text = "".join(letters)
                data, ends = splitter(pattern).pieces(text)
                assert data == text.encode()
                assert np.array_equal(bpe.split(text), ends), repr(text)

    @settings(max_examples=150, deadline=None)
    @example(LETTERS)
    @given(texts)
    def check(text):
        expected = tiktoken_pieces(pattern, text)
        assert core_pieces(name, text) == expected
        assert cut(*splitter(pattern).pieces(text)) == expected

    check()


def test_tiktokens_own_patterns_are_known(gpt2_vocabulary):
    names = {"gpt2": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}
    for encoding, name in names.items():
        assert known_pattern(tiktoken.get_encoding(encoding)._pat_str) == name


def test_what_only_looks_like_a_known_pattern_is_not():
    assert known_pattern(LLAMA_3) is None  # also cl100k_base before tiktoken 0.7
    assert tiktoken_pieces(LLAMA_3, "a\n ") == [b"a", b"\n", b" "]
    assert core_pieces("cl100k", "a\n ") == [b"a", b"\n "]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "unclosed group at character 1"),
        ("a)", "unbalanced parenthesis"),
        ("[a", "unclosed set"),
        ("*a", "nothing to repeat"),
        ("a**", "nothing to repeat"),
        ("[z-a]", "range"),
        (r"\q", r"unknown escape \q"),
        (r"\x{110000}", "code point"),
        (r"\p{Nonsense}", "unknown property"),
        ("a\\", "trailing backslash"),
        (r"[[:nonsense:]]", "unknown class"),
        (r"(?<a>.)(?~b)", "unsupported group (?~b"),
        (r"(.)(?(1)a|b)", "unsupported group (?(1"),
        (r"(?U)a+", "unsupported flags (?U)"),
        (r"a\Gb", r"unknown escape \G"),
        (r"(?i)[a-z&&[^b]]", "not supported where case is ignored"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_named(pattern, reason):
    with pytest.raises(GptfastError) as error:
        Splitter(pattern)
    assert f"the split pattern {pattern!r} cannot be used: " in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("pattern", ["", "a*", "a*?", r"\b", "(?=a)", "x*|a"])
def test_empty_matches_are_no_pieces(pattern):
    data, ends = Splitter(pattern).pieces("baab ä a" * 100)
    assert set(data.decode()) <= {"a"}
    assert (np.diff(ends, prepend=0) > 0).all()


def test_surrogates_are_no_text():
    with pytest.raises(UnicodeEncodeError, match="'utf-8' codec"):
        Splitter(r"\w+").pieces("a\ud800")
