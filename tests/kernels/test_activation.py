"""gelu and bias_gelu against the reference: widths, strides, dtypes, large numbers.

The peer of the error rule is torch.nn.functional.gelu in the same dtype. Outputs hold NaN before.
"""

from __future__ import annotations

import math

import pytest
import torch
from compare import CUDA, DEVICE, DTYPES, LAYOUTS, check, layouts, leaf, numbers, results
from gptfast.kernels import bias_gelu, gelu, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from rule import upstream
from torch.nn import functional as F

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # infinite numbers in the interpreter's numpy
]
both_forms = pytest.mark.parametrize("approximate", ["tanh", "none"])


def torchs(x, bias=None, approximate="tanh"):
    """PyTorch's own, in the widest dtype of what it takes."""
    if bias is None:
        return F.gelu(x, approximate=approximate)
    wide = torch.promote_types(x.dtype, bias.dtype)
    return F.gelu(x.to(wide) + bias.to(wide), approximate=approximate).to(x.dtype)


def check_gelu(*inputs, approximate="tanh"):
    """dbias is a sum over rows that may cancel: four roundings of the sum of the sizes of what is added."""

    def call(f):
        return lambda *x: f(*x, approximate=approximate)

    names = (gelu, torchs, reference.gelu) if len(inputs) == 1 else (bias_gelu, torchs, reference.bias_gelu)
    C = inputs[0].shape[-1] if inputs[0].dim() else 1
    sizes = 1.2 * upstream(inputs[0]).abs().reshape(-1, C).sum(0).max().item() if inputs[0].numel() else 0.0
    return check(*map(call, names), inputs, {"gradient 1": 2**-22 * sizes})


SHAPES = [(1, 1), (3, 3), (17, 50), (5, 64), (5, 65), (9, 300), (0, 8)]
SHAPES += [(4099, 3072), (1, 100_003)] * CUDA


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both_forms
def test_shapes(shape, dtype, approximate):
    x, bias = numbers(*shape, dtype=dtype), numbers(shape[1], dtype=dtype, seed=1)
    y, dx = check_gelu(x, approximate=approximate)
    assert y.dtype == dx.dtype == dtype
    check_gelu(x, bias, approximate=approximate)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 24), (2, 1, 3, 24)], ids=str)
