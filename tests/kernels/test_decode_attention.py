"""decode_attention against the reference and PyTorch's own attention: ragged rows, layouts, and caches full of NaN.

Peers of the error rule are plain PyTorch in the same dtype and scaled_dot_product_attention with a mask. In the
interpreter tiles are 32 keys. Outputs and partial results hold NaN before each run.
"""

from __future__ import annotations

import itertools
import math
import os

import pytest
import torch
from gptfast.kernels import decode, decode_attention, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from rule import assert_as_good_as_torch
from torch.nn import functional as F

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # NaN and inf in the interpreter's numpy
]
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA


def seen_keys(lengths, Tq, S, window=None):
    """bool [B, 1, Tq, S], by a loop over the definition."""
    seen = torch.zeros(len(lengths), 1, Tq, S, dtype=torch.bool)
    for b, t in itertools.product(range(len(lengths)), range(Tq)):
        position = lengths[b] - Tq + t
        seen[b, 0, t, max(0, position - window + 1 if window else 0) : max(0, position + 1)] = True
    return seen.to(DEVICE)


def plain(q, k, v, seen, scale):
    """Attention with every intermediate in the dtype of the inputs."""
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = (torch.einsum("bihd,bjhd->bhij", q, k) * scale).masked_fill(~seen, -math.inf)
    return torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1).masked_fill(~seen, 0), v)


def sdpa(q, k, v, seen, scale):
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    o = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=seen, scale=scale)
    return o.transpose(1, 2)


def inputs(B, Tq, S, H, Hkv, D, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, Tq, H, D), (B, S, Hkv, D), (B, S, Hkv, D))
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def numbers(lengths):
    return torch.tensor(lengths, dtype=torch.int32, device=DEVICE)


def check(q, k, v, lengths, scale=None, window=None):
    given = lengths if isinstance(lengths, torch.Tensor) else numbers(lengths)
    ours = decode_attention(q, k, v, given, scale=scale, window=window)
    assert ours.dtype == q.dtype and ours.is_contiguous()
    seen = seen_keys(lengths, q.shape[1], k.shape[1], window)
    c = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    wide = [x.double() for x in (q, k, v)]
    ref = reference.decode_attention(*wide, given, scale=scale, window=window)
    torch.testing.assert_close(ref, plain(*wide, seen, c))
    # A part's output is divided by its sum of weights, weighted again, added up and divided: four roundings of fp32,
    # 2^-24 of the largest number each, which attention in one piece does not make.
    parts = 2**-22 * ref.abs().max().item()
    for peer in (plain, sdpa):
        assert_as_good_as_torch(ours, peer(q, k, v, seen, c), ref, peer.__name__, extra=parts)
    assert not ours[~seen[:, 0].any(-1)].any()  # a query that sees nothing gives zeros
    return ours


SHAPES = [  # B, Tq, S, H, Hkv, D; rows of 0, 1, S, about half of it, and one past a tile
    (5, 1, 70, 2, 2, 16),
    (5, 2, 65, 2, 1, 24),
    (4, 5, 96, 2, 1, 64),
    (5, 1, 100, 4, 1, 128),
    (1, 16, 50, 3, 1, 32),  # 48 rows: several tiles of queries
    (5, 1, 1, 1, 1, 16),
    (2, 1, 300, 1, 1, 256),  # 10 parts, more than decode_combine takes at a time
]
if CUDA:
    SHAPES += [(5, 1, 5000, 12, 12, 64), (5, 4, 3000, 16, 2, 128), (64, 1, 1024, 12, 12, 64), (1, 1, 40000, 1, 1, 64),
               (2, 16, 3000, 16, 2, 64)]  # fmt: skip


