"""cross_entropy and linear_cross_entropy against the reference: options, what is ignored, chunks, values at the edge.

The peer of the error rule is torch.nn.functional.cross_entropy of logits in the same dtype. Outputs hold NaN before.
"""

from __future__ import annotations

import math

import pytest
import torch
from compare import CUDA, DEVICE, DTYPES, check, integers, layouts, leaf, numbers, results
from gptfast.kernels import chunked, cross_entropy, linear_cross_entropy, linear_loss, loss, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # NaN and inf in the interpreter's numpy
]


def torchs(logits, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0):
    out = F.cross_entropy(logits, targets, None, None, ignore_index, None, reduction, label_smoothing)
    if z_loss:
        squares = torch.logsumexp(logits, 1).square().where(targets != ignore_index, 0)
        count = (targets != ignore_index).sum() if reduction == "mean" else 1
        out = out + z_loss * (squares if reduction == "none" else squares.sum() / count)
    return out


def torchs_linear(x, weight, targets, recompute=False, **options):
    return torchs(x @ weight.T, targets, **options)


def check_loss(logits, targets, twin=reference.cross_entropy, **options):
    def call(f):
        return lambda logits: f(logits, targets, **options)

    nothing = {"output 0": 2**-22 * logits.detach().abs().max().item(), "gradient 0": 2**-22}  # what z - z comes to
    return check(*map(call, (cross_entropy, torchs, twin)), [logits], nothing if logits.shape[1] == 1 else None)


def check_linear(x, weight, targets, **options):
    def call(f):
        return lambda x, w: f(x, w, targets, **options)

    functions = linear_cross_entropy, torchs_linear, reference.linear_cross_entropy
    sums = 2**-22 * weight.detach().abs().max().item()  # dx = dz W, where dz has a sum of 0
    return check(*map(call, functions), [x, weight], {"gradient 0": sums})


def targets_of(N, V, ignored=0, ignore_index=-100):
    targets = integers(V, N, seed=9)
    targets[: 2 * ignored : 2] = ignore_index
    return targets


# cross_entropy

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"z_loss": 1e-3},
    {"ignore_index": 3, "label_smoothing": 0.1, "z_loss": 1e-2},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1, 2, 63, 64, 65, 300, 5003] + [50257] * CUDA)
def test_widths(V, dtype):
    N = 2 if V > 1000 else 5
    check_loss(numbers(N, V, dtype=dtype), targets_of(N, V, 1))
    check_loss(numbers(N, V, dtype=dtype), targets_of(N, V), label_smoothing=0.1, z_loss=1e-3, reduction="sum")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options, reduction, dtype):
    ignore_index = options.get("ignore_index", -100)
    targets = targets_of(9, 70, 3, ignore_index)
    targets[7] = 69
    got, dlogits = check_loss(numbers(9, 70, dtype=dtype), targets, reduction=reduction, **options)
    assert got.dtype == torch.float32 and dlogits.dtype == dtype
    assert not dlogits[targets == ignore_index].any()


@pytest.mark.parametrize("name", layouts(1, 1))
def test_strides(name):
    check_loss(layouts(6, 70)[name], targets_of(6, 70, 1), label_smoothing=0.1)
    check_loss(numbers(6, 70), targets_of(12, 70)[::2])


def test_an_upstream_gradient_with_strides_of_its_own():
    logits, targets = numbers(6, 70), targets_of(6, 70)
    for make in (lambda g: g[:1].expand(6), lambda g: torch.stack((g, -g), 1)[:, 0], lambda g: g.flip(0)):
        losses = cross_entropy(logits, targets, reduction="none")
        upstream = make(torch.arange(1.0, 7, device=DEVICE))
        (got,) = torch.autograd.grad(losses, logits, upstream, retain_graph=True)
        assert torch.equal(got, torch.autograd.grad(losses, logits, upstream.clone())[0])


def test_offsets_past_two_to_the_31():
    step = 3 << 29  # rows never written take no memory
    flat = torch.empty(2 * step + 70, dtype=torch.float16, device=DEVICE)
    far, near, targets = flat.as_strided((3, 70), (step, 1)), numbers(3, 70, dtype=torch.float16), targets_of(3, 70)
    far.copy_(near.detach())
    got, want = (results(lambda x: cross_entropy(x, targets), [x]) for x in (leaf(far), near))
    assert all(map(torch.equal, got, want))


