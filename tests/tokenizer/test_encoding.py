"""`Encoding` has tiktoken's interface, method for method: the same results, errors and defaults."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptfast import extension
from gptfast.errors import GptfastError
from gptfast.tokenizer import ENCODING_NAMES, END_OF_TEXT, TIKTOKEN_NAMES, Encoding, get_encoding
from gptfast.tokenizer.threads import available_cores, thread_count

TEXT = "Hello, world!  I'll say:\r\n\tnaïve 東京 🙂 12345 <|endoftext|> end \n\n"
NAMES = ["gpt2", "cl100k_base", "o200k_base"]
SPECIAL = [END_OF_TEXT, "<|fim_prefix|>", "<|endofprompt|>", "<|start|>", "<|endo", "oftext|>", "<|", "|>"]
PIECES = st.one_of(
    st.sampled_from(
        [*SPECIAL, " ", "  ", "\n", "\r\n", "\t", "'ll", "'S", "can't", " the", "123", "1234567", "\x85 ", "é"]
    ),
    st.sampled_from(["e\u0301", "\u3000", "東京", "ǅ", "\ud83d", "\ude00", "\ud83d\ude00", "🙂", "!!!", "\n/", "\x1c"]),
    st.text(max_size=8),
    st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Nd", "No", "Cs", "Zs", "Po"]),
)
MIXED = st.lists(PIECES, max_size=12).map("".join)
ALLOWED = st.sampled_from(["all", set(), {END_OF_TEXT}, frozenset({END_OF_TEXT, "no such token"})])
DISALLOWED = st.sampled_from(["all", (), {END_OF_TEXT}, ["<|fim_prefix|>", "東"]])

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")


def both(name: str) -> tuple[Encoding, tiktoken.Encoding]:
    return get_encoding(name), tiktoken.get_encoding(name)


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returns, or the kind of its error (ours are subclasses) with what a KeyError names."""
    try:
        result = function()
    except (KeyError, OverflowError, TypeError, UnicodeError, ValueError, AssertionError) as error:
        kinds = (KeyError, OverflowError, TypeError, UnicodeError, ValueError, AssertionError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        return kind.__name__, error.args if kind is KeyError else None
    return result.tolist() if isinstance(result, np.ndarray) else result


def test_every_method_has_tiktokens_parameters_and_defaults() -> None:
    ours, theirs = both("gpt2")
    for name in dir(theirs):
        if not name.startswith("__"):
            assert hasattr(ours, name), name
        method = getattr(tiktoken.Encoding, name, None)
        if inspect.isfunction(method) and name not in ("__getstate__", "__setstate__"):
            expected = inspect.signature(method).parameters
            found = inspect.signature(getattr(Encoding, name)).parameters
            assert [p for p in found if p in expected] == list(expected), name
            for parameter in expected.values():
                mine = found[parameter.name]
                assert mine.kind == parameter.kind, (name, parameter)
                if parameter.name == "num_threads":
                    continue  # theirs is 8; ours None, which is all cores
                assert mine.default == parameter.default, (name, parameter)
            extra = [p for p in found.values() if p.name not in expected]
            assert all(p.default is not p.empty for p in extra), name


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_what_it_consists_of(name: str) -> None:
    ours, theirs = both(name)
    for attribute in ("name", "n_vocab", "max_token_value", "eot_token", "special_tokens_set", "_pat_str",
                      "_special_tokens", "_special_token_values", "_mergeable_ranks"):  # fmt: skip
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert repr(ours) == repr(theirs)
    assert ours.token_byte_values() == theirs.token_byte_values()
    assert [ours.is_special_token(i) for i in range(ours.n_vocab)] == [
        theirs.is_special_token(i) for i in range(ours.n_vocab)
    ]
    assert ours.dtype == (np.uint16 if theirs.n_vocab <= 65536 else np.uint32)


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_ids_are_tiktokens(name: str) -> None:
    ours, theirs = both(name)
    expected = theirs.encode_ordinary(TEXT)
    ids = ours.encode_to_numpy(TEXT, disallowed_special=())
    assert ids.tolist() == expected == ours.encode_ordinary(TEXT) == ours._encode_only_native_bpe(TEXT)
    assert ids.dtype == theirs.encode_to_numpy(TEXT, disallowed_special=()).dtype == np.uint32
    assert ours.count(TEXT) == len(expected)
    assert ours.decode(expected) == TEXT


@settings(deadline=None)
@given(text=MIXED, name=st.sampled_from([*NAMES, "o200k_harmony"]), allowed=ALLOWED, disallowed=DISALLOWED)
@example(text="\ud83d\ude00 \ude00", name="gpt2", allowed=set(), disallowed="all")
@example(text=END_OF_TEXT[1:] + END_OF_TEXT * 2, name="gpt2", allowed="all", disallowed="all")
def test_encoding_and_special_tokens(text: str, name: str, allowed: Any, disallowed: Any) -> None:
    ours, theirs = both(name)
    special = {"allowed_special": allowed, "disallowed_special": disallowed}
    for method in ("encode", "encode_to_numpy"):
        expected = outcome(lambda method=method: getattr(theirs, method)(text, **special))
        assert outcome(lambda method=method: getattr(ours, method)(text, **special)) == expected, method
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    batch = [text, "", text[::-1]]
    expected = outcome(lambda: theirs.encode_batch(batch, **special))
    assert outcome(lambda: ours.encode_batch(batch, **special)) == expected
    assert ours.encode_ordinary_batch(batch) == theirs.encode_ordinary_batch(batch)
    if isinstance(expected, list):
        ids, at = ours.encode_batch_to_numpy(batch, **special)
        assert [ids[a:b].tolist() for a, b in zip(at[:-1], at[1:], strict=True)] == expected


@settings(deadline=None)
@given(text=st.lists(PIECES, max_size=4).map("".join), name=st.sampled_from(NAMES), allowed=ALLOWED)
@example(text="hello fanta", name="gpt2", allowed=set())
@example(text="a \n \n", name="cl100k_base", allowed=set())
@example(text=f"a{END_OF_TEXT}", name="gpt2", allowed="all")
def test_unstable_tokens(text: str, name: str, allowed: Any) -> None:
    ours, theirs = both(name)

    def sets(encoding: Any) -> Any:
        stable, completions = encoding.encode_with_unstable(text, allowed_special=allowed)
        return stable, {tuple(sequence) for sequence in completions}

    assert outcome(lambda: sets(ours)) == outcome(lambda: sets(theirs))


@settings(deadline=None)
@given(
    data=st.one_of(st.binary(), MIXED.map(lambda text: text.encode("utf-8", "replace")[:-1])),
    name=st.sampled_from(NAMES),
)
@example(data=b" \xec\x8b\xa4\xed", name="cl100k_base")
@example(data=b"a \n\xe6", name="cl100k_base")
def test_bytes_that_need_not_be_text(data: bytes, name: str) -> None:
    ours, theirs = both(name)
    assert ours._encode_bytes(data) == theirs._encode_bytes(data)
    if data:
        assert ours._encode_single_piece(data) == theirs._encode_single_piece(data)
    assert outcome(lambda: ours.encode_single_token(data)) == outcome(lambda: theirs.encode_single_token(data))
    assert ours.decode_bytes(ours._encode_bytes(data)) == data


IDS = st.one_of(st.integers(0, 300), st.integers(50_000, 50_300), st.integers(100_200, 200_100), st.integers(-2, 2**33))


@settings(deadline=None)
@given(
    ids=st.lists(IDS, max_size=6), name=st.sampled_from(NAMES), errors=st.sampled_from(["replace", "strict", "ignore"])
)
@example(ids=[50_257], name="gpt2", errors="replace")
@example(ids=[-1], name="gpt2", errors="replace")
@example(ids=[2**32], name="gpt2", errors="replace")
def test_decoding(ids: list[int], name: str, errors: str) -> None:
    ours, theirs = both(name)
    calls: list[Callable[[Any], Any]] = [
        lambda e: e.decode_bytes(ids),
        lambda e: e.decode(ids, errors),
        lambda e: e.decode_tokens_bytes(ids),
        lambda e: e.decode_with_offsets(ids),
        lambda e: e.decode_batch([ids, [0]], errors=errors),
        lambda e: e.decode_bytes_batch([ids, [0]]),
        lambda e: [e.decode_single_token_bytes(i) for i in ids],
    ]
    for call in calls:
        assert outcome(lambda call=call: call(ours)) == outcome(lambda call=call: call(theirs))
    if all(0 <= i < 1 << 32 for i in ids):
        expected = outcome(lambda: theirs.decode_bytes(ids))
        assert outcome(lambda: ours.decode_bytes(np.array(ids, dtype=np.uint32))) == expected
        assert outcome(lambda: ours.decode_bytes(tuple(ids))) == expected


def test_arguments_of_the_wrong_type() -> None:
    ours, theirs = both("gpt2")
    calls: list[Callable[[Any], Any]] = [
        lambda e: e.encode(b"bytes"),
        lambda e: e.encode(5),
        lambda e: e.encode_ordinary(None),
        lambda e: e.encode("text", allowed_special=[END_OF_TEXT]),
        lambda e: e.encode_batch([1]),
        lambda e: e.encode_ordinary_batch(["a", b"b"]),
        lambda e: e.decode("text"),
        lambda e: e.decode([1.5]),
        lambda e: e.decode(5),
        lambda e: e.decode_single_token_bytes("a"),
        lambda e: e.decode_single_token_bytes(-1),
        lambda e: e.decode_single_token_bytes(1 << 40),
        lambda e: e.encode_single_token("no token"),
        lambda e: e.encode_single_token("\ud800"),
        lambda e: e.is_special_token("a"),
        lambda e: e.encode_batch(["a"], num_threads=0),
        lambda e: e.encode_batch(["a", END_OF_TEXT]),
    ]
    for call in calls:
        expected = outcome(lambda call=call: call(theirs))
        assert isinstance(expected[0], str), expected
        assert outcome(lambda call=call: call(ours)) == expected


def test_the_complaint_about_a_special_token_says_what_to_do() -> None:
    ours, theirs = both("gpt2")
    with pytest.raises(ValueError) as mine:
        ours.encode(TEXT)
    with pytest.raises(ValueError) as other:
        theirs.encode(TEXT)
    said = str(mine.value)
    assert "\n" not in said
    for content in (
        "Encountered text corresponding to disallowed special token '<|endoftext|>'",
        "allowed_special={",
        "disallowed_special=(enc.special_tokens_set - {'<|endoftext|>'})",
        "disallowed_special=()",
    ):
        assert content in said and content in str(other.value)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both("cl100k_base")
    text = (TEXT * 9_000)[:500_000]  # long enough to be divided
    expected = theirs.encode_ordinary(text)
    for threads in (1, 2, 3, 8, None):
        assert ours.encode_ordinary(text, num_threads=threads) == expected
        assert ours.encode_to_numpy(text, disallowed_special=(), num_threads=threads).tolist() == expected
        assert ours.count(text, num_threads=threads) == len(expected)
        assert ours.encode_ordinary_batch([text, "", TEXT], num_threads=threads)[0] == expected
    monkeypatch.setenv("GPTFAST_NUM_THREADS", "3")
    assert ours.encode_ordinary(text) == expected
    for wrong in ("0", "-1", "many", "²"):
        monkeypatch.setenv("GPTFAST_NUM_THREADS", wrong)
        with pytest.raises(GptfastError, match="GPTFAST_NUM_THREADS is '.*'; set it to a number of threads"):
            ours.encode_batch(["a"])
        assert ours.encode_batch(["a"], num_threads=1) == [[64]]


def test_hash_names_the_vocabulary() -> None:
    hashes = {name: get_encoding(name).hash for name in ENCODING_NAMES}
    assert hashes["gpt2"] == hashes["r50k_base"]  # the same vocabulary under two names
    assert len(set(hashes.values())) == len(ENCODING_NAMES) - 1
    for name in TIKTOKEN_NAMES[:-1]:
        theirs = tiktoken.get_encoding(name)
        lines = [theirs._pat_str, *(f"{i} {token.hex()}" for token, i in sorted(theirs._mergeable_ranks.items()))]
        lines += [f"{i} {token}" for token, i in sorted(theirs._special_tokens.items())]
        assert hashes[name] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    # Token sets on disk hold these.
    assert hashes["gpt2"].startswith("29e16fc2cdad72f3") and hashes["bytes"].startswith("7a0f57f6899b6b9c")


@settings(deadline=None)
@given(text=st.text(), other=st.text())
def test_bytes_are_utf8(text: str, other: str) -> None:
    encoding = get_encoding("bytes")
    ids = encoding.encode_ordinary(text)
    assert ids == list(text.encode()) == encoding.encode_to_numpy(text).tolist()
    assert encoding.decode(ids) == text
    assert encoding.encode(text + END_OF_TEXT + other, allowed_special="all") == [
        *text.encode(), 256, *other.encode()
    ]  # fmt: skip
    assert (encoding.n_vocab, encoding.eot_token, encoding.dtype) == (257, 256, np.uint16)


CUSTOM = {
    "pat_str": r"\d{1,2}|\p{L}+ ?|(?<=x)\s+(?!\S)|[^\s\p{L}]",
    "special_tokens": {"<s>": 300, "</s>": 301, "é|": 999},
}


@settings(deadline=None)
@given(text=st.lists(st.sampled_from([*"aéx1 2\n|>", "<s>", "</s>", "é|", "東", "\ud800"]), max_size=20).map("".join))
def test_an_encoding_of_ones_own(text: str) -> None:
    """A pattern of another shape, which drops what it does not match, and ids with gaps."""
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256, b"aa": 260, b"12": 270, "é".encode(): 280}
    ours = Encoding("own", mergeable_ranks=ranks, **CUSTOM)
    theirs = tiktoken.Encoding("own", mergeable_ranks=ranks, **CUSTOM)
    assert ours.max_token_value == theirs.max_token_value == 999
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    for allowed in ({"</s>"}, {"<s>", "é|"}, "all", set()):
        expected = theirs.encode(text, allowed_special=allowed, disallowed_special=())
        assert ours.encode(text, allowed_special=allowed, disallowed_special=()) == expected
    assert ours.decode(ours.encode_ordinary(text)) == theirs.decode(theirs.encode_ordinary(text))


