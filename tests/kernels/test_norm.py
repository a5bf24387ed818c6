"""layer_norm and add_layer_norm against the reference: widths, rows, strides, dtypes, dropout, values at the edge.

The peer of the error rule is torch.nn.functional.layer_norm in the same dtype. Outputs hold NaN before.
"""

from __future__ import annotations

import math

import pytest
import torch
from compare import CUDA, DEVICE, DTYPES, LAYOUTS, check, dropped, layouts, leaf, numbers, results
from gptfast.kernels import add_layer_norm, layer_norm, norm, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from rule import upstream
from torch.nn import functional as F

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # NaN and inf in the interpreter's numpy
]


def torchs(x, weight, bias, eps, dtype=None):
    """PyTorch's own, in the widest dtype of what it takes."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias, eps).to(dtype or x.dtype)


def torchs_add(x, residual, weight, bias, eps, p):
    wide = torch.promote_types(x.dtype, residual.dtype)
    s = (residual.to(wide) + dropped(x.to(wide), p)).to(residual.dtype)
    return torchs(s.to(wide), weight, bias, eps, x.dtype), s


def parameters(C, dtype, bias=True):
    return [numbers(C, dtype=dtype, seed=1)] + [numbers(C, dtype=dtype, seed=2)] * bias


def cancellation(s, weight, eps, p=0.0):
    """The error of ds = r (g - mean(g) - n mean(g n)): four roundings of r g, which may cancel to nothing.

    At C = 2 they always do.
    """
    s = s.detach().double()
    r = torch.rsqrt(s.var(-1, correction=0) + eps).max() if s.numel() else 0
    return 2**-22 * r * weight.detach().abs().max() * upstream(s).abs().max() / (1 - p)


def check_norm(x, *parameters, eps=1e-5):
    def call(f):
        return lambda x, w, b=None: f(x, w, b, eps)

    extra = {"gradient 0": cancellation(x, parameters[0], eps)}
    return check(*map(call, (layer_norm, torchs, reference.layer_norm)), [x, *parameters], extra)


def check_add(x, residual, *parameters, eps=1e-5, p=0.0):
    def call(f):
        return lambda x, r, w, b=None: f(x, r, w, b, eps, p)

    with torch.no_grad():
        torch.manual_seed(3)
        s = residual + dropped(x, p)
    extra = {f"gradient {i}": cancellation(s, parameters[0], eps, p) for i in (0, 1)}
    return check(*map(call, (add_layer_norm, torchs_add, reference.add_layer_norm)), [x, residual, *parameters], extra)


SHAPES = [(1, 1), (3, 2), (17, 7), (300, 7), (3, 16), (9, 33), (2, 768), (3, 769), (1, 1025)]
SHAPES += [(1000, 769), (4099, 1024), (5000, 33), (700, 8192)] * CUDA


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype):
    check_norm(numbers(*shape, dtype=dtype), *parameters(shape[1], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:3] + SHAPES[4:6] + SHAPES[7:], ids=str)
def test_shapes_with_a_residual_and_dropout(shape, dtype):
    inputs = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=5)
    check_add(*inputs, *parameters(shape[1], dtype), p=0.2)


@pytest.mark.parametrize("C", [8200, 16384])
def test_rows_so_wide_that_the_sums_are_kept_in_memory(C, few_programs, one_row_a_tile):
    few_programs(1)
    inputs = numbers(2, C), numbers(2, C, seed=5)
    check_add(*inputs, *parameters(C, torch.float32), p=0.1)


@pytest.mark.parametrize("most", [8192, 16], ids=["in registers", "in memory"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("programs", [1, 3])
def test_programs_that_walk_over_many_tiles(programs, bias, most, few_programs, monkeypatch):
    few_programs(programs)
    monkeypatch.setattr(norm, "MOST_IN_REGISTERS", most)
    check_norm(numbers(42, 21), *parameters(21, torch.float32, bias))
    check_add(numbers(42, 21), numbers(42, 21, seed=5), *parameters(21, torch.float32, bias), p=0.3)


MIXED = [(x, r, w) for x in DTYPES for r in DTYPES for w in DTYPES if not x == r == w]


@pytest.mark.parametrize("dtypes", MIXED, ids=lambda dtypes: " ".join(str(d)[6:] for d in dtypes))
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_dtypes_of_x_the_residual_and_the_weight_need_not_be_one(dtypes, p):
    x, residual = numbers(5, 40, dtype=dtypes[0]), numbers(5, 40, dtype=dtypes[1], seed=5)
    y, s, *gradients = check_add(x, residual, *parameters(40, dtypes[2]), p=p)
    assert (y.dtype, s.dtype) == dtypes[:2]
    assert [g.dtype for g in gradients] == [*dtypes, dtypes[2]]
    got = check_norm(x, *parameters(40, dtypes[2]))
    assert [g.dtype for g in got] == [dtypes[0], dtypes[0], dtypes[2], dtypes[2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_strides(name, dtype):
    x = layouts(6, 24, dtype=dtype)[name]
    check_norm(x, *parameters(24, dtype))
    check_add(x, numbers(6, 24, dtype=dtype), *parameters(24, dtype), p=0.2)
    check_add(numbers(6, 24, dtype=dtype), x, *parameters(24, dtype), p=0.2)


@pytest.mark.parametrize("name", ["odd start", "every other", "one row for all"])
def test_strides_of_the_parameters(name):
    vectors = [layouts(1, 24)[name][0] for _ in range(2)]
    if name == "one row for all":
        vectors = [leaf(torch.tensor(0.7, device=DEVICE).expand(24)) for _ in range(2)]
    check_norm(numbers(6, 24), *map(leaf, vectors))


@pytest.mark.parametrize("shape", [(24,), (2, 3, 24), (2, 1, 3, 24)], ids=str)
def test_dimensions(shape):
    check_norm(numbers(*shape), *parameters(24, torch.float32))
    check_add(numbers(*shape), numbers(*shape, seed=5), *parameters(24, torch.float32), p=0.2)
    if len(shape) > 1:
        for name in ("padded rows", "transposed"):
            check_add(layouts(*shape)[name], layouts(*shape)[name], *parameters(24, torch.float32))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_no_rows(shape):
    inputs = [numbers(*shape), numbers(*shape), *parameters(8, torch.float32)]
    y, s, dx, dresidual, dw, db = results(lambda *x: add_layer_norm(*x, dropout_p=0.1), inputs)
    assert all(x.shape == shape for x in (y, s, dx, dresidual))
    assert not dw.any() and not db.any()
    assert not any(g.any() for g in results(layer_norm, inputs[::2])[2:])


GIVEN = {
    "one number for all": lambda g: g[:1, :1].expand(g.shape),
    "one row for all": lambda g: g[:1].expand(g.shape),
    "transposed": lambda g: g.t().contiguous().t(),
    "padded rows": lambda g: F.pad(g, (0, 3))[:, :-3],
    "every other": lambda g: torch.stack((g, g), -1)[..., 1],
}


@pytest.mark.parametrize("name", GIVEN)
def test_an_upstream_gradient_with_strides_of_its_own(name):
    inputs = [numbers(6, 24), numbers(6, 24, seed=5), *parameters(24, torch.float32)]
    outputs = add_layer_norm(*inputs)
    views = [GIVEN[name](upstream(o)) for o in outputs]
    got = torch.autograd.grad(outputs, inputs, views, retain_graph=True)
    assert all(map(torch.equal, got, torch.autograd.grad(outputs, inputs, [v.clone() for v in views])))
    y = layer_norm(*inputs[1:])
    got = torch.autograd.grad(y, inputs[1:], views[0], retain_graph=True)
    assert all(map(torch.equal, got, torch.autograd.grad(y, inputs[1:], views[0].contiguous())))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("used", [0, 1], ids=["y", "s"])
def test_only_one_output_is_used(used, dtype, p):
    def only(f):
        return lambda *x: f(*x, 1e-5, p)[used]

    inputs = [numbers(5, 24, dtype=dtype), numbers(5, 24, dtype=dtype, seed=5), *parameters(24, dtype)]
    if used == 1:  # PyTorch refuses the gradient of what took no part
        inputs[2:] = [x.detach() for x in inputs[2:]]
    check(*map(only, (add_layer_norm, torchs_add, reference.add_layer_norm)), inputs)


def test_what_took_no_part_has_a_gradient_of_zero():
    x, residual, w, b = inputs = [numbers(5, 24), numbers(5, 24), *parameters(24, torch.float32)]
    got = torch.autograd.grad(add_layer_norm(*inputs)[1].sum(), inputs)
    assert torch.equal(got[0], torch.ones_like(x)) and torch.equal(got[1], torch.ones_like(residual))
    assert not got[2].any() and not got[3].any()


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2), (0, 1)], ids=str)
def test_frozen_inputs_have_no_gradient(frozen):
    inputs = [numbers(6, 24), *parameters(24, torch.float32)]
    want = results(layer_norm, inputs)[1:]
    added = [numbers(6, 24, seed=5), *inputs]
    want_added = results(add_layer_norm, added)[2:]
    for i in frozen:
        inputs[i].requires_grad_(False)
    layer_norm(*inputs).backward(upstream(inputs[0]))
    for i, (x, g) in enumerate(zip(inputs, want, strict=True)):
        assert x.grad is None if i in frozen else torch.equal(x.grad, g)
    kept = [g for i, g in enumerate(want_added) if i - 1 not in frozen]
    assert all(map(torch.equal, results(add_layer_norm, added)[2:], kept))


def test_offsets_past_two_to_the_31():
    step = 3 << 29  # rows never written take no memory
    flat = torch.empty(2 * step + 24, dtype=torch.float16, device=DEVICE)
    near = [numbers(3, 24, dtype=torch.float16), numbers(3, 24, seed=5), *parameters(24, torch.float32)]
    far = flat.as_strided((3, 24), (step, 1))
    far.copy_(near[0].detach())
    assert all(map(torch.equal, results(add_layer_norm, [leaf(far), *near[1:]]), results(add_layer_norm, near)))
    want = results(layer_norm, [near[0], *near[2:]])
    assert all(map(torch.equal, results(layer_norm, [leaf(far), *near[2:]]), want))


# Values


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_mean(dtype):
    mean = 1e4 if dtype == torch.float32 else 100
    x = leaf(numbers(3, 769) + mean).to(dtype)
    check_norm(leaf(x), *parameters(769, dtype))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e4])
def test_rows_of_equal_values(value):
    x = leaf(torch.full((3, 37), value, device=DEVICE))
    check_norm(x, *parameters(37, torch.float32))
    check_add(x, leaf(torch.zeros_like(x)), *parameters(37, torch.float32))


def test_no_epsilon():
    check_norm(numbers(5, 33), *parameters(33, torch.float32), eps=0)
    check_norm(numbers(5, 33), *parameters(33, torch.float32), eps=0.3)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tiny_and_huge_numbers(scale):
    x = leaf(numbers(4, 33) * scale)
    inputs = [x, *parameters(33, torch.float32)]
    for a, b in zip(results(layer_norm, inputs), results(lambda *t: torchs(*t, 1e-5), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(value):
    inputs = [numbers(6, 24), numbers(6, 24, seed=5), *parameters(24, torch.float32)]
    want = results(add_layer_norm, inputs)
    with torch.no_grad():
        inputs[0][4, 7] = value
    got = results(add_layer_norm, inputs)
    others = [0, 1, 2, 3, 5]
    assert all(torch.equal(a[others], b[others]) for a, b in zip(got[:4], want[:4], strict=True))
    assert got[0][4].isnan().all() and got[2][4].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_y_is_the_norm_of_the_sum_as_it_is_rounded(dtype):
    x, residual, (w, b) = numbers(6, 40, dtype=dtype), numbers(6, 40, dtype=dtype, seed=5), parameters(40, dtype)
    y, s = add_layer_norm(x, residual, w, b)
    assert torch.equal(s, x + residual) and torch.equal(y, layer_norm(s, w, b))
    y, s = add_layer_norm(x.float(), residual, w, b)
    assert s.dtype == dtype and torch.equal(y, layer_norm(s.float(), w, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_equal_bit_for_bit(dtype, few_programs):
    few_programs(5)
    inputs = [numbers(30, 33, dtype=dtype), numbers(30, 33, dtype=dtype, seed=5), *parameters(33, dtype)]
    want = results(lambda *x: add_layer_norm(*x, dropout_p=0.2), inputs)
    for _ in range(20 if CUDA else 2):
        assert all(map(torch.equal, results(lambda *x: add_layer_norm(*x, dropout_p=0.2), inputs), want))


def test_compiled_at_width_768_it_is_not_zeros():
    """linkedin/Liger-Kernel#871."""
    torch._dynamo.reset()
    compiled = torch.compile(layer_norm, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    inputs = [numbers(3, 768), *parameters(768, torch.float32)]
    got = results(compiled, inputs)
    assert all(map(torch.equal, got, results(layer_norm, inputs)))
    assert all(x.any() for x in got)


@given(data=st.data())
@settings(max_examples=60 if CUDA else 15, deadline=None, derandomize=True)
def test_any_shape_and_options(data):
    draw = data.draw
    shape = draw(st.integers(1, 300 if CUDA else 20)), draw(st.integers(1, 2000 if CUDA else 90))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in range(3)]
    x, residual = (layouts(*shape, dtype=d)[draw(st.sampled_from(LAYOUTS))] for d in dtypes[:2])
    eps, p = draw(st.sampled_from([1e-5, 1e-3, 1.0])), draw(st.sampled_from([0.0, 0.1, 0.9]))
    chosen = parameters(shape[1], dtypes[2], draw(st.booleans()))
    if draw(st.booleans()):
        check_norm(x, *chosen, eps=eps)
    else:
        check_add(x, residual, *chosen, eps=eps, p=p)