def ragged(B, S):
    return [[S, 0, 1, S // 2 + 1, min(33, S)][b % 5] for b in range(B)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype):
    check(*inputs(*shape, dtype), ragged(shape[0], shape[2]))


@pytest.mark.parametrize("window", [1, 2, 31, 33, 1000])
def test_windows(window):
    check(*inputs(3, 3, 99, 2, 1, 16, torch.float32), [99, 1, 65], window=window)


def test_lengths_at_the_edges_of_tiles():
    lengths = [2, 3, 31, 32, 33, 34, 63, 64, 65, 66, 69]
    check(*inputs(len(lengths), 2, 69, 1, 1, 16, torch.float32), lengths)


@given(data=st.data())
@settings(max_examples=int(os.environ.get("GPTFAST_EXAMPLES", 300 if CUDA else 12)), deadline=None, derandomize=True)
def test_any_shape(data):
    draw = data.draw
    Tq, Hkv, G, B = (draw(st.integers(1, most)) for most in ((16, 2, 4, 3) if CUDA else (4, 2, 3, 2)))
    S = draw(st.integers(Tq, 3000 if CUDA else 100))
    check(
        *inputs(
            B, Tq, S, Hkv * G, Hkv, 8 * draw(st.integers(2, 9)), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 9))
        ),
        draw(st.lists(st.integers(0, S), min_size=B, max_size=B)),
        scale=draw(st.none() | st.floats(0.01, 2)),
        window=draw(st.none() | st.integers(1, S + 5)),
    )


def test_a_length_outside_the_cache_counts_as_its_nearest():
    q, k, v = inputs(3, 2, 50, 1, 1, 16, torch.float32)
    got, want = (decode_attention(q, k, v, numbers(x)) for x in ([-(2**31), 51, 2**31 - 1], [0, 50, 50]))
    assert torch.equal(got, want)
    torch.testing.assert_close(reference.decode_attention(q, k, v, numbers([-(2**31), 51, 2**31 - 1])), want)


def test_generation_step_by_step_equals_causal_attention():
    q, k, v = inputs(1, 40, 40, 2, 1, 16, torch.float32)
    want = reference.causal_attention(q, k, v)
    k_cache, v_cache = (torch.full_like(x, math.nan) for x in (k, v))
    start = 0
    for steps in (6, 1, 1, 3, 16, 13):  # a prompt in pieces, tokens, guessed tokens
        new = slice(start, start := start + steps)
        k_cache[:, new], v_cache[:, new] = k[:, new], v[:, new]
        got = decode_attention(q[:, new], k_cache, v_cache, numbers([start]))
        torch.testing.assert_close(got, want[:, new])


# Parts


def test_the_number_of_parts():
    assert decode.parts(12, 1024, 64, 132) == 16  # no more than tiles
    assert decode.parts(12, 8192, 64, 132) == 22  # two programs for each multiprocessor
    assert decode.parts(384, 1024, 64, 132) == 1  # enough programs already
    assert decode.parts(384, 8192, 64, 132) == 8  # but no part of more than 1,024 keys
    assert decode.parts(1, 1, 64, 132) == 1


def test_many_parts_equal_one(monkeypatch):
    q, k, v = inputs(3, 2, 300, 1, 1, 256, torch.float32)
    k[:, 290:] *= 8  # the largest scores are in the last part, which decode_combine takes in its second step
    tensors = (q, k, v, numbers([300, 90, 1]))
    got = []
    for n in (1, 2, 7, 50):
        monkeypatch.setattr(decode, "parts", lambda *_, n=n: n)
        got.append(decode_attention(*tensors))
    for other in got[1:]:
        torch.testing.assert_close(other, got[0], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_cuda_graph():
    q, k, v = inputs(3, 1, 2000, 4, 4, 64, torch.float16)
    lengths = numbers([5, 0, 100])
    decode_attention(q, k, v, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = decode_attention(q, k, v, lengths)
    for new in ([5, 0, 100], [6, 1, 2000], [1999, 64, 65]):
        lengths.copy_(numbers(new))
        graph.replay()
        assert torch.equal(o, decode_attention(q, k, v, lengths))


# Strides


def layouts(B, S, H, D, dtype):
    torch.manual_seed(0)
    yield "packed", torch.randn(B, S, 2, H, D, device=DEVICE, dtype=dtype).unbind(2)
    yield "heads first", torch.randn(2, B, H, S, D, device=DEVICE, dtype=dtype).transpose(2, 3).unbind(0)
    yield "padded", torch.randn(2, B, S + 3, H + 1, D + 8, device=DEVICE, dtype=dtype)[:, :, 2:-1, 1:, :D].unbind(0)
    yield "off by one", torch.randn(2 * B * S * H * D + 1, device=DEVICE, dtype=dtype)[1:].view(2, B, S, H, D).unbind(0)
    yield "odd rows", torch.randn(2, B, S, H, D + 1, device=DEVICE, dtype=dtype)[..., :D].unbind(0)
    yield "one row for all", torch.randn(2, 1, S, H, D, device=DEVICE, dtype=dtype).expand(2, B, S, H, D).unbind(0)
    k, v = torch.randn(2, S, B, H, D, device=DEVICE, dtype=dtype).unbind(0)
    yield "k and v apart", (k.transpose(0, 1), v.view(B, S, H, D))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, _ in layouts(1, 1, 1, 16, torch.float32)])
