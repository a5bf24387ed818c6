"""Cross entropy of logits and of x W^T on ATen's path, against torch and the reference, by DESIGN's rule."""

from __future__ import annotations

import pytest
import torch
from gptfast.kernels import chunked, reference
from rule import assert_as_good_as_torch, gradients
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gptfast import aten, ops

OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"label_smoothing": 0.3, "z_loss": 1e-3}]


def plain(logits, t, reduction="mean", label_smoothing=0.0, z_loss=0.0):
    """The same from torch's own operations, in the dtype of the logits."""
    losses = F.cross_entropy(logits, t, reduction="none", label_smoothing=label_smoothing)
    losses = losses + (z_loss * logits.logsumexp(1).square()).where(t != -100, 0.0)
    total = losses if reduction == "none" else losses.sum()
    return (total / (t != -100).sum() if reduction == "mean" else total).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("N", "V", "C"), [(1, 2, 3), (113, 203, 16), (40, 5003, 32)])
def test_linear_cross_entropy_and_its_gradients(N, V, C, options, reduction, dtype, monkeypatch):
    # Five chunks and a shorter one, with several blocks in each
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", max(1, N // 5) * V * dtype.itemsize)
    monkeypatch.setattr(aten, "SOFTMAX_BYTES", max(1, N // 15) * V * 4)
    monkeypatch.setattr(chunked, "BLOCK", 100)
    torch.manual_seed(0)
    x, w, t = torch.randn(N, C, dtype=dtype), torch.randn(V, C, dtype=dtype), torch.randint(V, (N,))
    t[: N // 3] = -100
    options = {"reduction": reduction, **options}
    theirs = gradients(lambda x, w: plain(x @ w.T, t, **options), x, w)
    ref = gradients(lambda x, w: reference.linear_cross_entropy(x, w, t, **options), x.double(), w.double())
    # A loss is off by at most twice what its logits are, in any way of multiplying; for a single number that is luck.
    noise = 2 * ((x @ w.T).double() - x.double() @ w.double().T).abs().max().item() * (N if reduction == "sum" else 1)
    for recompute in (False, True):
        ours = gradients(lambda x, w: ops.linear_cross_entropy(x, w, t, recompute=recompute, **options), x, w)  # noqa: B023
        assert_as_good_as_torch(ours[0], theirs[0], ref[0], extra=noise)
        for triple in zip(ours[1:], theirs[1:], ref[1:], strict=True):
            assert_as_good_as_torch(*triple)
    with torch.no_grad():
        torch.testing.assert_close(ops.linear_cross_entropy(x, w, t, **options), ours[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_and_its_gradient(reduction, options):
    logits, t = torch.randn(20, 30) * 4, torch.randint(30, (20,))
    t[3] = -100
    options = {"reduction": reduction, **options}
    triples = (
        gradients(lambda z: ops.cross_entropy(z, t, **options), logits),
        gradients(lambda z: plain(z, t, **options), logits),
        gradients(lambda z: reference.cross_entropy(z, t, **options), logits.double()),
    )

    def rows(z):
        return reference.cross_entropy(z, t, **{**options, "reduction": "none"})

    each = (plain(logits, t, **{**options, "reduction": "none"}), rows(logits.double()))
    noise = 2 * (each[0] - each[1]).abs().max().item() * (20 if reduction == "sum" else 1)  # of torch's rows, summed
    for i, triple in enumerate(zip(*triples, strict=True)):
        assert_as_good_as_torch(*triple, extra=0.0 if i else noise)
    assert ops.cross_entropy(logits.bfloat16(), t).dtype == torch.float32


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_reference_cross_entropy_equals_torch(options):
    logits, t = torch.randn(7, 11).double(), torch.randint(11, (7,))
    t[2] = -100
    for reduction in ("mean", "sum", "none"):
        want = F.cross_entropy(logits, t, reduction=reduction, **options)
        torch.testing.assert_close(reference.cross_entropy(logits, t, reduction=reduction, **options), want)


def test_extreme_logits():
    x = torch.tensor([[1e4], [-1e4]])
    w = torch.tensor([[1.0], [-1.0], [0.5]])
    t = torch.tensor([1, 0])
    got = ops.linear_cross_entropy(x, w, t, reduction="none")
    torch.testing.assert_close(got, F.cross_entropy(x @ w.T, t, reduction="none"))


@pytest.mark.parametrize("recompute", [False, True])
def test_without_targets_the_mean_is_nan_and_its_gradient_zero_as_torchs(recompute):
    x, w, t = torch.randn(3, 4), torch.randn(5, 4), torch.full((3,), -100)
    ours = gradients(lambda x, w: ops.linear_cross_entropy(x, w, t, recompute=recompute), x, w)
    theirs = gradients(lambda x, w: F.cross_entropy(x @ w.T, t), x, w)
    assert ours[0].isnan() and theirs[0].isnan()
    assert all(map(torch.equal, ours[1:], theirs[1:])) and not ours[1].any()


def test_a_nan_shows_in_rows_that_count_only():
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    with torch.no_grad():
        x[0], x[2] = torch.nan, torch.nan
    got = ops.linear_cross_entropy(x, w, torch.tensor([1, 2, -100]), reduction="none")
    assert got[0].isnan() and got[1].isfinite() and got[2] == 0
    got[1:].sum().backward()
    assert x.grad[1:].isfinite().all() and not x.grad[2].any()


def test_no_logits_of_the_whole_batch_are_held(monkeypatch):
    """The largest tensor made is a chunk of logits or a gradient, never [N, V]."""
    N, V, C = 64, 1000, 8
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 8 * V * 4)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(o.numel() for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, torch.Tensor))
            return out

    x, w = torch.randn(N, C), torch.randn(V, C)
    with Watch():
        aten._chunked.sum.run(x, w, torch.randint(V, (N,)), -100, 0.0, 0.0, True, True)
    assert max(sizes) == V * C


@pytest.mark.parametrize("name", ["sum", "losses"])
def test_registered_operators_are_well_formed(name):
    x, w = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    args = (x, w, torch.randint(9, (6,)), -100, 0.1, 0.01, *[True, True] * (name == "sum"))
    torch.library.opcheck(getattr(aten._chunked, name).registered.default, args)


def test_autocast():
    """fp32 weights under autocast run in bf16, as in `torch.nn.functional`."""
    torch.manual_seed(0)
    x, w, t = torch.randn(20, 8), torch.randn(50, 8), torch.randint(50, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(lambda x, w: ops.linear_cross_entropy(x, w, t), x, w)
        theirs = gradients(lambda x, w: F.cross_entropy(F.linear(x, w), t), x, w)
    ref = gradients(lambda x, w: F.cross_entropy(x @ w.T, t), x.double(), w.double())
    for triple in zip(ours, theirs, ref, strict=True):
        assert triple[0].dtype == torch.float32
        assert_as_good_as_torch(*triple)


def test_small_gradients_survive_a_loss_scale_in_fp16():
    """1 / N is below fp16's smallest number, and is multiplied in when the scale is there."""
    torch.manual_seed(0)
    N, scale = 4096, 65536.0
    x, w, t = torch.randn(N, 8) * 1e-3, torch.randn(20, 8) * 1e-2, torch.randint(20, (N,))
    wide = [x.double().requires_grad_(), w.double().requires_grad_()]
    ref = torch.autograd.grad(reference.linear_cross_entropy(*wide, t), wide)
    for recompute in (False, True):
        inputs = [x.half().requires_grad_(), w.half().requires_grad_()]
        loss = ops.linear_cross_entropy(*inputs, t, recompute=recompute)
        found = torch.autograd.grad(loss, inputs, torch.tensor(scale))
        for got, want in zip(found, ref, strict=True):  # inputs, logits, their gradient and the result are rounded
            assert (got.double() / scale - want).abs().max() < 4 * 2**-11 * want.abs().max()


@pytest.mark.parametrize("options", [{}, {"recompute": True, "label_smoothing": 0.1}, {"reduction": "none"}], ids=str)
def test_gradients_equal_finite_differences(options, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 200)
    x, w = (torch.randn(n, 4, dtype=torch.double, requires_grad=True) for n in (6, 9))
    t = torch.tensor([0, 8, -100, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x, w: ops.linear_cross_entropy(x, w, t, z_loss=0.1, **options), (x, w))


def test_a_second_derivative_is_refused_and_not_computed_wrongly():
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    for recompute in (False, True):
        loss = ops.linear_cross_entropy(x.square(), w, torch.tensor([0, 1, 2, 3]), recompute=recompute)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", ["x", "w"])
def test_what_is_frozen_costs_no_gradient(frozen, recompute):
    x, w, t = torch.randn(9, 4), torch.randn(5, 4), torch.randint(5, (9,))
    wanted = (w if frozen == "x" else x).requires_grad_()
    (got,) = torch.autograd.grad(ops.linear_cross_entropy(x, w, t, recompute=recompute), wanted)
    want = torch.autograd.grad(F.cross_entropy(x @ w.T, t), wanted)[0]
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        empty = aten._chunked.sum.run(x, w, t, -100, 0.0, 0.0, frozen != "x", frozen != "w")
    assert empty[1 if frozen == "x" else 2].numel() == 0


def test_a_model_without_memory():
    model = torch.nn.Linear(4, 5, bias=False, device="meta")
    x, t = torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
    loss = ops.linear_cross_entropy(x, model.weight, t)
    assert loss.device.type == "meta" and loss.shape == ()


def test_bad_input():
    empty = torch.empty(0, dtype=torch.long)
    assert ops.linear_cross_entropy(torch.empty(0, 4), torch.randn(5, 4), empty, reduction="sum") == 0
    x, w, t = torch.randn(1, 4), torch.randn(5, 4), torch.tensor([0])
    for module in (ops, reference):
        with pytest.raises(ValueError, match="reduction is 'avg'"):
            module.linear_cross_entropy(x, w, t, reduction="avg")
    with pytest.raises(IndexError, match="targets holds 5; allowed is 0 to 4, or -100 to be ignored"):
        ops.linear_cross_entropy(x, w, torch.tensor([5]))
    with pytest.raises(ValueError, match=r"targets is \[2\]; it must be \[1\]"):
        ops.linear_cross_entropy(x, w, torch.tensor([0, 1]))