@both_forms
def test_dimensions(shape, approximate):
    check_gelu(numbers(*shape), approximate=approximate)
    if shape:
        check_gelu(numbers(*shape), numbers(shape[-1], seed=1), approximate=approximate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_strides(name, dtype):
    check_gelu(layouts(6, 70, dtype=dtype)[name])
    check_gelu(layouts(6, 70, dtype=dtype)[name], numbers(70, dtype=dtype, seed=1))
    check_gelu(layouts(2, 3, 10, dtype=dtype)[name], numbers(10, dtype=dtype, seed=1))


@pytest.mark.parametrize("name", ["odd start", "every other", "one number for all"])
def test_strides_of_the_bias(name):
    check_gelu(numbers(6, 70), leaf(layouts(1, 70)[name][0]))


def test_an_upstream_gradient_with_strides_of_its_own():
    inputs = [numbers(6, 70), numbers(70, seed=1)]
    y = bias_gelu(*inputs)
    g = upstream(y)
    for view in (g[:1].expand(6, 70), g[:1, :1].expand(6, 70), g.t().contiguous().t(), F.pad(g, (0, 3))[:, :-3]):
        got = torch.autograd.grad(y, inputs, view, retain_graph=True)
        assert all(map(torch.equal, got, torch.autograd.grad(y, inputs, view.clone(), retain_graph=True)))


@pytest.mark.parametrize("dtypes", [(x, b) for x in DTYPES for b in DTYPES if x != b], ids=str)
@both_forms
def test_the_bias_may_have_another_dtype(dtypes, approximate):
    y, dx, dbias = check_gelu(numbers(6, 70, dtype=dtypes[0]), numbers(70, dtype=dtypes[1], seed=1))
    assert (y.dtype, dx.dtype, dbias.dtype) == (dtypes[0], *dtypes)


@pytest.mark.parametrize("programs", [1, 3, 7])
@both_forms
def test_programs_that_walk_over_many_tiles(programs, approximate, few_programs):
    few_programs(programs)
    check_gelu(numbers(43, 70), numbers(70, seed=1), approximate=approximate)


def test_more_partial_sums_than_a_tile_of_them():
    N = 50_000 if CUDA else 1100  # 69 programs of 16 rows in the interpreter
    check_gelu(numbers(N, 3), numbers(3, seed=1))


def test_frozen_inputs_have_no_gradient():
    x, bias = numbers(6, 70), numbers(70, seed=1)
    y, dx, dbias = results(bias_gelu, [x, bias])
    for inputs, want in (([x, bias.detach()], dx), ([x.detach(), bias], dbias)):
        assert torch.equal(results(bias_gelu, inputs)[1], want)
    frozen = bias.detach()
    bias_gelu(x, frozen).backward(upstream(y))
    assert frozen.grad is None and torch.equal(x.grad, dx)


def test_repeats_are_equal_bit_for_bit(few_programs):
    few_programs(5)
    inputs = [numbers(50, 70, dtype=torch.float16), numbers(70, dtype=torch.float16, seed=1)]
    want = results(bias_gelu, inputs)
    for _ in range(20 if CUDA else 2):
        assert all(map(torch.equal, results(bias_gelu, inputs), want))


def test_offsets_past_two_to_the_31():
    step = 3 << 29  # rows never written take no memory
    flat = torch.empty(2 * step + 70, dtype=torch.float16, device=DEVICE)
    far = flat.as_strided((3, 70), (step, 1))
    near = [numbers(3, 70, dtype=torch.float16), numbers(70, seed=1)]
    far.copy_(near[0].detach())
    assert all(map(torch.equal, results(bias_gelu, [leaf(far), near[1]]), results(bias_gelu, near)))


# Values


@pytest.mark.parametrize("dtype", DTYPES)
@both_forms
def test_every_size_of_number(approximate, dtype):
    x = torch.cat([torch.linspace(-15, 15, 601), torch.logspace(-8, 1, 50), -torch.logspace(-8, 1, 50)])
    check_gelu(leaf(x.to(DEVICE, dtype)), approximate=approximate)


@pytest.mark.parametrize("dtype", DTYPES)
@both_forms
def test_large_numbers(approximate, dtype):
    x = leaf(torch.tensor([30.0, -30, 1e4, -1e4, 100, -100, 6e4, -6e4], device=DEVICE, dtype=dtype))
    y, dx = results(lambda x: gelu(x, approximate), [x])
    g = upstream(y)
    assert torch.equal(y, torch.where(x > 0, x, 0 * x)) and torch.equal(dx, torch.where(x > 0, g, 0 * g))
    zero = leaf(torch.zeros(8, device=DEVICE, dtype=dtype))
    for got, want in zip(results(lambda *x: bias_gelu(*x, approximate), [x, zero]), (y, dx, dx), strict=True):
        assert torch.equal(got, want)


@both_forms
def test_numbers_whose_cubes_are_infinite(approximate):
    x = leaf(torch.tensor([1e18, -1e18], device=DEVICE))
    y, dx = results(lambda x: gelu(x, approximate), [x])
    assert torch.equal(y, torch.tensor([1e18, 0.0], device=DEVICE))
    assert torch.equal(dx, upstream(y) * torch.tensor([1.0, 0.0], device=DEVICE))


def test_the_tanh_form_keeps_its_digits_where_tanh_is_close_to_minus_one():
    x = torch.tensor([-5.0, -4.0, -3.0, 1e-20, -1e-30], device=DEVICE)
    torch.testing.assert_close(gelu(x).double(), reference.gelu(x.double()), rtol=2e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_place(value):
    x, bias = numbers(6, 70), numbers(70, seed=1)
    want = results(bias_gelu, [x, bias])
    with torch.no_grad():
        x[4, 66] = value
    got = results(bias_gelu, [x, bias])
    place = torch.zeros(6, 70, dtype=torch.bool, device=DEVICE)
    place[4, 66] = True
    for a, b, kept in zip(got, want, (~place, ~place, ~place[4]), strict=True):
        assert torch.equal(a[kept], b[kept])
    assert not got[0][4, 66].isfinite()


@given(data=st.data())
@settings(max_examples=60 if CUDA else 25, deadline=None, derandomize=True)
def test_any_shape_and_options(data):
    draw = data.draw
    shape = draw(st.integers(1, 999 if CUDA else 30)), draw(st.integers(1, 2000 if CUDA else 150))
    x = layouts(*shape, dtype=draw(st.sampled_from(DTYPES)))[draw(st.sampled_from(LAYOUTS))]
    bias = [numbers(shape[1], dtype=draw(st.sampled_from(DTYPES)), seed=1)] * draw(st.booleans())
    check_gelu(x, *bias, approximate=draw(st.sampled_from(["tanh", "none"])))