def test_a_vocabulary_that_is_none() -> None:
    whole = {bytes([i]): i for i in range(256)}
    rest = {"pat_str": r"\w+", "special_tokens": {}}
    for ranks, message in [
        ({}, "'x' has no tokens"),
        ({k: v for k, v in whole.items() if k != b"\x80"}, r"single byte b'\\x80'"),
        (whole | {b"ab": 255}, "id 255 stands twice"),
        (whole | {b"": 256}, "token 256 is empty"),
    ]:
        with pytest.raises(GptfastError, match=message):
            Encoding("x", mergeable_ranks=ranks, **rest)
    with pytest.raises(GptfastError, match=r"pattern '\(' cannot be used"):
        Encoding("x", mergeable_ranks=whole, pat_str="(", special_tokens={})
    for n_vocab in (255, 257):
        with pytest.raises(AssertionError):
            Encoding("x", mergeable_ranks=whole, explicit_n_vocab=n_vocab, **rest)
    assert Encoding("x", mergeable_ranks=whole, explicit_n_vocab=256, **rest).n_vocab == 256


def test_copies_and_pickles() -> None:
    for name in ("bytes", "gpt2"):
        encoding = get_encoding(name)
        assert copy.copy(encoding) is copy.deepcopy(encoding) is encoding
        assert pickle.loads(pickle.dumps(encoding)) is encoding and len(pickle.dumps(encoding)) < 200
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    own = Encoding("gpt2", mergeable_ranks=ranks, pat_str=get_encoding("gpt2")._pat_str, special_tokens={"<s>": 300})
    for other in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert other.name == "gpt2" and other.hash == own.hash != get_encoding("gpt2").hash
        assert other.encode("ab<s>", allowed_special="all") == [256, 300]


