"""causal_attention against the reference: every feature alone and in pairs, shapes, strides, and values at the edge.

The peer of the error rule is plain PyTorch in the same dtype, as in FlashAttention's tests. Outputs hold NaN before.
"""

from __future__ import annotations

import itertools
import math
import os

import pytest
import torch
from gptfast.kernels import causal_attention, causal_attention_qkvpacked, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from rule import assert_as_good_as_torch, outputs_and_gradients, upstream

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # NaN and inf in the interpreter's numpy
]
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA


def plain(q, k, v, *, scale=None, dropout_p=0.0, window=None, cu_seqlens=None, **_):
    """The reference's arithmetic with every intermediate in the dtype of the inputs."""
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    k, v = (x.repeat_interleave(H // Hkv, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (1 / math.sqrt(D) if scale is None else scale)
    seen = reference.attention_mask(Tq, Tk, window=window, cu_seqlens=cu_seqlens, B=B, device=q.device)
    p = torch.softmax(scores.masked_fill(~(seen[:, None] if cu_seqlens is not None else seen), -math.inf), dim=-1)
    if dropout_p:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=q.device)
        p = p * reference.dropout_mask(seed, B, H, Tq, Tk, dropout_p) / (1 - dropout_p)
    return torch.einsum("bhij,bjhd->bihd", p, v)


def inputs(B, Tq, Tk, H, Hkv, D, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, Tq, H, D), (B, Tk, Hkv, D), (B, Tk, Hkv, D))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_() for shape in shapes]


def check(tensors, function=causal_attention, **features):
    """Output and gradients by the rule; the same seed gives the same dropout everywhere."""

    def run(f, inputs):
        torch.manual_seed(3)
        return outputs_and_gradients(lambda *x: f(*x, **features), inputs)

    ours = run(function, tensors)
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    theirs = run(plain if function is causal_attention else lambda x, **f: plain(*x.unbind(2), **f), leaves)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    twin = reference.causal_attention if function is causal_attention else reference.causal_attention_qkvpacked
    names = ("o", "dq", "dk", "dv") if function is causal_attention else ("o", "dqkv")
    for name, *triple in zip(names, ours, theirs, run(twin, wide), strict=True):
        assert_as_good_as_torch(
            *triple, name, 0.0 if name in ("o", "dv") else cancellation(ours[0], tensors, **features)
        )
    return ours


def cancellation(o, tensors, scale=None, dropout_p=0.0, **_):
    """The error of dq and dk from dS = P (dP - D), where dP and D are sums in fp32 that can be equal.

    A sum of D products is rounded D times, each time by at most 2^-24 |dO| |v|, which bounds its partial sums
    (Cauchy-Schwarz); one rounding for each of the two is allowed here. A row's sum of P is 1, and dq = scale dS k.
    PyTorch takes P dP - P sum(P dP), which is exactly zero where one key has all the weight. At T = 100, D = 16 it is
    4.4e-6, where dq is up to 1.2: nothing next to a fault.
    """
    scale = 1 / math.sqrt(o.shape[-1]) if scale is None else scale
    largest = max(x.detach().abs().max().item() for x in tensors)
    norms = upstream(o).double().norm(dim=-1).max() * max(x.detach().double().norm(dim=-1).max() for x in tensors)
    return scale * largest * 2 * 2**-24 * norms.item() / (1 - dropout_p)


