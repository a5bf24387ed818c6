"""The loader gives the sampler's batches in order, from any position, and passes errors on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from gptfast.data import Loader, PackedDocuments, RandomOffsets, TokenSet, batch
from gptfast.errors import GptfastError

TOKENS = TokenSet.from_array(np.arange(1000), documents=[0, 10, 400])


@pytest.mark.parametrize("kind", [RandomOffsets, PackedDocuments])
@pytest.mark.parametrize("start, rank, world", [(0, 0, 1), (7, 2, 3)])
def test_batches_are_the_samplers(kind, start: int, rank: int, world: int) -> None:
    sampler = kind(TOKENS, 16)
    with Loader(sampler, 4, start=start, rank=rank, world=world) as loader:
        for step in range(start, start + 12):
            assert loader.position == step
            made, expected = next(loader), batch(sampler, step, 4, rank, world)
            assert made.idx.dtype == made.targets.dtype == torch.int64
            assert torch.equal(made.idx, torch.from_numpy(expected.idx))
            assert torch.equal(made.targets, torch.from_numpy(expected.targets))
            assert (made.cu_seqlens is None) == (expected.cu_seqlens is None)
            if made.cu_seqlens is not None:
                assert made.cu_seqlens.dtype == torch.int32
                assert torch.equal(made.cu_seqlens, torch.from_numpy(expected.cu_seqlens))


def test_going_on_from_a_position_repeats_and_skips_nothing() -> None:
    sampler = RandomOffsets(TOKENS, 16)
    with Loader(sampler, 4) as loader:
        whole = [next(loader).idx for _ in range(20)]
    with Loader(sampler, 4) as loader:
        parts = [next(loader).idx for _ in range(9)]
        position = loader.position  # several more are read ahead by now
    with Loader(sampler, 4, start=position) as loader:
        parts += [next(loader).idx for _ in range(11)]
    assert torch.equal(torch.stack(whole), torch.stack(parts))


class Counting(RandomOffsets):
    fails_at = 10**9
    asked: list[int]

    def row(self, n: int):
        self.asked.append(n)
        if n >= self.fails_at:
            raise GptfastError(f"row {n} is damaged")
        return super().row(n)


def counting(fails_at: int) -> Counting:
    return type("Counted", (Counting,), {"fails_at": fails_at, "asked": []})(TOKENS, 16)


def test_reads_ahead_but_not_without_end() -> None:
    sampler = counting(10**9)
    with Loader(sampler, 1, depth=3) as loader:
        for taken in range(1, 6):
            next(loader)
            deadline = threading.Event()
            for _ in range(500):
                if len(sampler.asked) == taken + 3:
                    break
                deadline.wait(0.01)
            assert len(sampler.asked) == taken + 3
    assert sampler.asked == list(range(8))


def test_an_error_in_the_thread_is_raised_by_next_every_time() -> None:
    with Loader(counting(8), 4) as loader:
        next(loader), next(loader)
        for _ in range(2):
            with pytest.raises(GptfastError, match="row 8 is damaged"):
                next(loader)
        assert loader.position == 2


def test_close_ends_the_thread() -> None:
    before = threading.active_count()
    loader = Loader(RandomOffsets(TOKENS, 16), 4)
    next(loader)
    assert threading.active_count() == before + 1
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_cuda_are_the_samplers() -> None:
    sampler = PackedDocuments(TOKENS, 16)
    with Loader(sampler, 4, device="cuda") as loader:
        for step in range(50):
            made, expected = next(loader), batch(sampler, step, 4)
            assert made.idx.is_cuda and made.targets.is_cuda and made.cu_seqlens.is_cuda
            made.idx.mul_(1)  # used on the consumer's stream
            assert torch.equal(made.idx.cpu(), torch.from_numpy(expected.idx))
            assert torch.equal(made.targets.cpu(), torch.from_numpy(expected.targets))
