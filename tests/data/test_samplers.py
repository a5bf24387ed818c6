"""Samplers: which tokens a row holds, that rows are pure functions of their number, and how ranks share them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfast.data import Mixture, PackedDocuments, RandomOffsets, SlidingWindow, TokenSet, batch
from gptfast.data.samplers import IGNORE, hash64, mix, permute
from gptfast.errors import GptfastError

TOKENS = TokenSet.from_array(np.arange(1000), documents=[0, 7, 8, 300, 301, 302, 650])


def every_sampler(seed: int = 0) -> list:
    window, packed = SlidingWindow(TOKENS, 16, 5, seed), PackedDocuments(TOKENS, 16, seed)
    return [window, RandomOffsets(TOKENS, 16, seed), packed, Mixture([(window, 0.7), (packed, 0.3)], seed)]


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    image = [permute(i, n, key) for i in range(n)]
    assert sorted(image) == list(range(n))
    assert permute(np.arange(n, dtype=np.uint64), n, key).tolist() == image  # arrays and ints agree


def test_permute_shuffles() -> None:
    """Neighbours part, keys differ, and no value favours a place (chi-squared over 4,000 keys, 1 in 10^6)."""
    n = 10
    counts = np.zeros((n, n))
    for key in range(4000):
        for i in range(n):
            counts[i, permute(i, n, hash64(key))] += 1
    assert ((counts - 400) ** 2 / 400).sum() < 81 + 5.5 * np.sqrt(2 * 81)
    image = permute(np.arange(100_000, dtype=np.uint64), 100_000, hash64(1)).astype(np.int64)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert (image == np.arange(100_000)).sum() < 10


def test_sliding_window_is_the_books() -> None:
    """Against the loop of the book's GPTDatasetV1."""
    ids = TOKENS.read(0, len(TOKENS)).tolist()
    for max_length, stride in [(4, 1), (16, 16), (16, 5), (999, 7), (10, 90)]:
        expected = [
            (ids[i : i + max_length], ids[i + 1 : i + max_length + 1]) for i in range(0, len(ids) - max_length, stride)
        ]
        sampler = SlidingWindow(TOKENS, max_length, stride, shuffle=False)
        made = batch(sampler, 0, len(sampler))
        assert (made.idx.tolist(), made.targets.tolist()) == tuple(map(list, zip(*expected, strict=True)))
        assert made.cu_seqlens is None and made.idx.dtype == made.targets.dtype == np.int64


