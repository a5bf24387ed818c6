"""GELU, alone and with the bias before it, forward and backward (Hendrycks & Gimpel 2016).

With u = x + bias (alone u = x), and Phi and phi the standard normal's distribution and density:

    y = u Phi(u)                        dy/du = Phi(u) + u phi(u)                            approximate "none"
    y = u sigma(z)                      dy/du = sigma(z) + u sigma(z) (1 - sigma(z)) z'      approximate "tanh"
    with z = 2 sqrt(2 / pi) (u + 0.044715 u^3) and z' = 2 sqrt(2 / pi) (1 + 3 * 0.044715 u^2), since
    (1 + tanh(t)) / 2 = sigma(2 t): no digits are lost where tanh is close to -1.

    dx = dy dy/du       dbias = sum over rows of dx

The matrix multiplication before leaves its bias out, so that the bias is added, and its gradient summed, in a pass that
is made anyway. Bytes an element moves, at 2 bytes each: forward reads x and writes y, 4; backward reads x and dy and
writes dx, 6. x is kept for it, not u: the gradient needs the sum again, which costs one addition.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_gelu
from .launch import accumulator, check_device, on_device, options, rows_launch
from .operator import Operator
from .rows import as_rows, total, triton_accumulator, walkers


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """x Phi(x) ("none"), or GPT-2's tanh form of it: x of any shape, fp16, bf16 or fp32; returns x's shape and dtype.

    Computed in fp32. Raises ValueError or TypeError, naming the argument.
    """
    check_gelu(x, None, approximate)
    check_device(x, "x")
    if x.dim() == 0:
        return _gelu(x.reshape(1), None, approximate == "tanh")[0]
    return _gelu(x, None, approximate == "tanh")


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    """`gelu(x + bias)` in one pass, and in one backward with the bias's gradient: x [..., C], bias [C].

    bias need not have x's dtype; the sum is in fp32 and its gradient deterministic.
    """
    check_gelu(x, bias, approximate)
    check_device(x, "x")
    return _gelu(x, bias, approximate == "tanh")


def _tile(x: Tensor, kernel: str) -> tuple[int, int, dict[str, Any]]:
    """Rows and columns of a tile, of as many elements as the launch table says, and the options."""
    launch = rows_launch(x, kernel, x.shape[-1])
    BN = min(launch.BN, max(16, triton.next_power_of_2(x.shape[-1])))
    return launch.BM * launch.BN // BN, BN, options(launch)


def _forward(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    shape, x, bias = x.shape, as_rows(x), None if bias is None else bias.contiguous()
    N, C = x.shape
    y = x.new_empty(shape)  # not a view, which could not be changed in place
    if y.numel():
        BM, BN, how = _tile(x, "gelu_forward")
        with on_device(x):
            gelu_forward[(triton.cdiv(N, BM) * triton.cdiv(C, BN),)](
                x, bias, y, x.stride(0), N, C, TANH=tanh, ACC=triton_accumulator(x), BM=BM, BN=BN, **how
            )
    return y


def _backward(dy: Tensor, x: Tensor, bias: Tensor | None, tanh: bool, sums: bool) -> tuple[Tensor, Tensor]:
    """dx, and with `sums` dbias, else no elements."""
    shape, x, dy, bias = x.shape, as_rows(x), as_rows(dy), None if bias is None else bias.contiguous()
    N, C = x.shape
    dx = x.new_empty(shape)
    dbias = x.new_empty(0) if bias is None else bias.new_empty(C if sums else 0)
    if not x.numel():
        return dx, dbias.zero_()
    BM, BN, how = _tile(x, "gelu_backward")
    columns = triton.cdiv(C, BN)
    programs = walkers(x.device, triton.cdiv(N, BM), columns)
    partials = x.new_empty(programs, C, dtype=accumulator(x)) if sums else None
    with on_device(x):
        gelu_backward[(programs * columns,)](
            dy, x, bias, dx, partials, dy.stride(0), x.stride(0), N, C, programs,
            TANH=tanh, ACC=triton_accumulator(x), BM=BM, BN=BN, **how,
        )  # fmt: skip
        if partials is not None:
            total(partials, dbias)
    return dx, dbias


@triton.jit
def _phi(u, TANH: tl.constexpr):
    """Phi(u), or its tanh form, and u times its derivative."""
    if TANH:
        square = u * u
        z = 1.5957691216057308 * u * (1 + 0.044715 * square)
        e = tl.exp(-tl.abs(z))
        q = 1 / (1 + e)
        p = tl.where(z < 0, e * q, q)
        slope = u * (e * q * q) * (1.5957691216057308 * (1 + 0.134145 * square))  # e q^2 is p (1 - p), to all digits
    else:
        p = 0.5 * (1 + tl.erf(u * 0.7071067811865476))
        slope = u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    return p, slope


@triton.jit(do_not_specialize=["N"])
def gelu_forward(
    x, bias, y, stride_x, N, C, TANH: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """y [N, C] of a tile; bias may be None."""
    blocks = tl.cdiv(C, BN)
    rows = (tl.program_id(0) // blocks * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    columns = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    mask = (rows < N) & (columns < C)[None, :]
    u = tl.load(x + rows * stride_x + columns[None, :], mask=mask, other=0.0).to(ACC)
    if bias is not None:
        u += tl.load(bias + columns, mask=columns < C, other=0.0).to(ACC)[None, :]
    p, _ = _phi(u, TANH)
    tl.store(y + rows * C + columns[None, :], (u * p).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "programs"])
def gelu_backward(
    dy, x, bias, dx, partials, stride_dy, stride_x, N, C, programs,
    TANH: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx [N, C] of a block of columns in every `programs`-th tile of rows, and their sums in partials [programs, C].

    bias and partials may be None.
    """
    blocks = tl.cdiv(C, BN)
    first = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    b = tl.load(bias + columns, mask=columns < C, other=0.0).to(ACC)[None, :] if bias is not None else 0.0
    sums = tl.zeros([BM, BN], ACC)
    for start in tl.range(first * BM, N, programs * BM):
        rows = (start + tl.arange(0, BM)).to(tl.int64)[:, None]
        mask = (rows < N) & (columns < C)[None, :]
        u = tl.load(x + rows * stride_x + columns[None, :], mask=mask, other=0.0).to(ACC) + b
        g = tl.load(dy + rows * stride_dy + columns[None, :], mask=mask, other=0.0).to(ACC)
        p, slope = _phi(u, TANH)
        out = g * (p + slope)
        tl.store(dx + rows * C + columns[None, :], out.to(dx.dtype.element_ty), mask=mask)
        if partials is not None:
            sums += out
    if partials is not None:
        tl.store(partials + first.to(tl.int64) * C + columns, tl.sum(sums, 0), mask=columns < C)


# The operators


def _fake_backward(dy: Tensor, x: Tensor, bias: Tensor | None, tanh: bool, sums: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if bias is None else bias.new_empty(bias.shape if sums else 0)


_gelu_backward = Operator("gelu_backward", _backward, _fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.tanh = inputs
    ctx.save_for_backward(x, bias)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    needed = ctx.needs_input_grad[1]
    dx, dbias = _gelu_backward(dy, x, bias, ctx.tanh, needed)
    return dx, dbias if needed else None, None


def _fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


_gelu = Operator("gelu", _forward, _fake, _save, _gradients)
