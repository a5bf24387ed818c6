"""embedding against the reference: repeated tokens, positions, dropout, tokens that do not exist.

The peer of the error rule is torch.nn.functional.embedding in the same dtype. Outputs hold NaN before.
"""

from __future__ import annotations

import pytest
import torch
from compare import CUDA, DEVICE, DTYPES, LAYOUTS, check, dropped, integers, layouts, leaf, numbers, results
from gptfast.kernels import embed, embedding, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from rule import upstream
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("poisoned")


def torchs(idx, wte, wpe, p, start):
    positions = torch.arange(start, start + idx.shape[1], device=idx.device)
    return dropped(F.embedding(idx, wte) + F.embedding(positions, wpe).expand(*idx.shape, -1), p)


def check_embedding(idx, wte, wpe, p=0.0, start=0):
    """Sums may cancel: four roundings in fp32 of the sum of the sizes are allowed."""

    def call(f):
        return lambda wte, wpe: f(idx, wte, wpe, p, start)

    sizes = upstream(torch.empty(*idx.shape, wte.shape[1])).abs().sum((0, 1)).max().item() / (1 - p)
    extra = {f"gradient {i}": 2**-22 * sizes for i in (0, 1)}
    return check(*map(call, (embedding, torchs, reference.embedding)), [wte, wpe], extra)


SHAPES = [(1, 1, 1, 1), (3, 2, 5, 7), (2, 5, 9, 50), (1, 9, 4, 64), (5, 3, 30, 65), (2, 7, 3, 150)]  # B, T, V, C
SHAPES += [(8, 1024, 50257, 768), (3, 100, 1000, 1601)] * CUDA


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, p, dtype):
    B, T, V, C = shape
    idx = integers(V, B, T)
    out, dwte, dwpe = check_embedding(idx, numbers(V, C, dtype=dtype), numbers(T + 3, C, dtype=dtype, seed=1), p)
    assert out.dtype == dwte.dtype == dwpe.dtype == dtype
    seen = torch.zeros(V, dtype=torch.bool, device=DEVICE)
    seen[idx] = True
    assert not dwte[~seen].any() and not dwpe[T:].any()


