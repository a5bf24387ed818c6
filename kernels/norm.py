"""LayerNorm, alone and with the residual addition and dropout before it, forward and backward.

With s = residual + Z x / (1 - p), Z being 0 with probability p (without dropout Z / (1 - p) is 1; alone s = x):

    mu = mean(s)      r = 1 / sqrt(mean((s - mu)^2) + eps)      n = (s - mu) r      y = n w + b       (Ba et al. 2016)

With dy given, and g = dy w: y depends on s through n, whose Jacobian is r (I - 1 1^T / C - n n^T / C), so

    ds = r (g - mean(g) - n mean(g n)) + (the gradient that reaches s, the new residual, on its own)
    dresidual = ds      dx = Z ds / (1 - p)      dw = sum over rows of dy n      db = sum over rows of dy

A row lies in registers while its statistics are taken, in two passes: mean, then mean square of what is left, so that a
large mean costs no digits. mu and r are kept in fp32. Bytes an element moves, at 2 bytes each: layer_norm reads x and
writes y, 4; add_layer_norm reads x and residual and writes s and y, 8. Backward: reads s and dy and writes ds, 6; with
the residual's own gradient 8, with dropout, which writes dx too, 10.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_dropout, check_norm
from .launch import accumulator, check_device, on_device, options, rows_launch
from .operator import Operator
from .reference import draw_seed, dropout_threshold
from .rows import as_rows, keep, total, walkers

# Above this the sums of dw and db do not fit in registers beside the row, and are kept in memory (the L2 cache).
MOST_IN_REGISTERS = 8192


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, fused (Ba et al. 2016).

    x [..., C] with C from 1 to 16,384, fp16, bf16 or fp32, any strides (rows of one stride with a last one of 1 are
    read in place); weight and bias [C] of one dtype, which need not be x's. Returns x's shape and dtype; statistics are
    fp32. Autocast changes nothing. Raises ValueError or TypeError, naming the argument.
    """
    check_norm(x, None, weight, bias, eps)
    check_device(x, "x")
    return _layer_norm(x, weight, bias, float(eps))[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) for s = residual + dropout(x), the new residual, in one pass over memory.

    x and residual [..., C], each fp16, bf16 or fp32; y has x's dtype and s residual's, whose rounding y sees. dropout_p
    in steps of 2^-16; the mask is reference.row_dropout_mask, its seed drawn from torch's generator of the device. The
    rest is as in `layer_norm`.
    """
    check_norm(x, residual, weight, bias, eps)
    check_dropout(dropout_p)
    check_device(x, "x")
    check_device(residual, "residual")
    seed = draw_seed(x.device) if dropout_p else None
    return _add_layer_norm(x, residual, weight, bias, seed, float(eps), float(dropout_p))[:2]


def _launch(x: Tensor, kernel: str) -> tuple[int, int, dict[str, Any]]:
    """Rows of a tile, its columns (all of a row), and the options."""
    launch = rows_launch(x, kernel, x.shape[-1])
    return launch.BM, max(16, triton.next_power_of_2(x.shape[-1])), options(launch)


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, seed: Tensor | None, eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """y, s where there is a residual, and mean and rstd fp32 [N]."""
    shape, x = x.shape, as_rows(x)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    N, C = x.shape
    y = x.new_empty(shape)  # not a view, which could not be changed in place
    mean, rstd = (x.new_empty(N, dtype=accumulator(x)) for _ in range(2))
    s = None
    if residual is not None:
        residual = as_rows(residual)
        s = residual.new_empty(shape)
    if y.numel():
        BM, BN, how = _launch(x, "norm_forward")
        threshold = dropout_threshold(dropout_p)
        with on_device(x):
            norm_forward[(triton.cdiv(N, BM),)](
                x, residual, weight, bias, y, s, mean, rstd, seed, x.stride(0),
                0 if residual is None else residual.stride(0), N, C, eps, threshold, 65536 / (65536 - threshold),
                BM=BM, BN=BN, **how,
            )  # fmt: skip
    return y, s, mean, rstd


def _backward(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, seed: Tensor | None,
    dropout_p: float, dtype: torch.dtype, parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dresidual (s's dtype); dx (`dtype`), of no elements where it is the same; dw and db, so too without
    `parameters`.
    """
    shape, s, dy, weight = s.shape, as_rows(s), as_rows(dy), weight.contiguous()
    ds = None if ds is None else as_rows(ds)
    N, C = s.shape
    dresidual = s.new_empty(shape)
    dx = s.new_empty(shape if seed is not None or dtype != s.dtype else 0, dtype=dtype)
    dw, db = (weight.new_empty(C if parameters else 0) for _ in range(2))
    if not s.numel():
        return dresidual, dx, dw.zero_(), db.zero_()
    BM, BN, how = _launch(s, "norm_backward")
    programs = walkers(s.device, triton.cdiv(N, BM))
    in_memory = C > MOST_IN_REGISTERS
    partials = None
    if parameters:
        make = s.new_zeros if in_memory else s.new_empty
        partials = make(programs, 2, C, dtype=mean.dtype)
    threshold = dropout_threshold(dropout_p)
    with on_device(s):
        norm_backward[(programs,)](
            dy, ds, s, weight, mean, rstd, seed, dresidual, dx if dx.numel() else None, partials,
            dy.stride(0), 0 if ds is None else ds.stride(0), s.stride(0), N, C, threshold, 65536 / (65536 - threshold),
            BM=BM, BN=BN, IN_MEMORY=in_memory, STAGES=1 if in_memory else how["num_stages"], **how,
        )  # fmt: skip
        if partials is not None:
            total(partials[:, 0], dw)
            total(partials[:, 1], db)
    return dresidual, dx, dw, db


