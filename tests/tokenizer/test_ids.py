"""The ids of every encoding are tiktoken's: real texts, every code point, pairs of all kinds, random text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiktoken
from fuzz_ids import END_OF_TEXT, SCRIPTS, differences, fuzz, text_difference, texts_in
from hypothesis import given, settings
from hypothesis import strategies as st

import gptfast

ENCODINGS = ["gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base"]
PATTERNS = ["gpt2", "cl100k_base", "o200k_base"]  # an encoding for each of the split patterns
CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# Of every class that a pattern tells apart, and of those that other implementations take for one of them.
KINDS = (
    "a Z s 'ſ \t\n\r\v\x85\xa0\u2028\u3000 \x1c\u200b\u180e 7½²٣Ⅷ〇 ß\u0295ªʰ ǅᾈ İı 中ひ가ع न\u0301\u0903\u20dd\ufe0f"
    " .,!/-_$|<> 😀🏽\u200d \ufeff\ufffd\0\x7f\uffff\U000e0100\U0010ffff\U00020000\u0378\u0558"
).replace(" ", "") + " "

CONTEXTS = ["A_Aa\n", "1_1\n", "!_!\n", " _ \n", "\t_\t\n", "x'_s\n", "한_é\n"]

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")


def both(name: str) -> tuple[gptfast.Encoding, tiktoken.Encoding]:
    return gptfast.get_encoding(name), tiktoken.get_encoding(name)


def test_real_texts(shared_data):
    names = set()
    for name, text in texts_in(shared_data):
        names.add(name)
        for encoding in ENCODINGS if len(text) < 1 << 22 else PATTERNS:
            # Of 128 MB of novels the first 4 million characters; `fuzz_ids.py --texts` reads all.
            assert text_difference(*both(encoding), text[: 1 << 22]) is None, (name, encoding)
    assert {"novels_train.txt.xz", "tinyshakespeare.txt", "multilingual.txt.xz", "hellaswag_val_full.txt.bz2"} <= names


@pytest.mark.parametrize("encoding", PATTERNS)
def test_every_code_point_alone(encoding):
    ours, theirs = both(encoding)
    expected = [theirs.encode_ordinary(c) for c in CODE_POINTS]
    ids, bounds = ours.encode_batch_to_numpy(CODE_POINTS)
    assert np.array_equal(np.diff(bounds), list(map(len, expected)))
    assert np.array_equal(ids, list(itertools.chain.from_iterable(expected)))


@pytest.mark.parametrize("encoding", PATTERNS)
def test_every_code_point_in_context(encoding):
    ours, theirs = both(encoding)
    assigned = CODE_POINTS[:0x34000] + CODE_POINTS[0xDF800 : 0xDF800 + 0x200]  # and private use
    for context, code_points in [("a_a\n", CODE_POINTS), *((context, assigned) for context in CONTEXTS)]:
        text = "".join([context.replace("_", c) for c in code_points])
        assert np.array_equal(ours.encode_to_numpy(text), theirs.encode_to_numpy(text)), context


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pairs_and_triples_of_every_kind(encoding):
    ours, theirs = both(encoding)
    pairs = ["".join(letters) for letters in itertools.product(KINDS, repeat=2)]
    triples = ["".join(letters) for letters in itertools.product("aZs' \t\n\r\u30007ß中\u0301./<", repeat=3)]
    for text, got in zip(pairs + triples, ours.encode_ordinary_batch(pairs + triples), strict=True):
        assert got == theirs.encode_ordinary(text), repr(text)
    for surround in ("a_b", " _ ", "'_'", "\n_\n"):
        for text in (surround.replace("_", pair) for pair in pairs):
            assert ours.encode_ordinary(text) == theirs.encode_ordinary(text), repr(text)


specials = st.sampled_from([END_OF_TEXT, "<|endofprompt|>", "<|fim_prefix|>", "<|endoftext", "<|", "|>", "endoftext|>"])
contractions = st.sampled_from(["'s", "'S", "'ſ", "'ll", "'LL", "'Re", "'ve", "'d", "'", "''"])
spaces = st.text("  \t\n\r\v\x85\xa0\u2028\u3000", min_size=1, max_size=5)
words = st.text(st.sampled_from("".join(SCRIPTS) + KINDS + "aeiourstAEIOU"), max_size=6)
anything = st.text(st.characters(), max_size=4)  # surrogates among them
texts = st.lists(st.one_of(specials, contractions, spaces, words, anything), max_size=10).map("".join)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_hypothesis(encoding):
    ours, theirs = both(encoding)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(texts, min_size=1, max_size=3))
    def check(batch):
        assert next(differences(ours, theirs, batch), None) is None

    check()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_short_fuzz(encoding):
    assert fuzz(*both(encoding), strings=3000, seed=7) is None


@pytest.mark.parametrize(
    "pat_str",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",  # Llama 3
        r"[\w']+|[^\w\s]+",  # white space is in no piece
    ],
)
def test_a_pattern_of_ones_own(pat_str):
    base = tiktoken.get_encoding("gpt2")
    settings = {"pat_str": pat_str, "mergeable_ranks": base._mergeable_ranks, "special_tokens": {END_OF_TEXT: 50256}}
    ours, theirs = gptfast.Encoding("own", **settings), tiktoken.Encoding("own", **settings)
    for parts in itertools.product(["it's", " ", "\n", "İ12", END_OF_TEXT, "\ud800"], repeat=3):
        text = "".join(parts)
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text), repr(text)
        assert ours.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all"), repr(text)
    if ours.decode(ours.encode_ordinary("a b")) == "a b":  # the fuzz expects decoded text to be the text
        assert fuzz(ours, theirs, strings=3000, seed=7) is None