@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_positions_count_from_the_start(start, p):
    _, _, dwpe = check_embedding(integers(9, 3, 4), numbers(9, 20), numbers(9, 20, seed=1), p, start)
    assert not dwpe[:start].any() and not dwpe[start + 4 :].any() and dwpe[start : start + 4].any(1).all()


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("repeats", [3, 4, 5, 8, 9, 40])
def test_a_token_many_times(repeats, p):
    """Tiles are of 4 places in the interpreter: stretches of a tile, of a part of one, and of many."""
    idx = torch.tensor([2] * repeats + [1] * 7 + [5], device=DEVICE)
    idx = idx[torch.randperm(len(idx), generator=torch.Generator().manual_seed(0)).to(DEVICE)]
    for B in (1, len(idx)):
        check_embedding(idx.view(B, -1), numbers(7, 12), numbers(len(idx), 12, seed=1), p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("token", [0, 4])
def test_one_token_everywhere(token, dtype):
    """More than 16 times, and as a sum in fp32 that is rounded once."""
    idx = torch.full((10, 9), token, device=DEVICE)
    out, dwte, dwpe = check_embedding(idx, numbers(5, 70, dtype=dtype), numbers(9, 70, dtype=dtype, seed=1))
    given = upstream(out).double()
    torch.testing.assert_close(dwte[token], given.sum((0, 1)).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(dwpe, given.sum(0).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
    dwte[token] = 0
    assert not dwte.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_strides(name, dtype):
    check_embedding(integers(6, 2, 5), layouts(6, 70, dtype=dtype)[name], layouts(7, 70, dtype=dtype)[name], 0.2)


def test_indices_with_strides_of_their_own():
    wte, wpe = numbers(9, 20), numbers(9, 20, seed=1)
    wide = integers(9, 6, 8)
    for idx in (wide.t(), wide[:, ::2], wide[:1].expand(3, 8), wide[1:, 3:]):
        check_embedding(idx, wte, wpe, 0.2)
        want = results(lambda *x, i=idx: embedding(i.contiguous(), *x), [wte, wpe])
        assert all(map(torch.equal, results(lambda *x, i=idx: embedding(i, *x), [wte, wpe]), want))


def test_an_upstream_gradient_with_strides_of_its_own():
    idx, inputs = integers(9, 3, 4), [numbers(9, 20), numbers(4, 20, seed=1)]
    out = embedding(idx, *inputs)
    g = upstream(out)
    for view in (
        g[:1, :1].expand(out.shape),
        g[..., :1].expand(out.shape),
        g.mT.contiguous().mT,
        F.pad(g, (0, 3))[..., :-3],
    ):
        got = torch.autograd.grad(out, inputs, view, retain_graph=True)
        assert all(map(torch.equal, got, torch.autograd.grad(out, inputs, view.clone(), retain_graph=True)))


def test_offsets_past_two_to_the_31():
    step = 3 << 29  # rows never written take no memory
    flat = torch.empty(2 * step + 20, dtype=torch.float16, device=DEVICE)
    far, near, idx = flat.as_strided((3, 20), (step, 1)), numbers(3, 20, dtype=torch.float16), integers(3, 2, 3)
    far.copy_(near.detach())
    assert torch.equal(embedding(idx, far, far), embedding(idx, near, near))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
def test_no_tokens(shape):
    out, dwte, dwpe = results(lambda *x: embedding(integers(9, *shape), *x, 0.1), [numbers(9, 20), numbers(4, 20)])
    assert out.shape == (*shape, 20) and not dwte.any() and not dwpe.any()


def test_frozen_tables_have_no_gradient():
    idx, wte, wpe = integers(9, 3, 4), numbers(9, 20), numbers(4, 20, seed=1)
    out, dwte, dwpe = results(lambda *x: embedding(idx, *x), [wte, wpe])
    assert torch.equal(results(lambda *x: embedding(idx, *x), [wte.detach(), wpe])[1], dwpe)
    frozen = wpe.detach()
    embedding(idx, wte, frozen).backward(upstream(out))
    assert frozen.grad is None and torch.equal(wte.grad, dwte)


def test_one_table_for_both():
    idx, table = integers(9, 3, 4), numbers(9, 20)
    check(*(lambda x, f=f: f(idx, x, x, 0.0, 1) for f in (embedding, torchs, reference.embedding)), [table])


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_repeats_are_equal_bit_for_bit(p):
    idx, inputs = integers(5, 4, 9), [numbers(5, 20, dtype=torch.float16), numbers(9, 20, dtype=torch.float16, seed=1)]
    want = results(lambda *x: embedding(idx, *x, p), inputs)
    for _ in range(20 if CUDA else 2):
        assert all(map(torch.equal, results(lambda *x: embedding(idx, *x, p), inputs), want))


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("C", [1, 20, 75, 200])
def test_the_mask_is_the_definitions(C, p):
    wte, wpe = leaf(numbers(9, C).abs() + 1), leaf(torch.zeros(7, C, device=DEVICE))
    idx = torch.arange(6, device=DEVICE).view(2, 3)
    torch.manual_seed(3)
    kept = reference.row_dropout_mask(reference.draw_seed(torch.device(DEVICE)), 6, C, p)
    torch.manual_seed(3)
    out = embedding(idx, wte, wpe, p, 2)
    assert torch.equal(out.view(6, C) != 0, kept)
    dwte, dwpe = torch.autograd.grad(out.sum(), [wte, wpe])
    scale = 65536 / (65536 - reference.dropout_threshold(p))
    torch.testing.assert_close(out.view(6, C), wte[:6] * kept * scale)
    torch.testing.assert_close(dwte[:6], kept * scale, check_dtype=False)  # each token is there once
    torch.testing.assert_close(dwpe[2:5], kept.view(2, 3, C).sum(0) * scale, check_dtype=False)


def test_each_call_drops_something_else_and_a_seed_repeats_it():
    idx, wte, wpe = integers(9, 3, 4), numbers(9, 64), numbers(4, 64, seed=1)
    torch.manual_seed(0)
    first, second = (embedding(idx, wte, wpe, 0.5) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(embedding(idx, wte, wpe, 0.5), first)
    assert not torch.equal(first, second)
    assert torch.equal(embedding(idx, wte, wpe, 1e-9), embedding(idx, wte, wpe))


# Tokens that do not exist


@pytest.mark.skipif(CUDA, reason="a GPU would have to be waited for")
@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_a_token_that_does_not_exist_is_named(wrong):
    idx = integers(9, 3, 4)
    idx[1, 2] = wrong
    with pytest.raises(IndexError, match=f"^idx holds {wrong}; allowed is 0 to 8$"):
        embedding(idx, numbers(9, 20), numbers(4, 20))


@pytest.mark.parametrize("wrong", [-1, 9, 2**40, -(2**40)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_token_that_does_not_exist_gives_a_row_of_nan_and_no_gradient(wrong, p):
    wte, wpe, seed = numbers(9, 75), numbers(4, 75, seed=1), torch.tensor([5], device=DEVICE)
    right = integers(9, 3, 4)
    idx = right.clone()
    idx[1, 2] = wrong
    want = embed._forward(right, wte, wpe, seed if p else None, p, 0)
    out = embed._forward(idx, wte, wpe, seed if p else None, p, 0)
    others = torch.ones(3, 4, dtype=torch.bool, device=DEVICE)
    others[1, 2] = False
    assert out[1, 2].isnan().all() and torch.equal(out[others], want[others])
    given = upstream(out)
    dwte, dwpe = embed._backward(given, idx, seed if p else None, p, 0, 9, 4)
    given[1, 2] = 0
    assert torch.equal(dwte, embed._backward(given, right, seed if p else None, p, 0, 9, 4)[0])
    assert dwpe.isfinite().all()


@given(data=st.data())
@settings(max_examples=60 if CUDA else 20, deadline=None, derandomize=True)
def test_any_shape_and_options(data):
    draw = data.draw
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 500 if CUDA else 9))
    V, C = draw(st.integers(1, 12)), draw(st.integers(1, 2000 if CUDA else 100))
    dtype, start = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 3))
    wte = layouts(V, C, dtype=dtype)[draw(st.sampled_from(LAYOUTS))]
    wpe = layouts(T + 3, C, dtype=dtype)[draw(st.sampled_from(LAYOUTS))]
    check_embedding(
        integers(V, B, T, seed=draw(st.integers(0, 99))), wte, wpe, draw(st.sampled_from([0, 0.1, 0.9])), start
    )