@triton.jit
def _offsets(rows, columns, stride):
    return rows.to(tl.int64)[:, None] * stride + columns[None, :]


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit(do_not_specialize=["N"])
def norm_forward(
    x, residual, weight, bias, y, s, mean, rstd, seed, stride_x, stride_r, N, C, eps, threshold, rescale,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y and s [N, C], mean and rstd [N] of BM rows; residual, s, bias and seed may be None."""
    ACC: tl.constexpr = mean.dtype.element_ty
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.arange(0, BN)
    inside = (columns < C)[None, :]
    mask = (rows < N)[:, None] & inside
    v = tl.load(x + _offsets(rows, columns, stride_x), mask=mask, other=0.0).to(ACC)
    if seed is not None:
        v = tl.where(keep(tl.load(seed), rows, 0, threshold, BM, BN), v * rescale, 0.0)
    if residual is not None:
        v += tl.load(residual + _offsets(rows, columns, stride_r), mask=mask, other=0.0).to(ACC)
        rounded = v.to(s.dtype.element_ty)  # what the backward will read
        tl.store(s + _offsets(rows, columns, C), rounded, mask=mask)
        v = rounded.to(ACC)
    mu = tl.sum(v, 1) / C
    d = tl.where(inside, v - mu[:, None], 0.0)
    r = 1 / tl.sqrt(tl.sum(d * d, 1) / C + eps)
    out = d * r[:, None] * tl.load(weight + columns, mask=columns < C, other=0.0).to(ACC)[None, :]
    if bias is not None:
        out += tl.load(bias + columns, mask=columns < C, other=0.0).to(ACC)[None, :]
    tl.store(y + _offsets(rows, columns, C), out.to(y.dtype.element_ty), mask=mask)
    tl.store(mean + rows, mu, mask=rows < N)
    tl.store(rstd + rows, r, mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def norm_backward(
    dy, ds, s, weight, mean, rstd, seed, dresidual, dx, partials, stride_dy, stride_ds, stride_s, N, C, threshold,
    rescale, BM: tl.constexpr, BN: tl.constexpr, IN_MEMORY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dresidual and dx [N, C], and this program's share of dw and db in partials [programs, 2, C].

    ds, seed, dx and partials may be None. With IN_MEMORY partials hold zeros before.
    """
    ACC: tl.constexpr = mean.dtype.element_ty
    columns = tl.arange(0, BN)
    inside = (columns < C)[None, :]
    w = tl.load(weight + columns, mask=columns < C, other=0.0).to(ACC)[None, :]
    seed_value = tl.load(seed) if seed is not None else 0
    ROWS: tl.constexpr = 1 if IN_MEMORY else BM
    dw = tl.zeros([ROWS, BN], ACC)
    db = tl.zeros([ROWS, BN], ACC)
    if partials is not None:
        partials += tl.program_id(0).to(tl.int64) * 2 * C + columns
    for start in tl.range(tl.program_id(0) * BM, N, tl.num_programs(0) * BM, num_stages=STAGES):
        rows = start + tl.arange(0, BM)
        mask = (rows < N)[:, None] & inside
        g = tl.load(dy + _offsets(rows, columns, stride_dy), mask=mask, other=0.0).to(ACC)
        v = tl.load(s + _offsets(rows, columns, stride_s), mask=mask, other=0.0).to(ACC)
        mu = tl.load(mean + rows, mask=rows < N, other=0.0)[:, None]
        r = tl.load(rstd + rows, mask=rows < N, other=0.0)[:, None]
        n = tl.where(mask, (v - mu) * r, 0.0)
        if partials is not None:
            if IN_MEMORY:
                row = tl.sum(g * n, 0)
                tl.store(partials, tl.load(partials, mask=columns < C, other=0.0) + row, mask=columns < C)
                row = tl.sum(g, 0)
                tl.store(partials + C, tl.load(partials + C, mask=columns < C, other=0.0) + row, mask=columns < C)
            else:
                dw += g * n
                db += g
        if IN_MEMORY:  # nor is there room for w
            w = tl.load(weight + columns, mask=columns < C, other=0.0).to(ACC)[None, :]
        g = g * w
        c1, c2 = tl.reduce((g, g * n), 1, _add_pairs)
        out = (g - (c1 / C)[:, None] - n * (c2 / C)[:, None]) * r
        if ds is not None:
            out += tl.load(ds + _offsets(rows, columns, stride_ds), mask=mask, other=0.0).to(ACC)
        tl.store(dresidual + _offsets(rows, columns, C), out.to(dresidual.dtype.element_ty), mask=mask)
        if dx is not None:
            if seed is not None:
                out = tl.where(keep(seed_value, rows, 0, threshold, BM, BN), out * rescale, 0.0)
            tl.store(dx + _offsets(rows, columns, C), out.to(dx.dtype.element_ty), mask=mask)
    if partials is not None:
        if not IN_MEMORY:
            tl.store(partials, tl.sum(dw, 0), mask=columns < C)
            tl.store(partials + C, tl.sum(db, 0), mask=columns < C)


# The operators


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, _, mean, rstd = _forward(x, None, weight, bias, None, eps, 0.0)
    return y, mean, rstd


def _run_add(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor | None, eps: float, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, s, mean, rstd = _forward(x, residual, weight, bias, seed, eps, dropout_p)
    assert s is not None
    return y, s, mean, rstd


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    N = x.numel() // x.shape[-1]
    return x.new_empty(N, dtype=accumulator(x)), x.new_empty(N, dtype=accumulator(x))


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *_statistics(x)


def _fake_add(x: Tensor, residual: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), residual.new_empty(x.shape), *_statistics(x)


def _fake_backward(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, seed: Tensor | None,
    dropout_p: float, dtype: torch.dtype, parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx = s.new_empty(s.shape if seed is not None or dtype != s.dtype else 0, dtype=dtype)
    dw, db = (weight.new_empty(weight.shape if parameters else 0) for _ in range(2))
    return s.new_empty(s.shape), dx, dw, db


_norm_backward = Operator("norm_backward", _backward, _fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    x, weight, mean, rstd = ctx.saved_tensors
    _, needs_w, needs_b, _ = ctx.needs_input_grad
    dx, _, dw, db = _norm_backward(dy, None, x, weight, mean, rstd, None, 0.0, x.dtype, needs_w or needs_b)
    return dx, dw if needs_w else None, db if needs_b else None, None


def _save_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weight, _, seed, _, ctx.dropout_p = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(*output[1:], weight, seed)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _gradients_add(ctx: Any, dy: Tensor | None, ds: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    s, mean, rstd, weight, seed = ctx.saved_tensors
    _, _, needs_w, needs_b, *_ = ctx.needs_input_grad
    dy = torch.zeros_like(s, dtype=ctx.dtype) if dy is None else dy
    dresidual, dx, dw, db = _norm_backward(
        dy, ds, s, weight, mean, rstd, seed, ctx.dropout_p, ctx.dtype, needs_w or needs_b
    )
    dx = dx if dx.shape == dresidual.shape else dresidual
    return dx, dresidual, dw if needs_w else None, db if needs_b else None, None, None, None


_layer_norm = Operator("layer_norm", _run, _fake, _save, _gradients)
_add_layer_norm = Operator("add_layer_norm", _run_add, _fake_add, _save_add, _gradients_add)
