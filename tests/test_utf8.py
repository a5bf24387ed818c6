"""The UTF-8 validator, compiled and in plain Python, against bytes.decode."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptfast import extension


@pytest.fixture(params=["compiled", "python"], scope="module")
def validator(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return extension.PythonUtf8Validator
    core, reason = extension.load()
    if core is None:
        pytest.skip(f"gptfast._core: {reason}")
    return core.Utf8Validator


def decoder_verdict(data: bytes) -> int | None:
    """The offset that Python's strict decoder reports."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def verdict(validator: Any, chunks: list[bytes]) -> int | None:
    checker = validator()
    for chunk in chunks:
        checker.feed(chunk)
    return checker.finish()


# Arbitrary bytes are almost never UTF-8, so most examples are text with a few bytes damaged, removed or put in.
EDGES = [
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xf4\x90\x80\x80",
    b"\xe0\x80\x80",
    b"\xf0\x80\x80\x80",
    b"\xf5",
    b"\xff",
    b"\x80",
]
PIECES = st.one_of(st.text().map(str.encode), st.sampled_from(EDGES), st.binary(max_size=3), st.just(b"a" * 40))
DATA = st.one_of(st.binary(), st.lists(PIECES, max_size=6).map(b"".join), st.text().map(lambda t: t.encode()[:-1]))


@given(data=DATA, cuts=st.lists(st.integers(0, 300), max_size=8))
def test_same_verdict_and_offset_as_decode(validator: Any, data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    assert verdict(validator, chunks) == decoder_verdict(data)


@given(data=st.lists(PIECES, max_size=3).map(lambda pieces: b"".join(pieces)[:48]))
def test_every_cut_and_every_chunk_size(validator: Any, data: bytes) -> None:
    expected = decoder_verdict(data)
    for n in range(1, len(data) + 1):
        assert verdict(validator, [data[:n], data[n:]]) == expected
        assert verdict(validator, [data[i : i + n] for i in range(0, len(data), n)]) == expected


@pytest.mark.parametrize("offset", [0, 7, 31, 32, 33, 4095])
def test_an_error_is_found_wherever_it_lies_in_ascii(validator: Any, offset: int) -> None:
    data = bytearray(b"x" * 4096)
    data[offset] = 0xFF
    assert validator().feed(bytes(data)) == offset


def test_offsets_are_absolute_and_the_first_error_stays(validator: Any) -> None:
    checker = validator()
    assert checker.feed("é".encode()[:1]) is None  # unfinished, not yet wrong
    assert checker.feed("é".encode()[1:] + b"ok") is None
    assert checker.feed(b"..\xff") == 6
    assert checker.feed(b"fine again") == 6
    assert checker.finish() == 6


def test_takes_any_contiguous_buffer(validator: Any) -> None:
    for data in (b"a\xff", bytearray(b"a\xff"), memoryview(b"a\xff"), np.array([97, 255], dtype=np.uint8)):
        assert validator().feed(data) == 1
    with pytest.raises((BufferError, ValueError, TypeError)):
        validator().feed(np.zeros(8, dtype=np.uint8)[::2])
    with pytest.raises(TypeError):
        validator().feed("text")


def test_the_compiled_one_releases_the_interpreter_lock() -> None:
    core, reason = extension.load()
    if core is None:
        pytest.skip(f"gptfast._core: {reason}")
    data = bytes(64 << 20)
    finished: list[bool] = []

    def work() -> None:
        entered.release()
        core.Utf8Validator().feed(data)
        finished.append(True)

    def overlaps() -> bool:
        """True when this thread ran while the other was inside feed."""
        finished.clear()
        thread = threading.Thread(target=work)
        thread.start()
        entered.acquire()
        unfinished = not finished
        thread.join()
        return unfinished

    entered = threading.Lock()
    entered.acquire()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # no thread gives the lock up by itself: only a release inside feed lets two overlap
    try:
        assert any(overlaps() for _ in range(100))
    finally:
        sys.setswitchinterval(interval)