def test_no_rows():
    logits, targets = numbers(0, 7), integers(7, 0)
    assert cross_entropy(logits, targets, reduction="none").shape == (0,)
    assert cross_entropy(logits, targets, reduction="sum") == 0
    assert cross_entropy(logits, targets).isnan()
    assert results(lambda x: cross_entropy(x, targets), [logits])[1].shape == (0, 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_or_one_target_is_left(dtype):
    logits, targets = numbers(5, 70, dtype=dtype), torch.full((5,), -100, device=DEVICE)
    got, dlogits = results(lambda x: cross_entropy(x, targets), [logits])
    assert got.isnan() and not dlogits.any() and not dlogits.isnan().any()
    assert cross_entropy(logits, targets, reduction="sum") == 0
    targets[3] = 69
    check_loss(logits, targets, label_smoothing=0.1, z_loss=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_ignored_rows_may_hold_anything(options, value):
    logits, targets = numbers(6, 70), targets_of(6, 70, 2)
    want = results(lambda x: cross_entropy(x, targets, **options), [logits])
    with torch.no_grad():
        logits[targets == -100] = value
    assert all(map(torch.equal, results(lambda x: cross_entropy(x, targets, **options), [logits]), want))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(value):
    logits, targets = numbers(6, 70), targets_of(6, 70)
    want = results(lambda x: cross_entropy(x, targets, reduction="none"), [logits])
    with torch.no_grad():
        logits[4, 66] = value
    got = results(lambda x: cross_entropy(x, targets, reduction="none"), [logits])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a[[0, 1, 2, 3, 5]], b[[0, 1, 2, 3, 5]])
    assert got[0][4].isnan() and got[1][4].isnan().any()


@pytest.mark.parametrize("classes", [[5], [*range(64)], [*range(64, 150)]], ids=["one", "first block", "last blocks"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_classes_of_probability_zero(classes, z_loss):
    logits, targets = numbers(4, 150), torch.full((4,), 63 if classes[0] >= 64 else 149, device=DEVICE)
    with torch.no_grad():
        logits[:, classes] = -math.inf
    _, dlogits = check_loss(logits, targets, twin=torchs, z_loss=z_loss)
    assert not dlogits[:, classes].any()


def test_classes_of_probability_zero_in_the_reference():
    logits, targets = numbers(4, 150), integers(64, 4)
    with torch.no_grad():
        logits[:, 64:] = -math.inf
    for z_loss in (0.0, 1e-3):
        check_loss(logits, targets, z_loss=z_loss)


def test_nothing_or_the_target_has_probability_zero():
    logits, targets = numbers(3, 70), torch.tensor([69, 0, 1], device=DEVICE)
    with torch.no_grad():
        logits[0, 69], logits[1] = -math.inf, -math.inf
    got = results(lambda x: cross_entropy(x, targets, reduction="none"), [logits])
    want = results(lambda x: torchs(x, targets, reduction="none"), [logits])
    assert got[0][0] == math.inf and got[0][1].isnan() and got[0][2].isfinite()
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@pytest.mark.parametrize("likely", [True, False])
def test_large_logits(likely, options, dtype):
    """The peer computes 16 bits in fp32: its losses would be infinite."""
    logits = numbers(4, 130, dtype=dtype)
    with torch.no_grad():
        logits.clamp_(-1, 1).mul_(6e4 if dtype == torch.float16 else 1e4)
    targets = logits.argmax(1) if likely else logits.argmin(1)

    def call(f):
        return lambda x: f(x, targets, reduction="none", **options)

    check(*map(call, (cross_entropy, lambda x, *a, **b: torchs(x.float(), *a, **b), reference.cross_entropy)), [logits])


@pytest.mark.skipif(CUDA, reason="a GPU would have to be waited for")
@pytest.mark.parametrize("wrong", [-1, 70, -101, 2**40])
def test_a_target_that_does_not_exist_is_named(wrong):
    logits, targets = numbers(6, 70), targets_of(6, 70, 2)
    targets[4] = wrong
    for call in (
        lambda: cross_entropy(logits, targets),
        lambda: linear_cross_entropy(logits, numbers(70, 70), targets),
    ):
        with pytest.raises(IndexError, match=f"^targets holds {wrong}; allowed is 0 to 69, or -100 to be ignored$"):
            call()
    targets[4] = 3
    with pytest.raises(IndexError, match="^targets holds -100; allowed is 0 to 69, or 5 to be ignored$"):
        cross_entropy(logits, targets, ignore_index=5)


@pytest.mark.parametrize("wrong", [-1, 70, 2**40])
def test_a_target_that_does_not_exist_gives_nan_in_its_row_alone(wrong):
    logits, targets = numbers(6, 70), targets_of(6, 70, 2)

    def run(x):
        return loss._cross_entropy(x, targets, -100, 0.1, 0.0)[0]

    want = results(run, [logits])
    targets[4] = wrong
    for got, right in zip(results(run, [logits]), want, strict=True):
        assert got[4].isnan().all()
        assert torch.equal(got[[0, 1, 2, 3, 5]], right[[0, 1, 2, 3, 5]])


@given(data=st.data())
@settings(max_examples=80 if CUDA else 25, deadline=None, derandomize=True)
def test_any_shape_and_options(data):
    draw = data.draw
    N, V = draw(st.integers(1, 9)), draw(st.integers(1, 5000 if CUDA else 150))
    options = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 1e-3])),
        "ignore_index": draw(st.sampled_from([-100, -1, 0])),
    }
    targets, dtype = (
        targets_of(N, V, draw(st.integers(0, N // 2)), options["ignore_index"]),
        draw(st.sampled_from(DTYPES)),
    )
    if not (targets != options["ignore_index"]).any():
        options["reduction"] = "sum"
    if draw(st.booleans()):
        check_loss(layouts(N, V, dtype=dtype)[draw(st.sampled_from([*layouts(1, 1)]))], targets, **options)
    else:
        recompute = draw(st.booleans())
        x, weight = numbers(N, 8, dtype=dtype), numbers(V, 8, dtype=dtype, seed=4)
        check_linear(x, weight, targets, recompute=recompute, **options)


# linear_cross_entropy


@pytest.fixture
def chunk_of(monkeypatch):
    """Called with rows, a width and a dtype: no more logits are held at once."""

    def set_bytes(rows, V, dtype):
        size = rows * V * torch.empty(0, dtype=dtype).element_size()
        monkeypatch.setattr(chunked, "CHUNK_BYTES", {"cpu": size, "cuda": size})

    return set_bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 10, 100])
def test_chunks(rows, recompute, dtype, chunk_of):
    N, V = (300, 257) if CUDA else (11, 257)
    chunk_of(rows, V, dtype)
    x, weight = numbers(N, 24, dtype=dtype), numbers(V, 24, dtype=dtype, seed=4)
    got, dx, dw = check_linear(x, weight, targets_of(N, V, 3), recompute=recompute)
    assert got.dtype == torch.float32 and dx.dtype == dw.dtype == dtype
    assert not dx[:6:2].any()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linear_options(options, reduction, recompute, chunk_of):
    chunk_of(4, 70, torch.float32)
    targets = targets_of(9, 70, 2, options.get("ignore_index", -100))
    check_linear(numbers(9, 16), numbers(70, 16, seed=4), targets, reduction=reduction, recompute=recompute, **options)


@pytest.mark.parametrize("name", layouts(1, 1))
def test_strides_of_x_and_of_the_weight(name):
    check_linear(layouts(6, 24)[name], layouts(70, 24)[name], targets_of(12, 70, 1)[::2])


@pytest.mark.parametrize("recompute", [False, True])
def test_tied_and_frozen_weights(recompute, chunk_of):
    chunk_of(4, 70, torch.float32)
    x, weight, targets = numbers(9, 16), numbers(70, 16, seed=4), targets_of(9, 70)

    def call(f):
        return lambda x, w: f(x + F.embedding(targets.flip(0), w), w, targets)

    def ours(x, weight, targets):
        return linear_cross_entropy(x, weight, targets, recompute=recompute)

    check(*map(call, (ours, torchs_linear, reference.linear_cross_entropy)), [x, weight])
    _, dx, dw = results(lambda *t: ours(*t, targets), [x, weight])
    assert torch.equal(results(lambda *t: ours(*t, targets), [x, weight.detach()])[1], dx)
    assert torch.equal(results(lambda *t: ours(*t, targets), [x.detach(), weight])[1], dw)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, weight, targets), torchs_linear(x, weight, targets))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_or_one_target_is_left_in_any_chunk(dtype, recompute, chunk_of):
    chunk_of(2, 70, dtype)
    x, weight, targets = numbers(7, 16, dtype=dtype), numbers(70, 16, dtype=dtype, seed=4), targets_of(7, 70)
    targets[:] = -100

    def run(x, weight):
        return linear_cross_entropy(x, weight, targets, recompute=recompute)

    got, *gradients = results(run, [x, weight])
    assert got.isnan() and not any(g.any() for g in gradients)
    targets[6] = 69
    check_linear(x, weight, targets, recompute=recompute)
    empty = torch.empty(0, 16, device=DEVICE, dtype=dtype)
    assert linear_cross_entropy(empty, weight, targets[:0], reduction="sum", recompute=recompute) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_ignored_row_of_x_may_hold_anything(value, chunk_of):
    chunk_of(2, 70, torch.float32)
    x, weight, targets = numbers(6, 8), numbers(70, 8, seed=4), targets_of(6, 70, 1)
    with torch.no_grad():
        x[0] = value
    got, dx, dw = results(lambda *t: linear_cross_entropy(*t, targets), [x, weight])
    assert got.isfinite() and not dx[0].any() and dx[1:].isfinite().all()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kept", [64, 1])