def test_without_the_compiled_core_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([i]): i for i in range(256)}
    monkeypatch.setitem(sys.modules, "gptfast._core", None)  # importing it now raises
    extension.load.cache_clear()
    try:
        with pytest.raises(GptfastError, match=r"needs the compiled core, gptfast\._core.*not built.*`gptfast doctor`"):
            Encoding("x", mergeable_ranks=ranks, pat_str=r"\w+", special_tokens={})
    finally:
        monkeypatch.undo()
        extension.load.cache_clear()


def test_count_of_the_verdict(shared_data) -> None:
    text = (shared_data / "verdict/the-verdict.txt").read_text(encoding="utf-8")
    assert get_encoding("gpt2").count(text) == 5145


@settings(deadline=None)
@given(text=MIXED, name=st.sampled_from(NAMES))
def test_offsets(text: str, name: str) -> None:
    ours, theirs = both(name)
    ids, in_bytes, in_characters = ours.encode_with_offsets(text, allowed_special="all")
    assert ids.tolist() == theirs.encode(text, allowed_special="all")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    data = text.encode()
    spans = zip(in_bytes[:-1], in_bytes[1:], strict=True)
    assert [data[start:end] for start, end in spans] == theirs.decode_tokens_bytes(ids.tolist())
    assert in_characters[:-1].tolist() == theirs.decode_with_offsets(ids.tolist())[1]
    assert (in_bytes[0], in_bytes[-1], in_characters[-1]) == (0, len(data), len(text))


