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
        assert_as_good_as_torch(*triple)


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
def test_decode_attention(window):
    q, k, v = torch.randn(4, 2, 4, 8), torch.randn(4, 30, 2, 8), torch.randn(4, 30, 2, 8)
    lengths = torch.tensor([0, 1, 17, 30], dtype=torch.int32)
    for b, length in enumerate(lengths.tolist()):
        k[b, length:], v[b, length:] = torch.nan, torch.nan
    got = ops.decode_attention(q, k, v, lengths, window=window)
    torch.testing.assert_close(got, reference.decode_attention(q, k, v, lengths, window=window))
    whole = reference.causal_attention(q[3:], k[3:], v[3:], window=window)
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


def test_embedding():
    wte, wpe, idx = torch.randn(50, 8), torch.randn(16, 8), torch.randint(50, (2, 5))
    want = F.embedding(idx, wte) + F.embedding(torch.arange(3, 8), wpe)
    assert torch.equal(ops.embedding(idx, wte, wpe, start=3), want)
    assert torch.equal(reference.embedding(idx, wte, wpe, start=3), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("N", "V", "C"), [(1, 2, 3), (113, 203, 16), (64, 257, 8), (40, 5003, 32)])
def test_linear_cross_entropy_and_its_gradients(N, V, C, reduction, dtype, monkeypatch):
    monkeypatch.setattr(aten, "CHUNK_BYTES", 40_000)  # several chunks, and several blocks in each
    monkeypatch.setattr(aten, "SOFTMAX_BYTES", 9_000)
    torch.manual_seed(0)
    x, w, t = torch.randn(N, C, dtype=dtype), torch.randn(V, C, dtype=dtype), torch.randint(V, (N,))
    t[: N // 3] = -100
    ours = gradients(lambda x, w: ops.linear_cross_entropy(x, w, t, reduction=reduction), x, w)
    theirs = gradients(lambda x, w: F.cross_entropy(x @ w.T, t, reduction=reduction).float(), x, w)
    ref = gradients(lambda x, w: reference.linear_cross_entropy(x, w, t, reduction=reduction), x.double(), w.double())
    for triple in zip(ours, theirs, ref, strict=True):
        assert_as_good_as_torch(*triple)
    with torch.no_grad():
        each = ops.linear_cross_entropy(x, w, t, reduction="none")
    torch.testing.assert_close(each.sum(), ops.linear_cross_entropy(x, w, t, reduction="sum"))
    assert not each[t == -100].any()


def test_linear_cross_entropy_of_extreme_logits():
    x = torch.tensor([[1e4], [-1e4]])
    w = torch.tensor([[1.0], [-1.0], [0.5]])
    t = torch.tensor([1, 0])
    got = ops.linear_cross_entropy(x, w, t, reduction="none")
    torch.testing.assert_close(got, F.cross_entropy(x @ w.T, t, reduction="none"))


def test_linear_cross_entropy_without_targets_is_torchs():
    x, w, t = torch.randn(3, 4), torch.randn(5, 4), torch.full((3,), -100)
    assert ops.linear_cross_entropy(x, w, t).isnan() and F.cross_entropy(x @ w.T, t).isnan()


def test_reference_cross_entropy_equals_torch():
    logits, t = torch.randn(7, 11).double(), torch.randint(11, (7,))
    t[2] = -100
    for reduction in ("mean", "sum", "none"):
        want = F.cross_entropy(logits, t, reduction=reduction)
        torch.testing.assert_close(reference.cross_entropy(logits, t, reduction=reduction), want)


def test_no_logits_of_the_whole_batch_are_held(monkeypatch):
    """The largest tensor made is a chunk of logits or a gradient, never [N, V]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    N, V, C = 64, 1000, 8
    monkeypatch.setattr(aten, "CHUNK_BYTES", 8 * V * 4)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, torch.Tensor))
            return out

    x, w = torch.randn(N, C), torch.randn(V, C)
    with Watch():
        aten._chunked_cross_entropy._init_fn(x, w, torch.randint(V, (N,)), -100, "mean", True)
    assert max(sizes) == V * C


def test_registered_operator_is_well_formed():
    x, w = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    args = (x, w, torch.randint(9, (6,)), -100, "mean", True)
    torch.library.opcheck(
        aten._chunked_cross_entropy, args, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


def test_autocast():
    """fp32 weights under autocast run in bf16, as `torch.nn.functional` does."""
    torch.manual_seed(0)
    x, w, t = torch.randn(20, 8), torch.randn(50, 8), torch.randint(50, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(lambda x, w: ops.linear_cross_entropy(x, w, t), x, w)
        theirs = gradients(lambda x, w: F.cross_entropy(F.linear(x, w), t), x, w)
        qkv = torch.randn(3, 2, 9, 2, 8, dtype=torch.bfloat16)  # as a Linear under autocast gives them
        attended = ops.causal_attention(*qkv)
        theirs_attended = F.scaled_dot_product_attention(*qkv.transpose(2, 3), is_causal=True).transpose(1, 2)
    assert_as_good_as_torch(attended, theirs_attended, reference.causal_attention(*qkv.double()))
    ref = gradients(lambda x, w: F.cross_entropy(x @ w.T, t), x.double(), w.double())
    for triple in zip(ours, theirs, ref, strict=True):
        assert triple[0].dtype == torch.float32
        assert_as_good_as_torch(*triple)


def test_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(aten, "CHUNK_BYTES", 200)
    x, w = (
        torch.randn(6, 4, dtype=torch.double, requires_grad=True),
        torch.randn(9, 4, dtype=torch.double, requires_grad=True),
    )
    t = torch.tensor([0, 8, -100, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x, w: ops.linear_cross_entropy(x, w, t), (x, w))
    q, k, v = (torch.randn(1, 5, 2, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(ops.causal_attention, (q, k, v))


def test_backward_inside_autocast():
    q, k, v = (torch.randn(2, 9, 2, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        ops.causal_attention(q, k, v).float().sum().backward()
    assert q.grad.isfinite().all()


def test_second_derivatives_are_refused_and_not_computed_wrongly():
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = ops.linear_cross_entropy(x.square(), w, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)
    q, k, v = torch.randn(3, 1, 4, 1, 8, requires_grad=True).unbind(0)
    (first,) = torch.autograd.grad(ops.causal_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), q)


def test_linear_cross_entropy_shows_nan_of_kept_rows_only():
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    x[0], x[2] = torch.nan, torch.nan
    got = ops.linear_cross_entropy(x, w, torch.tensor([1, 2, -100]), reduction="none")
    assert got[0].isnan() and got[1].isfinite() and got[2] == 0


def test_linear_cross_entropy_of_no_rows_and_of_an_unknown_reduction():
    empty = torch.empty(0, dtype=torch.long)
    assert ops.linear_cross_entropy(torch.empty(0, 4), torch.randn(5, 4), empty, reduction="sum") == 0
    for module in (ops, reference):
        with pytest.raises(ValueError, match="reduction is 'avg'"):
            module.linear_cross_entropy(torch.randn(1, 4), torch.randn(5, 4), torch.tensor([0]), reduction="avg")