def documents(B, T, seed=0):
    """Boundaries: every row's start, and about one more in ten positions."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(B * T, (B * T // 10,), generator=generator).tolist()
    return torch.tensor(sorted([*range(0, B * T + 1, T), *inner]), dtype=torch.int32, device=DEVICE)


SHAPES = [  # B, Tq, Tk, H, Hkv, D
    (1, 1, 1, 1, 1, 16),
    (2, 3, 3, 2, 2, 24),
    (1, 1, 64, 2, 2, 64),
    (1, 113, 203, 1, 1, 40),
    (1, 239, 239, 1, 1, 16),
    (2, 33, 65, 4, 2, 32),
    (1, 64, 64, 3, 1, 128),
    (1, 34, 34, 1, 1, 256),
    (1, 40, 70, 1, 1, 80),
] + [(1, 1023, 1024, 2, 2, 64), (2, 2048, 2048, 4, 4, 64), (1, 4096, 4096, 2, 1, 128)] * CUDA


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype):
    check(inputs(*shape, dtype))


FEATURES = {
    "window": {"window": 37},
    "documents": {"cu_seqlens": None},  # made for the shape
    "dropout": {"dropout_p": 0.2},
    "scale": {"scale": 0.7},
    "one pass": {"deterministic": False},
    "grouped": {},
    "fewer queries": {},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", [*itertools.combinations_with_replacement(FEATURES, 2)], ids=" and ".join)
def test_features(pair, dtype):
    if set(pair) == {"documents", "fewer queries"}:
        pytest.skip("documents need as many queries as keys, by definition")
    features = {**FEATURES[pair[0]], **FEATURES[pair[1]]}
    B, Tk = 2, 75
    Tq = 42 if "fewer queries" in pair else Tk
    if "documents" in pair:
        features["cu_seqlens"] = documents(B, Tk)
    check(inputs(B, Tq, Tk, 2 if "grouped" in pair else 1, 1, 32, dtype), **features)


@pytest.mark.parametrize("window", [1, 2, 32, 33, 99, 100, 5000])
def test_windows(window):
    check(inputs(1, 100, 100, 1, 1, 16, torch.float32), window=window)
    check(inputs(1, 50, 100, 1, 1, 16, torch.float32), window=window)


def test_documents_of_one_token_of_a_row_and_of_none():
    tensors = inputs(2, 70, 70, 1, 1, 16, torch.float32)
    every = torch.arange(141, dtype=torch.int32, device=DEVICE)
    torch.testing.assert_close(causal_attention(*tensors, cu_seqlens=every), tensors[2])  # each sees itself
    for cu in ([0, 140], [0, 0, 69, 69, 70, 71, 140, 140]):
        check(tensors, cu_seqlens=torch.tensor(cu, dtype=torch.int32, device=DEVICE))
    # a document does not go on in the next row, and bounds made once give the same
    whole = causal_attention(*tensors)
    one = torch.tensor([0, 140], dtype=torch.int32, device=DEVICE)
    assert torch.equal(causal_attention(*tensors, cu_seqlens=one), whole)
    assert torch.equal(causal_attention(*tensors, cu_seqlens=reference.document_bounds(one, 2, 70)), whole)


@given(data=st.data())
@settings(max_examples=int(os.environ.get("GPTFAST_EXAMPLES", 60 if CUDA else 12)), deadline=None, derandomize=True)
def test_any_shape_and_features(data):
    draw = data.draw
    Tk = draw(st.integers(1, 2000 if CUDA else 100))
    Tq = draw(st.integers(1, Tk))
    Hkv, G = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    B, D = draw(st.integers(1, 2)), 8 * draw(st.integers(2, 9))
    features = {
        "window": draw(st.none() | st.integers(1, Tk + 5)),
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.1, 0.9])),
        "deterministic": draw(st.booleans()),
        "scale": draw(st.none() | st.floats(0.01, 2)),
    }
    if Tq == Tk and draw(st.booleans()):
        features["cu_seqlens"] = documents(B, Tk, seed=draw(st.integers(0, 99)))
    check(inputs(B, Tq, Tk, Hkv * G, Hkv, D, draw(st.sampled_from(DTYPES)), seed=draw(st.integers(0, 99))), **features)


# Strides


def layouts(B, T, H, D, dtype):
    """q, k, v as views of other tensors: each a name and three leaves with strides of their own."""
    torch.manual_seed(0)

    def leaves(*views):
        return [x.detach().requires_grad_() for x in views]

    packed = torch.randn(B, T, 3, H, D, device=DEVICE, dtype=dtype)
    yield "packed", leaves(*packed.unbind(2))
    yield "heads first", leaves(*torch.randn(3, B, H, T, D, device=DEVICE, dtype=dtype).transpose(2, 3).unbind(0))
    yield "padded", leaves(*torch.randn(3, B, T + 3, H + 1, D + 8, device=DEVICE, dtype=dtype)[:, :, 2:-1, 1:, :D])
    flat = torch.randn(3 * B * T * H * D + 1, device=DEVICE, dtype=dtype)[1:]
    yield "off by one element", leaves(*flat.view(3, B, T, H, D).unbind(0))
    yield "odd rows", leaves(*torch.randn(3, B, T, H, D + 1, device=DEVICE, dtype=dtype)[..., :D])
    yield (
        "one row for all",
        leaves(*(torch.randn(1, T, H, D, device=DEVICE, dtype=dtype).expand(B, T, H, D) for _ in "qkv")),
    )
    tall, wide = (
        torch.randn(B, H, T, D, device=DEVICE, dtype=dtype),
        torch.randn(B, T + 1, H, 2 * D, device=DEVICE, dtype=dtype),
    )
    yield (
        "each its own",
        leaves(torch.randn(B, T, H, D, device=DEVICE, dtype=dtype), tall.transpose(1, 2), wide[:, 1:, :, D:]),
    )
    yield "packed by head", leaves(*torch.randn(B, T, H, 3, D, device=DEVICE, dtype=dtype).unbind(3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, _ in layouts(1, 1, 1, 16, torch.float32)])
def test_strides(name, dtype):
    check(dict(layouts(2, 43, 2, 16, dtype))[name])


def test_an_upstream_gradient_with_strides_of_its_own():
    inputs_ = inputs(2, 43, 43, 2, 2, 16, torch.float32)
    want = outputs_and_gradients(causal_attention, inputs_)
    for view in (lambda o: o.transpose(1, 2).contiguous().transpose(1, 2), lambda o: torch.stack((o, o), -1)[..., 1]):
        o = causal_attention(*inputs_)
        got = torch.autograd.grad(o, inputs_, view(upstream(o)))
        assert all(map(torch.equal, got, want[1:]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_packed_inputs_are_packed(dtype):
    qkv = torch.randn(2, 50, 3, 2, 32, device=DEVICE, dtype=dtype, requires_grad=True)
    got = {}
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(2))
    for name, x in zip("qkv", (q, k, v), strict=True):
        x.register_hook(lambda g, name=name: got.__setitem__(name, g))
    causal_attention(q, k, v).sum().backward()
    assert len({g.untyped_storage().data_ptr() for g in got.values()}) == 1
    assert got["q"].stride() == (50 * 3 * 64, 3 * 64, 32, 1)
    (dqkv,) = torch.autograd.grad(causal_attention_qkvpacked(qkv).sum(), qkv)
    assert torch.equal(dqkv, torch.stack((got["q"], got["k"], got["v"]), 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_qkvpacked(dtype):
    for qkv in (
        torch.randn(2, 45, 3, 2, 24, device=DEVICE),
        torch.randn(3, 45, 2, 2, 24, device=DEVICE).permute(2, 1, 0, 3, 4),
    ):
        leaf = [qkv.to(dtype).requires_grad_()]
        check(leaf, causal_attention_qkvpacked)
        check(leaf, causal_attention_qkvpacked, dropout_p=0.1, window=20, cu_seqlens=documents(2, 45))


def test_offsets_past_two_to_the_31():
    step = (1 << 24) - 8  # between positions: the most that is taken; pages never written take no memory
    flat = torch.empty(180 * step, dtype=torch.float16, device=DEVICE)
    q = flat.as_strided((1, 179, 1, 16), (0, step, 0, 1))
    q.copy_(torch.randn(1, 179, 1, 16))
    want = outputs_and_gradients(causal_attention, [q.contiguous().requires_grad_() for _ in "qkv"])
    got = outputs_and_gradients(causal_attention, [q.detach().requires_grad_() for _ in "qkv"])
    assert all(map(torch.equal, got, want))
    batch = flat.as_strided((2, 4, 1, 16), (178 * step, 16, 0, 1))
    batch.copy_(torch.randn(2, 4, 1, 16))
    assert torch.equal(causal_attention(batch, batch, batch), causal_attention(*(batch.contiguous(),) * 3))
    with pytest.raises(ValueError, match="q has a stride of 16777216 between positions; it must be below"):
        wide = flat.as_strided((1, 3, 1, 16), (0, 1 << 24, 0, 1))
        causal_attention(wide, wide, wide)


# Values


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits(dtype):
    q, k, v = inputs(1, 70, 70, 1, 1, 16, dtype)
    with torch.no_grad():
        q *= 25
        k *= 25
    logits = torch.einsum("bihd,bjhd->bhij", q, k)
    assert logits.abs().max() > 5e3
    check([q, k, v], scale=2.0 if dtype != torch.float16 else 1.0)


@pytest.mark.parametrize("deterministic", [True, False])
def test_very_negative_logits(deterministic):
    """exp(0 - lse) of keys past the end, whose logits are zeros, is infinite: they must not reach dq."""
    q, k, v = inputs(1, 33, 33, 1, 1, 16, torch.float16)
    with torch.no_grad():
        q.copy_(q / 8 + 8)
        k.copy_(k / 8 - 8)
    check([q, k, v], deterministic=deterministic)


def test_logits_that_are_infinite():
    q, k, v = inputs(1, 70, 70, 1, 1, 16, torch.float32)
    with torch.no_grad():
        q[..., 0] = 1
        k[..., 0] = 0
        k[:, :40, :, 0] = -math.inf  # the first 40 queries see nothing but -inf, as at the start of every other walk
    ours, want = causal_attention(q, k, v), reference.causal_attention(q, k, v)
    assert want[:, :40].isnan().all() and not want[:, 40:].isnan().any()
    torch.testing.assert_close(ours, want, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_batch_row_and_head(value):
    q, k, v = inputs(2, 70, 70, 2, 2, 16, torch.float32)
    want = outputs_and_gradients(causal_attention, (q, k, v))
    with torch.no_grad():
        for x in (q, k, v):
            x[0, 5, 1] = value
    got = outputs_and_gradients(causal_attention, (q, k, v))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[0, :, 0], b[0, :, 0])
        assert not a[0, :, 1].isfinite().all()


def test_log_sum_exp_and_its_gradient():
    for features in ({}, {"window": 20}, {"cu_seqlens": documents(2, 50)}):
        q, k, v = inputs(2, 50, 50, 2, 2, 32, torch.float32)
        bounds = features.get("cu_seqlens")
        bounds = None if bounds is None else reference.document_bounds(bounds, 2, 50)
        o, lse = torch.ops.gptfast.causal_attention(q, k, v, bounds, None, 0.3, 0.0, features.get("window"), True)
        got = [lse, *torch.autograd.grad(o.sum() + (lse * lse).sum(), (q, k, v))]

        def twin(q, k, v, features=features):
            scores = torch.einsum("bihd,bjhd->bhij", q, k) * 0.3
            seen = reference.attention_mask(50, 50, B=2, device=DEVICE, **features)
            scores = scores.masked_fill(~(seen[:, None] if seen.dim() == 3 else seen), -math.inf)
            lse = torch.logsumexp(scores, -1)
            o = reference.causal_attention(q, k, v, scale=0.3, **features)
            return [lse, *torch.autograd.grad(o.sum() + (lse * lse).sum(), (q, k, v))]

        theirs, ref = twin(q, k, v), twin(*(x.detach().double().requires_grad_() for x in (q, k, v)))
        for name, *triple in zip(("lse", "dq", "dk", "dv"), got, theirs, ref, strict=True):
            assert_as_good_as_torch(*triple, name)


def test_nothing_in_nothing_out():
    for B, Tq, Tk in ((0, 4, 4), (2, 0, 0), (2, 0, 5)):
        tensors = inputs(B, Tq, Tk, 2, 2, 16, torch.float32)
        o, dq, dk, dv = outputs_and_gradients(causal_attention, tensors)
        assert o.shape == tensors[0].shape and not any(x.any() for x in (o, dq, dk, dv))


# Dropout


def test_philox_is_salmons():
    """The known answers of Random123 1.14 for philox4x32 with 10 rounds: counter and key all zeros, and all ones."""
    zero, ones = torch.zeros(1, dtype=torch.int64), torch.full((1,), 0xFFFFFFFF)
    got = torch.cat(reference.philox(zero, zero, zero, zero, zero, rounds=10)).tolist()
    assert got == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    got = torch.cat(reference.philox(torch.tensor([-1]), ones, ones, ones, ones, rounds=10)).tolist()
    assert got == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_dropout_drops_what_it_should():
    mask = reference.dropout_mask(torch.tensor([12345]), 2, 3, 257, 301, 0.3).float()
    n = mask.numel()
    assert abs(mask.mean().item() - 0.7) < 4 * math.sqrt(0.3 * 0.7 / n)
    flat = mask.flatten(0, 1) - 0.7
    pairs = [(flat[1:], flat[:-1])]
    pairs += [(flat[:, n:], flat[:, :-n]) for n in (1, 8, 16)]
    pairs += [(flat[:, :, n:], flat[:, :, :-n]) for n in (1, 8, 32)]
    for lagged in (a * b for a, b in pairs):
        assert abs(lagged.mean().item()) < 4 * 0.21 / math.sqrt(lagged.numel())  # neighbours are independent
    other = reference.dropout_mask(torch.tensor([12346]), 2, 3, 257, 301, 0.3).float()
    assert abs(((other - 0.7) * (mask - 0.7)).mean().item()) < 4 * 0.21 / math.sqrt(n)


def test_each_call_drops_something_else_and_a_seed_repeats_it():
    q, k, v = inputs(1, 64, 64, 1, 1, 16, torch.float32)
    torch.manual_seed(0)
    first, second = (causal_attention(q, k, v, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(causal_attention(q, k, v, dropout_p=0.5), first)
    assert not torch.equal(first, second)
    assert torch.equal(causal_attention(q, k, v, dropout_p=1e-9), causal_attention(q, k, v))
