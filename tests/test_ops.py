"""Dispatched operations against the reference, by DESIGN's rule: at most twice PyTorch's own error in the same
dtype.
"""

from __future__ import annotations

import pytest
import torch
from gptfast.kernels import reference
from rule import assert_as_good_as_torch, gradients
from torch.nn import functional as F

from gptfast import aten, ops


def summed(ref, T):
    """What another order of adding up T products may change in fp32: each of its roundings is 2^-24 of a partial sum at
    most, of either sign, so that they grow as a random walk does. MKL's order and oneDNN's differ, by processor too.
    """
    return 2**-24 * T**0.5 * ref.abs().max().item()


SHAPES = [(1, 1), (3, 3), (64, 1), (113, 203), (239, 1), (128, 257)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "window"), [(1, None), (3, None), (113, None), (113, 5), (256, None), (1040, None)])
def test_causal_attention_and_its_gradients(T, window, dtype):
    torch.manual_seed(0)
    qkv = torch.randn(2, T, 3, 2, 16, dtype=dtype)
    q, k, v = qkv.unbind(2)
    ours = gradients(lambda *x: ops.causal_attention(*x, window=window), q, k, v)
    mask = reference.attention_mask(T, T, window=window)

    def torchs(*x):
        return F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in x), attn_mask=mask).transpose(1, 2)

    theirs = gradients(torchs, q, k, v)
    ref = gradients(lambda *x: reference.causal_attention(*x, window=window), q.double(), k.double(), v.double())
    for triple in zip(ours, theirs, ref, strict=True):
        assert_as_good_as_torch(*triple, extra=summed(triple[2], T))


@pytest.mark.parametrize("scores", [0, 10**9], ids=["one by one", "masked"])
@pytest.mark.parametrize(("T", "window"), [(7, None), (70, None), (70, 5), (520, None)])
def test_causal_attention_of_documents_and_its_gradients(T, window, scores, monkeypatch):
    """Documents of any length, none and across rows among them; the last row is one, and at 520 the first too."""
    monkeypatch.setattr(aten, "SCORES_A_CALL", scores)
    torch.manual_seed(0)
    ends = [0, 0, 1, 3, T // 2, T // 2, T + 2, T + 4, 2 * T, 3 * T] if T < 512 else [0, T, T + 220, 3 * T]
    cuts = torch.tensor(ends, dtype=torch.int32)
    q, k, v = torch.randn(3, T, 3, 2, 16).unbind(2)
    options = {"window": window, "cu_seqlens": cuts}
    mask = reference.attention_mask(T, T, B=3, **options)[:, None]

    def torchs(*x):
        return F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in x), attn_mask=mask).transpose(1, 2)

    ours = gradients(lambda *x: ops.causal_attention(*x, **options), q, k, v)
    ref = gradients(lambda *x: reference.causal_attention(*x, **options), q.double(), k.double(), v.double())
    for triple in zip(ours, gradients(torchs, q, k, v), ref, strict=True):
        assert_as_good_as_torch(*triple, extra=summed(triple[2], T))
    bounds = ops.document_bounds(cuts, 3, T)
    assert torch.equal(
        ops.causal_attention(q, k, v, window=window, cu_seqlens=bounds), ops.causal_attention(q, k, v, **options)
    )


def test_fewer_queries_than_keys_align_at_the_bottom_right():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 20, 3, 4, 8).double().unbind(2)
    whole = reference.causal_attention(q, k, v)
    for n in (1, 3, 19):
        torch.testing.assert_close(ops.causal_attention(q[:, -n:], k, v), whole[:, -n:])
        torch.testing.assert_close(reference.causal_attention(q[:, -n:], k, v), whole[:, -n:])


def test_grouped_heads():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    want = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True)
    for function in (ops.causal_attention, reference.causal_attention):
        torch.testing.assert_close(function(q, k, v), want.transpose(1, 2))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("Tq", [1, 2])
@pytest.mark.parametrize("lengths", [[0, 1, 17, 30], [17] * 4, [30] * 4, [1] * 4, [0] * 4, [-5, 0, 40, 30]])
def test_decode_attention(lengths, Tq, window):
    q, k, v = torch.randn(4, Tq, 4, 8), torch.randn(4, 30, 2, 8), torch.randn(4, 30, 2, 8)
    for b, length in enumerate(lengths):  # what no query sees may hold anything
        length = min(max(length, 0), 30)
        for unseen in (slice(length, 30), slice(0, max(0, length - Tq - window + 1) if window else 0)):
            k[b, unseen], v[b, unseen] = torch.nan, torch.nan
    numbers = torch.tensor(lengths, dtype=torch.int32)
    got = ops.decode_attention(q, k, v, numbers, window=window)
    torch.testing.assert_close(got, reference.decode_attention(q, k, v, numbers, window=window))
    assert not got.isnan().any()
    if lengths[3] >= Tq and window is None:
        whole = reference.causal_attention(q[3:], k[3:, : lengths[3]], v[3:, : lengths[3]])
        torch.testing.assert_close(got[3:], whole)


def test_a_nan_stays_in_its_batch_row():
    q, k, v = torch.randn(3, 2, 40, 2, 8).unbind(0)
    want = ops.causal_attention(q, k, v)
    q[0] = torch.nan
    assert torch.equal(ops.causal_attention(q, k, v)[1], want[1])


