"""What the kernels that work on rows share: a tensor as rows, dropout, and sums over all rows.

A sum over rows (the gradient of a bias, of LayerNorm's weight) is made in two steps, in one order, so that it is the
same in every run: as many programs as the device holds at once add up their own rows in registers, in fp32, and
`sum_partials` adds what they leave. The partials of 8 programs a multiprocessor are 1,056 rows of fp32 on an H100: 2 %
of what a pass over 32,768 rows of 16 bits reads and writes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import multiprocessors

PER_MULTIPROCESSOR = 8


def as_rows(x: Tensor) -> Tensor:
    """x [..., C] as [N, C] with a last stride of 1; a copy only where one stride between rows does not say it."""
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def triton_accumulator(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def walkers(device: torch.device, tiles: int, columns: int = 1) -> int:
    """How many programs share the `tiles` of rows of each of `columns` column blocks."""
    return max(1, min(tiles, PER_MULTIPROCESSOR * multiprocessors(device) // columns))


def total(partials: Tensor, out: Tensor) -> Tensor:
    """out [C] = the sum over p of partials[p], fp32 [P, C] with any stride between its rows."""
    P, C = partials.shape
    BN = 32
    sum_partials[(triton.cdiv(C, BN),)](
        partials, out, partials.stride(0), P, C, BM=64, BN=BN, num_warps=4, enable_fp_fusion=True
    )
    return out


@triton.jit(do_not_specialize=["P"])
def sum_partials(partials, out, stride, P, C, BM: tl.constexpr, BN: tl.constexpr):
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], partials.dtype.element_ty)
    for start in tl.range(0, P, BM):
        rows = start + tl.arange(0, BM)
        mask = (rows < P)[:, None] & (columns < C)[None, :]
        acc += tl.load(partials + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    tl.store(out + columns, tl.sum(acc, 0).to(out.dtype.element_ty), mask=columns < C)


@triton.jit
def keep(seed, rows, column, threshold, BM: tl.constexpr, BN: tl.constexpr):
    """Which elements of `rows` int32 [BM] and columns column .. column + BN survive dropout, bool [BM, BN].

    reference.row_dropout_mask is the definition. One call of Philox gives the eight elements next to each other that a
    thread loads as 16 bytes. column is a multiple of 8.
    """
    octets = column // 8 + tl.arange(0, BN // 8)[None, :]
    zero = rows[:, None] * 0 + octets * 0
    w0, w1, w2, w3 = tl.philox(seed, zero + octets, zero + rows[:, None], zero, zero, 7)
    first = tl.join(tl.join(w0 & 0xFFFF, w0 >> 16), tl.join(w1 & 0xFFFF, w1 >> 16))  # [BM, BN / 8, half, word % 2]
    second = tl.join(tl.join(w2 & 0xFFFF, w2 >> 16), tl.join(w3 & 0xFFFF, w3 >> 16))
    return tl.join(first, second).reshape(BM, BN) >= threshold