def test_each_epoch_holds_every_window_in_a_new_order() -> None:
    sampler = SlidingWindow(TOKENS, 16, 5, seed=3)
    n = len(sampler)
    epochs = [[int(sampler.row(e * n + i).tokens[0]) for i in range(n)] for e in range(3)]
    assert all(sorted(epoch) == list(range(0, 1000 - 16, 5)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
    assert [int(SlidingWindow(TOKENS, 16, 5, seed=4).row(i).tokens[0]) for i in range(n)] != epochs[0]


def test_random_offsets_reach_every_offset_evenly() -> None:
    tokens = TokenSet.from_array(np.arange(20))
    sampler = RandomOffsets(tokens, 16, seed=1)
    counts = Counter(int(sampler.row(n).tokens[0]) for n in range(4000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 25  # chi-squared, 3 degrees of freedom


def test_packed_documents_join_whole_documents() -> None:
    starts = TOKENS.documents.tolist()
    bounds = dict(zip(starts, [*starts[1:], 1000], strict=True))
    sampler = PackedDocuments(TOKENS, 16, seed=5)
    orders = []
    for epoch in range(2):
        rows = [sampler.row(epoch * len(sampler) + i) for i in range(len(sampler))]
        stream = np.concatenate([rows[0].tokens[:1], *(row.tokens[1:] for row in rows)]).tolist()
        assert all(a.tokens[-1] == b.tokens[0] for a, b in zip(rows, rows[1:], strict=False))  # they overlap by one
        marked = sorted({i * 16 + int(s) for i, row in enumerate(rows) for s in row.starts})
        order = [stream[place] for place in marked]
        expected = [token for start in order for token in range(start, bounds[start])]
        assert expected[: len(stream)] == stream
        assert len(stream) == len(sampler) * 16 + 1 > 1000 - 16
        orders.append(order)
    assert orders[0] != orders[1]


def test_targets_stop_at_documents() -> None:
    """cu_seqlens and -100 against a loop over tokens that knows which document each is of."""
    document = np.searchsorted(TOKENS.documents, np.arange(1000), side="right")
    made = batch(PackedDocuments(TOKENS, 16, seed=2), 0, 60)
    cuts = {0}
    for b in range(60):
        for t in range(16):
            here = int(made.idx[b, t])
            if t == 0 or document[here] != document[int(made.idx[b, t - 1])]:
                cuts.add(b * 16 + t)
            last_of_document = here == 999 or document[here + 1] != document[here]
            assert made.targets[b, t] == (IGNORE if last_of_document else here + 1)
    assert (made.targets == IGNORE).sum() >= 5
    assert made.cu_seqlens.tolist() == sorted(cuts | {60 * 16}) and made.cu_seqlens.dtype == np.int32


@pytest.mark.parametrize("index", range(4))
def test_rows_are_pure(index: int) -> None:
    """Asked in any order, by any instance, a row is the same; another seed gives others."""
    numbers = [5, 700, 0, 5, 123456, 3]
    first = [every_sampler()[index].row(n) for n in numbers]
    again = every_sampler()[index]
    for n, row in zip(reversed(numbers), reversed(first), strict=True):
        repeated = again.row(n)
        assert (row.tokens == repeated.tokens).all() and row.tokens.shape == (17,)
        assert np.array_equal(row.starts, repeated.starts) if row.starts is not None else repeated.starts is None
    other = every_sampler(seed=1)[index]
    assert any((other.row(n).tokens != row.tokens).any() for n, row in zip(numbers, first, strict=True))


def test_rows_are_pure_across_threads() -> None:
    """A loader reads ahead in one epoch while another thread still asks for the epoch before."""
    sampler = PackedDocuments(TOKENS, 16)
    n = len(sampler)
    expected = [sampler.row(i).tokens for i in range(2 * n)]
    numbers = [i + e * n for i in range(n) for e in (0, 1)] * 5
    with ThreadPoolExecutor(8) as pool:
        for number, row in zip(numbers, pool.map(sampler.row, numbers), strict=True):
            assert (row.tokens == expected[number]).all()


def test_the_definition_of_the_shuffle_does_not_drift() -> None:
    """A resumed run must see the order it began with, also under a later version."""
    assert mix(1234567) == 6457827717110365317  # the first output of splitmix64 from that seed, as published
    assert hash64(0, 1) == 627405149472732430
    assert [permute(i, 10, 42) for i in range(10)] == [6, 8, 5, 3, 2, 9, 4, 7, 0, 1]


@pytest.mark.parametrize("index", range(4))
def test_ranks_together_see_the_rows_of_one(index: int) -> None:
    sampler = every_sampler()[index]
    one = [batch(sampler, step, 12).idx for step in range(5)]
    ranks = [np.concatenate([batch(sampler, step, 3, rank, 4).idx for rank in range(4)]) for step in range(5)]
    assert all((a == b).all() for a, b in zip(one, ranks, strict=True))


def test_no_row_is_drawn_twice_by_ranks_in_an_epoch() -> None:
    sampler = SlidingWindow(TOKENS, 10, 10)
    first = [int(i) for step in range(3) for rank in range(4) for i in batch(sampler, step, 8, rank, 4).idx[:, 0]]
    assert len(set(first)) == len(first) == 96


def test_mixture_holds_its_weights_in_every_block() -> None:
    """GPT-3's weights, which sum to 101 %."""
    sets = [TokenSet.from_array(np.full(50, i)) for i in range(5)]
    mixture = Mixture([(RandomOffsets(s, 8), w) for s, w in zip(sets, (60, 22, 8, 8, 3), strict=True)], seed=7)
    assert np.allclose(mixture.realised, np.array([60, 22, 8, 8, 3]) / 101, atol=0.001)
    assert sum(mixture.realised) == pytest.approx(1)
    orders = []
    for block in range(3):
        drawn = [int(mixture.row(block * 1000 + i).tokens[0]) for i in range(1000)]
        assert [drawn.count(i) / 1000 for i in range(5)] == mixture.realised
        assert len(set(drawn[:50])) >= 3  # mixed, not one after the other
        orders.append(drawn)
    assert orders[0] != orders[1]


def test_mixture_walks_each_source_without_gaps() -> None:
    sources = [SlidingWindow(TokenSet.from_array(np.arange(k, k + 2001)), 1, 1, shuffle=False) for k in (0, 10_000)]
    mixture = Mixture([(sources[0], 1), (sources[1], 3)])
    drawn = sorted(int(mixture.row(n).tokens[0]) for n in range(2000))
    assert drawn == [*range(500), *range(10_000, 11_500)]


def test_mixture_refuses_what_cannot_be_mixed() -> None:
    a, b = RandomOffsets(TOKENS, 8), RandomOffsets(TOKENS, 9)
    other = RandomOffsets(TokenSet.from_array(np.arange(99), encoding_name="bytes", n_vocab=257), 8)
    for sources, message in [
        ([], "at least one source"),
        ([(a, 0)], "above 0"),
        ([(a, float("nan"))], "above 0"),
        ([(a, 1), (b, 1)], "same context"),
        ([(a, 1), (other, 1)], r"same encoding_name.*\['gpt2', 'bytes'\]"),
        ([(a, 1), (a, 0.0001)], "source 1 of the mixture would never be drawn"),
    ]:
        with pytest.raises(GptfastError, match=message):
            Mixture(sources)


def test_text_shorter_than_a_window() -> None:
    tokens = TokenSet.from_array(np.arange(16))
    for make in (
        lambda: SlidingWindow(tokens, 16, 1),
        lambda: RandomOffsets(tokens, 16),
        lambda: PackedDocuments(tokens, 16),
    ):
        with pytest.raises(
            GptfastError, match="has 16 tokens, but one window needs 17.*longer text or a shorter context"
        ):
            make()
    tokens = TokenSet.from_array(np.arange(17))
    assert [len(s) for s in (SlidingWindow(tokens, 16, 1), PackedDocuments(tokens, 16))] == [1, 1]
    assert RandomOffsets(tokens, 16).row(9).tokens.tolist() == list(range(17))


def test_settings_that_make_no_window() -> None:
    for make in (
        lambda: SlidingWindow(TOKENS, 0, 1), lambda: SlidingWindow(TOKENS, 1, 0),
        lambda: RandomOffsets(TOKENS, 0), lambda: PackedDocuments(TOKENS, 0),
    ):  # fmt: skip
        with pytest.raises(GptfastError, match="at least 1"):
            make()


def test_ignored_targets_are_torchs_default() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE
