"""A stream of text has the ids of the whole, however it is cut into chunks; files the ids of their text."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptfast.errors import GptfastError
from gptfast.tokenizer import END_OF_TEXT, Encoding, files, get_encoding, streaming

NAMES = ["gpt2", "cl100k_base", "o200k_base"]
PREFIX = "<|fim_prefix|>"
PIECES = st.one_of(
    st.sampled_from(
        [" ", "  ", "\n", "\r\n", " \n", "\t", "\u3000", "\x85", "'", "'s", "'LL", "n't", "a", "B", "1", "1234"]
    ),
    st.sampled_from(
        ["e\u0301", "\u0301", "あ", "アA", "ǅ", "東京", "。", "，", "!", "/", "//\n", "—", "_", "\ud83d", "\ude00"]
    ),
    st.sampled_from([END_OF_TEXT, PREFIX, "<|", "|>", "<|endoftext", "fim_prefix|>"]),
    st.characters(),
)
TEXT = st.lists(PIECES, max_size=40).map("".join)

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")


def chunks_of(text: str, sizes: list[int]) -> Iterator[str]:
    at = 0
    while at < len(text):
        for size in sizes or [len(text)]:
            yield text[at : at + size]
            at += size


def ids_or_error(function: Any) -> Any:
    try:
        return list(function())
    except ValueError as error:
        assert "disallowed special token" in str(error)
        return "refused"


@settings(deadline=None)
@given(
    text=TEXT,
    sizes=st.lists(st.integers(0, 9), max_size=6).filter(lambda sizes: not sizes or any(sizes)),
    block=st.sampled_from([1, 3, 20, 1 << 14]),
    name=st.sampled_from(NAMES),
    allowed=st.sampled_from([set(), "all", {END_OF_TEXT}]),
    disallowed=st.sampled_from(["all", (), {"東"}]),
)
@example("a \n \n b", [1], 1, "o200k_base", set(), "all")
@example("あAAAAAb ", [1], 1, "o200k_base", set(), "all")
@example("we'll I'LL", [1], 1, "o200k_base", set(), "all")
@example(f" {END_OF_TEXT} {END_OF_TEXT}x", [1], 1, "gpt2", "all", "all")
@example(f"x {END_OF_TEXT}", [1], 1, "gpt2", set(), "all")
@example(f"x {END_OF_TEXT} and then more words than a special token has", [1], 1, "gpt2", set(), "all")
@example("a \ud83d\ude00 b", [1], 1, "gpt2", set(), "all")
def test_a_stream_has_the_ids_of_the_whole(
    text: str, sizes: list[int], block: int, name: str, allowed: Any, disallowed: Any
) -> None:
    ours, theirs = get_encoding(name), tiktoken.get_encoding(name)
    special = {"allowed_special": allowed, "disallowed_special": disallowed}
    expected = ids_or_error(lambda: theirs.encode(text, **special))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BLOCK_CHARS", block)
        assert ids_or_error(lambda: ours.encode_iterator(chunks_of(text, sizes), **special)) == expected


@settings(deadline=None)
@given(left=TEXT, right=TEXT, name=st.sampled_from(NAMES))
def test_every_safe_cut_is_safe(left: str, right: str, name: str) -> None:
    """Of any two texts put together, each place that the expression finds in the first divides the tokens."""
    text = (left + right).encode("utf-8", "replace").decode()
    theirs = tiktoken.get_encoding(name)
    whole = theirs.encode_ordinary(text)
    for found in streaming.SAFE_CUT.finditer(text):
        cut = found.start()
        assert theirs.encode_ordinary(text[:cut]) + theirs.encode_ordinary(text[cut:]) == whole, text[:cut]


def test_what_safe_cuts_rest_on() -> None:
    """Python's \\w without "_" has only letters and numbers, its \\s all white space; punctuation is punctuation."""
    for c in map(chr, range(0x110000)):
        if c.isalnum():
            assert regex.match(r"[\p{L}\p{N}]", c), hex(ord(c))
        assert c.isspace() or not regex.match(r"\p{White_Space}", c)
    marks = [c for c in map(chr, range(0x110000)) if regex.match(f"[{streaming.PUNCTUATION}]", c)]
    assert "。" in marks and "'" not in marks
    assert not any(regex.match(r"[\s\p{L}\p{N}\p{M}]", c) for c in marks)