def test_small_gradients_do_not_vanish(kept, recompute, chunk_of):
    """A loss scale of 65,536, as GradScaler starts with. The error is relative to the largest gradient."""
    dtype, N, V = torch.float16, 64, 257
    chunk_of(16, V, dtype)
    x, weight, targets = (numbers(N, 16) / 8).to(dtype), (numbers(V, 16, seed=4) / 8).to(dtype), targets_of(N, V)
    inputs, scale = [leaf(x), leaf(weight)], torch.tensor(65536.0, device=DEVICE)
    targets[kept:] = -100

    def run(f, inputs):
        out = f(*inputs)
        return torch.autograd.grad(out, inputs, scale.to(out.dtype))

    ours = run(lambda x, w: linear_cross_entropy(x, w, targets, recompute=recompute), inputs)
    theirs = run(lambda x, w: F.cross_entropy((x @ w.T).float(), targets), inputs)
    ref = run(lambda x, w: reference.linear_cross_entropy(x, w, targets), [leaf(x.double()) for x in inputs])
    for a, b, c in zip(ours, theirs, ref, strict=True):
        error, allowed = (a.double() - c).abs().max(), (b.double() - c).abs().max()
        assert error <= 2 * allowed + 2**-11 * c.abs().max()
        assert a[c.abs() > 1].all() and c.abs().max() > 50