@pytest.mark.parametrize(("N", "C"), SHAPES)
def test_layer_norm(N, C):
    torch.manual_seed(0)
    x, w, b = torch.randn(N, C) + 100, torch.randn(C), torch.randn(C)  # the large mean costs digits
    ours = gradients(ops.layer_norm, x, w, b)
    theirs = gradients(lambda x, w, b: F.layer_norm(x, (C,), w, b), x, w, b)
    ref = gradients(reference.layer_norm, x.double(), w.double(), b.double())
    for triple in zip(ours, theirs, ref, strict=True):
        assert_as_good_as_torch(*triple)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_reference_gelu_equals_torch(approximate):
    x = torch.linspace(-9, 9, 999, dtype=torch.float64)
    torch.testing.assert_close(reference.gelu(x, approximate), F.gelu(x, approximate=approximate))
    torch.testing.assert_close(ops.gelu(x, approximate), F.gelu(x, approximate=approximate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_add_layer_norm(p, dtype):
    torch.manual_seed(0)
    x, residual, w, b = torch.randn(2, 9, 31), torch.randn(2, 9, 31) + 10, torch.randn(31), torch.randn(31)

    def run(function):
        torch.manual_seed(1)
        inputs = [t.detach().clone().to(dtype).requires_grad_() for t in (x, residual, w, b)]
        y, s = function(*inputs)
        return [y, s, *torch.autograd.grad([y, s], inputs, [torch.ones_like(y) * x, torch.ones_like(s) * residual])]

    def plain(x, residual, w, b):
        s = residual + F.dropout(x, p)
        return F.layer_norm(s, (31,), w, b), s

    for got, want in zip(run(lambda *t: ops.add_layer_norm(*t, dropout_p=p)), run(plain), strict=True):
        assert torch.equal(got, want)
    inputs = [t.double() for t in (x, residual, w, b)]
    for got, want in zip(ops.add_layer_norm(*inputs), reference.add_layer_norm(*inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_add_layer_norm_keeps_the_residual_in_its_own_dtype():
    x, residual, w = torch.randn(5, 8).bfloat16(), torch.randn(5, 8), torch.randn(8)
    y, s = ops.add_layer_norm(x, residual, w)
    assert (y.dtype, s.dtype) == (torch.bfloat16, torch.float32)
    y, s = ops.add_layer_norm(residual, x, w.bfloat16())
    assert (y.dtype, s.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_bias_and_gelu(approximate):
    x, w, b = torch.randn(6, 5).double(), torch.randn(7, 5).double(), torch.randn(7).double()
    want = F.gelu(F.linear(x, w, b), approximate=approximate)
    torch.testing.assert_close(ops.linear_gelu(x, w, b, approximate), want)
    torch.testing.assert_close(ops.bias_gelu(x @ w.T, b, approximate), want)
    torch.testing.assert_close(reference.bias_gelu(x @ w.T, b, approximate), want)
    torch.testing.assert_close(ops.linear_gelu(x, w, None, approximate), F.gelu(x @ w.T, approximate=approximate))


def test_embedding():
    wte, wpe, idx = torch.randn(50, 8), torch.randn(16, 8), torch.randint(50, (2, 5))
    want = F.embedding(idx, wte) + F.embedding(torch.arange(3, 8), wpe)
    assert torch.equal(ops.embedding(idx, wte, wpe, start=3), want)
    assert torch.equal(reference.embedding(idx, wte, wpe, start=3), want)


def test_attention_under_autocast():
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 9, 2, 8, dtype=torch.bfloat16)  # as a Linear under autocast gives them
    with torch.autocast("cpu", torch.bfloat16):
        attended = ops.causal_attention(*qkv)
        theirs = F.scaled_dot_product_attention(*qkv.transpose(2, 3), is_causal=True).transpose(1, 2)
    assert_as_good_as_torch(attended, theirs, reference.causal_attention(*qkv.double()))


def test_attention_gradients_equal_finite_differences():
    q, k, v = (torch.randn(1, 5, 2, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(ops.causal_attention, (q, k, v))


def test_backward_inside_autocast():
    q, k, v = (torch.randn(2, 9, 2, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        ops.causal_attention(q, k, v).float().sum().backward()
    assert q.grad.isfinite().all()


def test_a_second_derivative_is_refused_and_not_computed_wrongly():
    q, k, v = torch.randn(3, 1, 4, 1, 8, requires_grad=True).unbind(0)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(ops.causal_attention(q, k, v).sum(), q, create_graph=True)


def test_weights_and_residuals_of_another_dtype():
    """As the kernels take them: computed in the wider one, returned in x's."""
    x, r, w, b = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8), torch.randn(8)
    for xd, rd, wd in ((torch.bfloat16, torch.float32, torch.float32), (torch.float32, torch.bfloat16, torch.bfloat16)):
        inputs = x.to(xd), r.to(rd), w.to(wd), b.to(wd)
        for got, want in zip(ops.add_layer_norm(*inputs), reference.add_layer_norm(*inputs), strict=True):
            torch.testing.assert_close(got, want)
        x_, _, w_, b_ = inputs
        torch.testing.assert_close(ops.layer_norm(x_, w_, b_), reference.layer_norm(x_, w_, b_))
        torch.testing.assert_close(ops.bias_gelu(x_, b_), reference.bias_gelu(x_, b_), rtol=1e-2, atol=1e-2)