@settings(deadline=None)
@given(
    text=MIXED.filter(lambda text: text.isascii() or "\ud83d" not in text),
    name=st.sampled_from(NAMES),
    n=st.integers(0, 40),
)
def test_truncation(text: str, name: str, n: int) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ours, theirs = both(name)
    kept = ours.truncate(text, n)
    assert text.startswith(kept)
    assert kept == theirs.decode(theirs.encode_ordinary(text)[:n], errors="ignore")


def test_truncation_reads_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = get_encoding("gpt2")
    text = "the quick brown fox " * 200_000
    encoded = []
    encode = Encoding._encode
    monkeypatch.setattr(
        Encoding, "_encode", lambda self, part, *rest: encoded.append(len(part)) or encode(self, part, *rest)
    )
    assert ours.truncate(text, 4_000) == "the quick brown fox " * 999 + "the quick brown fox"
    assert sum(encoded) < 100_000
    with pytest.raises(GptfastError, match="cannot truncate to -1 tokens"):
        ours.truncate(text, -1)


def test_ids_fit_into_json() -> None:
    assert json.loads(json.dumps(get_encoding("gpt2").encode("hello world"))) == [31373, 995]


@pytest.mark.parametrize("wrong", [-1, 1 << 32, 256.0, "256", None])
def test_ids_that_are_none_are_one_short_error(wrong: Any) -> None:
    ranks = {bytes([i]): i for i in range(256)}
    for change in ({"mergeable_ranks": ranks | {b"ab": wrong}}, {"special_tokens": {"<s>": wrong}}):
        settings: dict[str, Any] = {"pat_str": ".", "mergeable_ranks": ranks, "special_tokens": {}}
        with pytest.raises((GptfastError, TypeError)) as raised:
            Encoding("own", **(settings | change))
        assert len(str(raised.value)) < 120 and "\n" not in str(raised.value)