def test_strides(name, dtype):
    k, v = dict(layouts(2, 43, 2, 16, dtype))[name]
    qkv = torch.randn(2, 1, 3, 4, 16, device=DEVICE, dtype=dtype)
    lengths = torch.tensor([[43, 0], [35, 0]], dtype=torch.int32, device=DEVICE)[:, 0]
    check(qkv[:, :, 0], k, v, lengths)


def test_offsets_past_two_to_the_31():
    step = (1 << 24) - 8  # between positions: the most that is taken; pages never written take no memory
    flat = torch.empty(140 * step, dtype=torch.float16, device=DEVICE)
    half = 69 * step  # below 2^31, and twice it above
    for shape, strides in (
        ((1, 139, 1, 16), (0, step, 0, 1)),
        ((3, 1, 1, 16), (half, 16, 0, 1)),
        ((1, 1, 3, 16), (0, 16, half, 1)),
    ):
        near = torch.randn(shape, device=DEVICE).half()
        far = flat.as_strided(shape, strides).copy_(near)
        lengths = numbers([shape[1]] * shape[0])
        q = near[:, :1]
        assert torch.equal(decode_attention(q, far, far, lengths), decode_attention(q, near, near, lengths))
        assert torch.equal(
            decode_attention(far[:, -1:], near, near, lengths), decode_attention(near[:, -1:], near, near, lengths)
        )


# Values