def test_memory_is_bounded() -> None:
    for sentence in (
        "The quick brown fox jumps over the lazy dog.\n",
        "敏捷的棕色狐狸跳过了懒狗，然后回家。",
        '{"a":1,"b":["c"]},',
    ):
        encoding = get_encoding("cl100k_base")
        parts = list(streaming.parts((sentence for _ in range(100_000)), frozenset({END_OF_TEXT}), frozenset()))
        assert "".join(parts) == sentence * 100_000
        assert max(map(len, parts)) <= streaming.BLOCK_CHARS + 2 * len(sentence)
        next(encoding.encode_iterator([sentence * 2_000]))
        tracemalloc.start()
        ids = sum(1 for _ in encoding.encode_iterator(sentence for _ in range(100_000)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert ids > 500_000 and peak < 2_000_000


def test_text_without_a_place_to_cut_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    last_cut = streaming.last_cut
    monkeypatch.setattr(streaming, "last_cut", lambda text, *rest: looked_at.append(len(text)) or last_cut(text, *rest))
    for text in ("a" * 1_000_000, " " * 1_000_000):
        looked_at.clear()
        parts = list(streaming.parts(iter(text), frozenset(), frozenset()))
        assert "".join(parts) == text and sum(looked_at) < 3 * len(text)


def test_patterns_of_another_shape_are_held_to_the_end() -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"a b": 256}
    encoding = Encoding("own", pat_str=r"a b|(?s:.)", mergeable_ranks=ranks, special_tokens={})
    assert list(encoding.encode_iterator(iter("xa bx"))) == [120, 256, 120]
    assert encoding.truncate("xa bx", 2) == "xa b"
    with pytest.raises(TypeError, match="a chunk of text must be a str, not bytes"):
        list(encoding.encode_iterator([b"a"]))  # type: ignore[list-item]


# Files


def make_text(seed: int, size: int) -> str:
    dice = random.Random(seed)
    words = [
        "the ",
        "a",
        " \n",
        "\n\n",
        "東京、",
        "naïve ",
        "123",
        "!\n/",
        END_OF_TEXT,
        PREFIX,
        "\u3000",
        "\U0001f600 ",
        "don't ",
    ]
    return "".join(dice.choices(words, k=size))


@pytest.mark.parametrize("name", [*NAMES, "bytes"])
@pytest.mark.parametrize("block", [40, 1000, 1 << 26])
def test_a_file_has_the_ids_of_its_text(tmp_path, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    encoding = get_encoding(name)
    for seed in range(5):
        text = make_text(seed, 700)
        (tmp_path / "in.txt").write_text(text, encoding="utf-8", newline="")
        for allowed in ("all", {PREFIX}, ()):
            expected = encoding.encode(
                text, allowed_special=set(allowed) if allowed != "all" else "all", disallowed_special=()
            )
            if name != "bytes":
                theirs = tiktoken.get_encoding(name)
                assert expected == theirs.encode(
                    text, allowed_special=set(allowed) if allowed != "all" else "all", disallowed_special=()
                )
            for threads in (1, 2):
                ids = encoding.encode_file(
                    tmp_path / "in.txt",
                    allowed_special=set(allowed) if allowed != "all" else "all",
                    num_threads=threads,
                )
                assert ids.tolist() == expected and ids.dtype == encoding.dtype
            out = tmp_path / "out.npy"
            ids = encoding.encode_file(
                tmp_path / "in.txt", out, allowed_special=set(allowed) if allowed != "all" else "all"
            )
            on_disk = np.load(out, mmap_mode="r")
            assert on_disk.tolist() == ids.tolist() == expected
            assert on_disk.dtype == ids.dtype == encoding.dtype


def test_files_that_are_empty_missing_or_no_text(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = get_encoding("gpt2")
    (tmp_path / "empty.txt").touch()
    assert encoding.encode_file(tmp_path / "empty.txt").tolist() == []
    assert encoding.encode_file(tmp_path / "empty.txt", tmp_path / "out.npy").tolist() == []
    assert np.load(tmp_path / "out.npy").dtype == np.uint16
    with pytest.raises(GptfastError, match="cannot read .*absent.txt"):
        encoding.encode_file(tmp_path / "absent.txt")
    with pytest.raises(GptfastError, match="cannot read"):
        encoding.encode_file(tmp_path)
    for block in (1000, 1 << 26):
        monkeypatch.setattr(files, "BLOCK_BYTES", block)
        for bad, at in ((b"\xff", 7_000), (b"\xe6\x9d", 7_000), (b"\xed\xa0\x80", 7_000)):
            (tmp_path / "bad.txt").write_bytes(b"a word " * 1_000 + bad)
            with pytest.raises(GptfastError, match=rf"bad\.txt is not UTF-8 at byte {at:,}; convert it"):
                encoding.encode_file(tmp_path / "bad.txt", tmp_path / "new.npy")
            (tmp_path / "bad.txt").write_bytes(b"a word " * 1_000 + bad + b" word" * 2_000)
            with pytest.raises(GptfastError, match=rf"not UTF-8 at byte {at:,}"):
                encoding.encode_file(tmp_path / "bad.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.txt",
        "empty.txt",
        "out.npy",
    ]  # whole or not at all


def test_a_large_file_in_blocks(tmp_path, shared_data, monkeypatch: pytest.MonkeyPatch) -> None:
    import lzma

    monkeypatch.setattr(files, "BLOCK_BYTES", 300_000)
    data = lzma.open(shared_data / "text/multilingual.txt.xz").read()
    (tmp_path / "in.txt").write_bytes(data)
    ids = get_encoding("o200k_base").encode_file(tmp_path / "in.txt", tmp_path / "out.npy")
    assert ids.tolist() == tiktoken.get_encoding("o200k_base").encode(data.decode(), allowed_special="all")