def test_many_chunks_lose_no_digits_of_the_weights_gradient(chunk_of):
    """linkedin/Liger-Kernel#512 and #827: a sum over chunks in 16 bits."""
    dtype, N, V = torch.float16, 128, 33
    x, weight, targets = leaf(numbers(N, 16) + 1).to(dtype), numbers(V, 16, dtype=dtype, seed=4), targets_of(N, V)
    inputs, errors = [leaf(x), weight], {}
    (ref,) = results(lambda w: reference.linear_cross_entropy(x.double(), w, targets), [leaf(weight.double())])[1:]
    for chunks in (1, 64):
        chunk_of(N // chunks, V, dtype)
        dw = results(lambda *t: linear_cross_entropy(*t, targets), inputs)[2]
        errors[chunks] = (dw.double() - ref).abs().max().item()
    assert errors[64] <= 1.5 * errors[1]
    check_linear(*inputs, targets, reduction="sum")


@pytest.mark.parametrize("gradients", [True, False])
def test_no_logits_of_the_whole_batch_are_held(gradients, chunk_of):
    """The largest tensor made is a chunk of logits or a gradient, never [N, V]."""
    N, V, C = (1024, 1000, 8) if CUDA else (16, 257, 4)
    rows = N // 8
    chunk_of(rows, V, torch.float32)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made = [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, torch.Tensor)]
            sizes.extend(o.numel() * o.element_size() for o in made)
            return out

    operator = linear_loss._chunked.sum if gradients else linear_loss._chunked.losses
    with Watch(), torch.no_grad():
        flags = (True, True) if gradients else ()
        operator.run(numbers(N, C), numbers(V, C), targets_of(N, V), -100, 0.0, 0.0, *flags)
    assert 4 * rows * V <= max(sizes) <= 4 * max(rows * -(-V // 64) * 64, V * C, N * C) < 4 * N * V


def test_a_sum_over_many_rows_does_not_overflow_in_fp16():
    """dW of one target for all rows, before it is divided by their number, is beyond fp16."""
    x, w = (numbers(300, 8).detach().abs() + 1).half(), numbers(20, 8, dtype=torch.float16)
    loss = linear_cross_entropy(x, w, torch.zeros(300, dtype=torch.long, device=DEVICE))
    (got,) = torch.autograd.grad(loss, w)
    wide = w.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(
        F.cross_entropy(x.double() @ wide.T, torch.zeros(300, dtype=torch.long).to(DEVICE)), wide
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-3)