@pytest.mark.parametrize("window", [None, 40])
def test_what_no_query_sees_may_hold_anything(window):
    lengths = [100, 0, 1, 64, 71]
    q, k, v = inputs(5, 2, 100, 2, 1, 16, torch.float32)
    want = decode_attention(q, k, v, numbers(lengths), window=window)
    unseen = ~seen_keys(lengths, 2, 100, window).any(2)[:, 0]
    assert unseen.sum() > 200
    k[unseen], v[unseen] = math.nan, math.nan
    assert torch.equal(decode_attention(q, k, v, numbers(lengths), window=window), want)
    torch.testing.assert_close(reference.decode_attention(q, k, v, numbers(lengths), window=window), want)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_what_is_not_finite_stays_in_its_batch_row_and_head(which, value):
    tensors = inputs(2, 2, 70, 2, 2, 16, torch.float32)
    lengths = numbers([35, 70])
    want = decode_attention(*tensors, lengths)
    tensors[which][1, 1, 1] = value
    got = decode_attention(*tensors, lengths)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1, :, 0], want[1, :, 0])
    assert not got[1, 1, 1].isfinite().all()
    torch.testing.assert_close(reference.decode_attention(*tensors, lengths), got, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits(dtype):
    q, k, v = inputs(2, 1, 70, 1, 1, 16, dtype)
    check(q * 40, k * 40, v, [70, 40])


def test_logits_that_are_infinite():
    q, k, v = inputs(2, 1, 100, 1, 1, 16, torch.float32)
    q[..., 0], k[..., 0] = 1, 0
    k[:, :64, :, 0] = -math.inf
    got = decode_attention(q, k, v, numbers([64, 100]))  # all that one row sees; two whole parts of the other
    assert got[0].isnan().all() and not got[1].isnan().any()
    torch.testing.assert_close(got, reference.decode_attention(q, k, v, numbers([64, 100])), equal_nan=True)


def test_no_rows():
    assert decode_attention(*inputs(0, 1, 4, 2, 2, 16, torch.float32), numbers([])).shape == (0, 1, 2, 16)


# As an operator


def test_operator():
    q, k, v = inputs(2, 2, 50, 2, 1, 16, torch.float32)
    torch.library.opcheck(torch.ops.gptfast.decode_attention.default, (q, k, v, numbers([50, 7]), 0.25, 20))


def test_compiled_equals_eager():
    f = torch.compile(lambda *x: decode_attention(*x, window=30) * 2, fullgraph=True, backend="aot_eager", dynamic=True)
    for B, S in ((2, 50), (3, 61)):
        tensors = (*inputs(B, 2, S, 2, 1, 16, torch.float32), numbers(ragged(B, S)))
        assert torch.equal(f(*tensors), decode_attention(*tensors, window=30) * 2)


def test_autocast():
    q, k, v = inputs(2, 1, 40, 1, 1, 16, torch.float32)
    with torch.autocast(DEVICE, torch.float16):
        got = decode_attention(q, k.half(), v.half(), numbers([40, 3]))
    assert torch.equal(got, decode_attention(q.half(), k.half(), v.half(), numbers([40, 3])))


def test_no_gradient():
    q, k, v = inputs(1, 1, 4, 1, 1, 16, torch.float32)
    k.requires_grad_()
    with pytest.raises(RuntimeError, match="k_cache requires a gradient and decode_attention has none; use causal_att"):
        decode_attention(q, k, v, numbers([4]))
    with torch.no_grad():
        decode_attention(q, k, v, numbers([4]))


def wrong():
    q, k, v = inputs(2, 1, 8, 4, 2, 16, torch.float32)
    n = numbers([8, 3])
    yield "k_cache is a list; it must be a tensor", TypeError, (q, [1.0], v, n), {}
    yield "k_cache is \\[8, 2, 16\\]; it must be \\[B, T, H, D\\]", ValueError, (q, k[0], v, n), {}
    yield "q is int64; it must be float16, bfloat16 or float32", TypeError, (q.long(), k, v, n), {}
    yield "v_cache is float16 and q is float32; they must be of one dtype", TypeError, (q, k, v.half(), n), {}
    yield "v_cache is on meta and q on", ValueError, (q, k, v.to("meta"), n), {}
    yield "k_cache has a last stride of 2; it must be 1", ValueError, (q, k.mT.contiguous().mT, v, n), {}
    yield "k_cache is .* and v_cache is .*; they must have one shape", ValueError, (q, k, v[:, 1:], n), {}
    yield "q is .* and k_cache is .*; B and D must agree", ValueError, (q[:1], k, v, n), {}
    yield "the head dimension D is 12", ValueError, (q[..., :12], k[..., :12], v[..., :12], n), {}
    yield "q has 3 heads and k_cache has 2", ValueError, (q[:, :, :3], k, v, n), {}
    yield "q has 9 positions and k_cache has 8", ValueError, (q.expand(2, 9, 4, 16), k, v, n), {}
    long = k.repeat(1, 3, 1, 1)
    yield "q has 17 positions; it must have 1 to 16", ValueError, (q.expand(2, 17, 4, 16), long, long, n), {}
    yield "q has 0 positions; it must have 1 to 16", ValueError, (q[:, :0], k, v, n), {}
    yield "lengths is a list; it must be an int32 tensor", TypeError, (q, k, v, [8, 3]), {}
    yield "lengths is int64; it must be int32", TypeError, (q, k, v, n.long()), {}
    yield "lengths is \\[3\\]; it must be \\[2\\]", ValueError, (q, k, v, numbers([1, 2, 3])), {}
    yield "lengths is on meta and q on", ValueError, (q, k, v, n.to("meta")), {}
    yield "scale is 0; it must be a finite number above 0", ValueError, (q, k, v, n), {"scale": 0}
    yield "window is 1.5; it must be a whole number", TypeError, (q, k, v, n), {"window": 1.5}
    yield "window is 0; it must be at least 1", ValueError, (q, k, v, n), {"window": 0}


@pytest.mark.parametrize(
    ("message", "error", "tensors", "features"), list(wrong()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_wrong_arguments(message, error, tensors, features):
    with pytest.raises(error, match=f"^{message}"):
        decode_attention(*tensors, **features)
