"""Text that may be shown: whole characters, and never a part of a stop string, however the bytes fall into tokens."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gptfast.sampling import TextStream


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the text before the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def pushed(data: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(stops)
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        pieces.append(stream.push(data[begin:end]))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.push(b"", final=True)], stream.stopped


few = st.text("abé€😀", max_size=12)


@example("xba", [], ["a", "b"])  # the first in the text, not in the list
@example("xab", [], ["b", "ab"])  # of two with one end the longer
@given(few, st.lists(st.integers(0, 60), max_size=8), st.lists(st.text("abé€", min_size=1, max_size=4), max_size=3))
def test_stops_where_a_reader_of_characters_would(text, cuts, stops):
    pieces, stopped = pushed(text.encode(), cuts, stops)
    assert ("".join(pieces), stopped) == naive(text, stops)


@given(st.binary(max_size=24), st.lists(st.integers(0, 30), max_size=8))
def test_any_bytes_are_what_python_decodes(data, cuts):
    pieces, _ = pushed(data, cuts, [])
    assert "".join(pieces) == data.decode("utf-8", errors="replace")


def test_what_cannot_become_a_stop_string_is_not_held_back():
    stream = TextStream(["END", "\n\nuser:"])
    assert [stream.push(x.encode()) for x in ("a", "E", "N", "x", "\n", "\n", "E", "ND")] == [
        "a", "", "", "ENx", "", "", "\n\n", "",
    ]  # fmt: skip
    assert stream.stopped