# Dropout


def test_dropout_drops_what_it_should():
    for p in (0.1, 0.5, 0.9):
        mask = reference.row_dropout_mask(torch.tensor([12345]), 101, 301, p).double()
        n, sigma = mask.numel(), math.sqrt(p * (1 - p))
        assert abs(mask.mean().item() - (1 - p)) < 5 * sigma / math.sqrt(n)
        deviation = mask - (1 - p)
        for lag in (1, 2, 4, 8, 64):  # neighbours are independent
            for product in (deviation[:, lag:] * deviation[:, :-lag], deviation[lag:] * deviation[:-lag]):
                assert abs(product.mean().item()) < 5 * sigma**2 / math.sqrt(product.numel())
        for seed in (12346, 12345 + 2**32, -12345):
            other = reference.row_dropout_mask(torch.tensor([seed]), 101, 301, p).double() - (1 - p)
            assert abs((other * deviation).mean().item()) < 5 * sigma**2 / math.sqrt(n)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(1, 1), (9, 5), (5, 75), (2, 1000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mask_is_the_definitions(shape, p, dtype):
    x, residual = leaf(numbers(*shape).abs() + 1).to(dtype), torch.zeros(shape, device=DEVICE, dtype=dtype)
    x, (w, b) = leaf(x), parameters(shape[1], dtype)
    torch.manual_seed(3)
    kept = reference.row_dropout_mask(reference.draw_seed(torch.device(DEVICE)), *shape, p)
    torch.manual_seed(3)
    _, s = add_layer_norm(x, residual, w, b, dropout_p=p)
    assert torch.equal(s != 0, kept)
    (dx,) = torch.autograd.grad(s.sum(), x)
    assert torch.equal(dx != 0, kept)
    scale = 65536 / (65536 - reference.dropout_threshold(p))
    torch.testing.assert_close(s[kept], x[kept] * scale)
    torch.testing.assert_close(dx[kept], torch.full_like(dx[kept], scale))


def test_each_call_drops_something_else_and_a_seed_repeats_it():
    x, residual, w = numbers(9, 64), numbers(9, 64, seed=5), numbers(64)
    torch.manual_seed(0)
    first, second = (add_layer_norm(x, residual, w, dropout_p=0.5)[1] for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(add_layer_norm(x, residual, w, dropout_p=0.5)[1], first)
    assert not torch.equal(first, second)
    assert torch.equal(add_layer_norm(x, residual, w, dropout_p=1e-9)[1], add_layer_norm(x, residual, w)[1])
