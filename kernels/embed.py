"""Token and position embedding with dropout, forward and backward.

    x_n = Z_n (wte[idx_n] + wpe[t_n]) / (1 - p),    t_n = start + n mod T, Z as in norm.py

    dwte[v] = sum of Z_n dx_n / (1 - p) over the n with idx_n = v        dwpe[t] = the same over the n with t_n = t

The sum over equal tokens is made in one order, so that it is the same in every run: tokens are sorted (stably, by
torch.sort), and a program owns a token's stretch of the sorted list, for a block of columns. No atomics. The longest
stretch is what it waits for: 16 rows a step.

Bytes an element moves, at 2 bytes each: forward reads both rows (those of wpe come from the L2 cache) and writes x, 4;
backward reads dx twice, and writes each row of dwte and dwpe once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_embedding
from .launch import check_device, on_device, options, rows_launch
from .operator import Operator
from .reference import draw_seed, dropout_threshold
from .rows import as_rows, keep


def embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float = 0.0, start: int = 0) -> Tensor:
    """dropout(wte[idx] + wpe[positions]) in one pass: idx int64 [B, T], wte [V, C], wpe [P, C] -> [B, T, C].

    fp16, bf16 or fp32, summed in fp32; positions count from `start`. The mask is reference.row_dropout_mask. An index
    outside 0 .. V - 1 raises IndexError on a CPU and gives a row of NaN on a GPU, which would have to be waited for.
    Gradients are deterministic. Raises ValueError or TypeError, naming the argument.
    """
    check_embedding(idx, wte, wpe, dropout_p, start)
    check_device(wte, "wte")
    seed = draw_seed(wte.device) if dropout_p else None
    return _embedding(idx, wte, wpe, seed, float(dropout_p), start)


def _tile(x: Tensor, kernel: str) -> tuple[int, int, dict[str, Any]]:
    launch = rows_launch(x, kernel, x.shape[-1])
    return launch.BM, min(launch.BN, max(16, triton.next_power_of_2(x.shape[-1]))), options(launch)


def _forward(idx: Tensor, wte: Tensor, wpe: Tensor, seed: Tensor | None, dropout_p: float, start: int) -> Tensor:
    B, T = idx.shape
    idx, wte, wpe = idx.contiguous(), as_rows(wte), as_rows(wpe)
    V, C = wte.shape
    x = wte.new_empty(B, T, C)
    if x.numel():
        BM, BN, how = _tile(wte, "embedding_forward")
        threshold = dropout_threshold(dropout_p)
        with on_device(wte):
            embedding_forward[(triton.cdiv(B * T, BM) * triton.cdiv(C, BN),)](
                idx, wte, wpe, x, seed, wte.stride(0), wpe.stride(0), B * T, T, start, V, C,
                threshold, 65536 / (65536 - threshold), BM=BM, BN=BN, **how,
            )  # fmt: skip
    return x


def _backward(
    dx: Tensor, idx: Tensor, seed: Tensor | None, dropout_p: float, start: int, V: int, P: int
) -> tuple[Tensor, Tensor]:
    """dwte [V, C] and dwpe [P, C]; of no rows where V or P is 0, which says that they are not needed."""
    (B, T), C = idx.shape, dx.shape[-1]
    dx = as_rows(dx)
    dwte, dwpe = dx.new_zeros(V, C), dx.new_zeros(P, C)
    if not dx.numel():
        return dwte, dwpe
    BM, BN, how = _tile(dx, "embedding_backward")
    columns = triton.cdiv(C, BN)
    threshold = dropout_threshold(dropout_p)
    rest = (seed, dx.stride(0), B * T, C, threshold, 65536 / (65536 - threshold))
    with on_device(dx):
        if V:
            tokens, order = torch.sort(idx.flatten(), stable=True)
            token_sums[(B * T * columns,)](dx, tokens, order, dwte, *rest, V, BM=BM, BN=BN, **how)
        if P:
            position_sums[(T * columns,)](dx, dwpe, *rest, T, start, BM=BM, BN=BN, **how)
    return dwte, dwpe


@triton.jit(do_not_specialize=["N", "T", "start"])
def embedding_forward(
    idx, wte, wpe, x, seed, stride_e, stride_p, N, T, start, V, C, threshold, rescale,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x [N, C] of a tile; seed may be None."""
    blocks = tl.cdiv(C, BN)
    rows = tl.program_id(0) // blocks * BM + tl.arange(0, BM)
    column = tl.program_id(0) % blocks * BN
    columns = column + tl.arange(0, BN)
    mask = (rows < N)[:, None] & (columns < C)[None, :]
    token = tl.load(idx + rows, mask=rows < N, other=0)
    exists = (token >= 0) & (token < V)
    token = tl.where(exists, token, 0)
    position = (start + rows % T).to(tl.int64)
    out = tl.load(wte + token[:, None] * stride_e + columns[None, :], mask=mask, other=0.0)
    ACC: tl.constexpr = tl.float64 if out.dtype == tl.float64 else tl.float32
    out = out.to(ACC) + tl.load(wpe + position[:, None] * stride_p + columns[None, :], mask=mask, other=0.0).to(ACC)
    if seed is not None:
        out = tl.where(keep(tl.load(seed), rows, column, threshold, BM, BN), out * rescale, 0.0)
    out = tl.where(exists[:, None], out, float("nan"))
    tl.store(x + rows.to(tl.int64)[:, None] * C + columns[None, :], out.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(dx, rows, mask, column, columns, seed, stride, threshold, rescale, BM: tl.constexpr, BN: tl.constexpr):
    """Z dx / (1 - p) of `rows` [BM] in fp32, and zeros outside `mask`."""
    g = tl.load(dx + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    g = g.to(tl.float64 if g.dtype == tl.float64 else tl.float32)
    if seed is not None:
        g = tl.where(keep(tl.load(seed), rows, column, threshold, BM, BN), g * rescale, 0.0)
    return g


@triton.jit(do_not_specialize=["N"])
def token_sums(
    dx, tokens, order, dwte, seed, stride, N, C, threshold, rescale, V, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """A row of dwte [V, C], if the token at this place of the sorted list is the first of its kind."""
    blocks = tl.cdiv(C, BN)
    place = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BN
    columns = column + tl.arange(0, BN)
    token = tl.load(tokens + place)
    before = tl.load(tokens + tl.maximum(place - 1, 0))
    if ((place == 0) | (before != token)) & (token >= 0) & (token < V):
        ACC: tl.constexpr = tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32
        acc = tl.zeros([BM, BN], ACC)
        more = place < N
        while more:
            places = place + tl.arange(0, BM)
            same = tl.load(tokens + places, mask=places < N, other=-1) == token
            rows = tl.load(order + places, mask=same, other=0).to(tl.int32)
            mask = same[:, None] & (columns < C)[None, :]
            acc += _gradient(dx, rows, mask, column, columns, seed, stride, threshold, rescale, BM, BN)
            place += BM
            more = tl.min(same.to(tl.int32), 0) > 0
        tl.store(dwte + token * C + columns, tl.sum(acc, 0).to(dwte.dtype.element_ty), mask=columns < C)


@triton.jit(do_not_specialize=["N", "T", "start"])
def position_sums(
    dx, dwpe, seed, stride, N, C, threshold, rescale, T, start, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """A row of dwpe [P, C]: the sum over the batch at one position."""
    blocks = tl.cdiv(C, BN)
    t = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BN
    columns = column + tl.arange(0, BN)
    ACC: tl.constexpr = tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros([BM, BN], ACC)
    for first in tl.range(t, N, BM * T):
        rows = first + tl.arange(0, BM) * T
        mask = (rows < N)[:, None] & (columns < C)[None, :]
        acc += _gradient(dx, rows, mask, column, columns, seed, stride, threshold, rescale, BM, BN)
    out = tl.sum(acc, 0).to(dwpe.dtype.element_ty)
    tl.store(dwpe + (start + t).to(tl.int64) * C + columns, out, mask=columns < C)


# The operators


def _fake_backward(
    dx: Tensor, idx: Tensor, seed: Tensor | None, dropout_p: float, start: int, V: int, P: int
) -> tuple[Tensor, Tensor]:
    return dx.new_empty(V, dx.shape[-1]), dx.new_empty(P, dx.shape[-1])


_embedding_backward = Operator("embedding_backward", _backward, _fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    idx, wte, wpe, seed, ctx.dropout_p, ctx.start = inputs
    ctx.save_for_backward(idx, seed)
    ctx.sizes = wte.shape[0], wpe.shape[0]


def _gradients(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    idx, seed = ctx.saved_tensors
    _, wte, wpe, *_ = ctx.needs_input_grad
    V, P = ctx.sizes
    dwte, dwpe = _embedding_backward(dx, idx, seed, ctx.dropout_p, ctx.start, V if wte else 0, P if wpe else 0)
    return None, dwte if wte else None, dwpe if wpe else None, None, None, None


def _fake(idx: Tensor, wte: Tensor, *_: Any) -> Tensor:
    return wte.new_empty(*idx.shape, wte.shape[1])


_embedding = Operator("embedding", _forward, _fake, _save, _gradients)