def test_a_special_token_with_the_id_of_another_token() -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    for pattern in (".", tiktoken.get_encoding("gpt2")._pat_str):
        with pytest.raises(GptfastError, match="the special token '<s>' has the id 256 of the token b'ab'"):
            Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<s>": 256})
        own = Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"ab": 256, "<s>": 257})
        assert own.encode("ab<s>", allowed_special="all") == [256, 257]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_files_that_are_not_regular(tmp_path: Path) -> None:
    ours, theirs = both("gpt2")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (lambda: ours.encode_file(pipe), lambda: ours.encode_file(pipe, tmp_path / "ids.npy")):
        writer = threading.Thread(target=pipe.write_text, args=(TEXT * 20_000,), kwargs={"encoding": "utf-8"})
        writer.start()
        ids = read()
        writer.join()
        assert ids.tolist() == theirs.encode(TEXT * 20_000, allowed_special="all")
    version = Path("/proc/version")
    if version.exists():
        assert ours.decode(ours.encode_file(version).tolist()) == version.read_text()
    with pytest.raises(GptfastError, match="cannot read .*: Is a directory"):
        ours.encode_file(tmp_path)


def test_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    most = max(8, available_cores())
    assert [thread_count(n) for n in (1, most, most + 1, 10**30, np.int64(2))] == [1, most, most, most, 2]
    for wrong in (0, -(10**30), 1.5, "2"):
        with pytest.raises(GptfastError, match="num_threads is .*; it must be"):
            thread_count(wrong)  # type: ignore[arg-type]
    for value, expected in (("9" * 20, most), ("9" * 5_000, most), ("002", 2)):
        monkeypatch.setenv("GPTFAST_NUM_THREADS", value)
        assert thread_count() == expected
