"""Attention of a few new tokens to a cache of keys and values, for generation (flash-decoding: Dao et al. 2023).

There are too few queries to fill a GPU, so the keys of a row are cut into parts, each taken by a program of its own.
For one query, with x_j = scale q . k_j over the keys j that it sees, part s leaves

    m_s = max_j x_j        l_s = sum_j exp(x_j - m_s)        a_s = sum_j exp(x_j - m_s) v_j        for j in part s

With m = max_s m_s, exp(x_j - m) = exp(x_j - m_s) exp(m_s - m), and so softmax(x) v is

    o = sum_j exp(x_j - m) v_j / sum_j exp(x_j - m) = sum_s w_s a_s / sum_s w_s l_s,        w_s = exp(m_s - m)

A part in which the query sees no key has m_s = -inf, l_s = 0 and a_s = 0, and drops out. decode_split computes m_s, l_s
and a_s in fp32, decode_combine the sums over s; where one part is enough, decode_split writes o itself. Each key and
value is read once: the G = H / Hkv heads that share it and the Tq queries are the rows of one tile. Exponents are taken
as in attention_forward.py. There is no backward.

How many parts there are follows from shapes, so that nothing waits for the device and a CUDA graph stays valid as rows
grow; how long a part is follows on the device from the row's length, so that a short row in a long cache is cut as
finely as a full one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_launch import precision
from .attention_tiles import LOG2E, exponential, load_tile
from .checks import check_decode
from .launch import accumulator, check_device, launch_for, multiprocessors, on_device, options
from .operator import autocast, plain

# Programs for each multiprocessor. Two, with two tiles of 64 keys and values each on the way, have 64 KB in flight at
# D = 64 in 16 bits; an H200 needs 36 KB (4.8 TB/s / 132, for 1 us: derived, not measured).
PER_MULTIPROCESSOR = 2
# The longest part, whatever the batch: one long row among short ones is still shared by many programs. A part of 1,024
# keys writes and reads back 1/500 of the bytes of its keys and values (one query and head, 16 bits: derived).
MOST_KEYS = 1024


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """softmax(q k^T * scale, over the keys that are seen) v, for the last Tq tokens of rows of different lengths.

    q [B, Tq, H, D] with Tq from 1 to 16; k_cache and v_cache [B, S, Hkv, D] with H a multiple of Hkv and Tq <= S; fp16,
    bf16 or fp32; D a multiple of 8 from 16 to 256; any strides with a last one of 1. `lengths` int32 [B], on the same
    device: how many keys of each row are valid, the Tq new ones among them; it is read on the device only, and what is
    outside 0 .. S counts as 0 or S. Returns [B, Tq, H, D] in q's dtype.

    Query t of row b is at position lengths[b] - Tq + t and sees the keys up to it, with `window` the last `window` of
    them; at a negative position it gives zeros. What no query of a row sees may hold anything, NaN too. `scale` is
    1/sqrt(D) by default. Raises ValueError or TypeError, naming the argument, and RuntimeError where a gradient would
    be needed.
    """
    q, k_cache, v_cache = autocast(q, k_cache, v_cache)
    check_decode(q, k_cache, v_cache, lengths, scale, window)
    check_device(q, "q")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if plain(q, k_cache, v_cache, lengths):
        return forward(q, k_cache, v_cache, lengths, scale, window)
    return torch.ops.gptfast.decode_attention(q, k_cache, v_cache, lengths, scale, window)


@torch.library.custom_op("gptfast::decode_attention", mutates_args=())
def _decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, window: int | None
) -> Tensor:
    return forward(q, k_cache, v_cache, lengths, scale, window)


@_decode_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


def forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float, window: int | None) -> Tensor:
    """The launch of both kernels: o [B, Tq, H, D]; nothing is checked here."""
    (B, Tq, H, D), (_, S, Hkv, _) = q.shape, k.shape
    o = q.new_empty(B, Tq, H, D)
    if o.numel() == 0:
        return o
    lengths = lengths.contiguous()
    launch = launch_for(q, "decode", D, S)
    rows = H // Hkv * Tq  # of a head of keys
    BM = min(launch.BM, max(16, triton.next_power_of_2(rows)))  # tl.dot takes 16 at least
    tiles = triton.cdiv(rows, BM)
    splits = parts(B * Hkv * tiles, min(S, window + Tq - 1) if window else S, launch.BN, multiprocessors(q.device))
    part = sums = None
    if splits > 1:
        part = q.new_empty(B * Hkv * splits * rows, D, dtype=accumulator(q))  # a_s
        sums = q.new_empty(B * Hkv * splits * rows, 2, dtype=accumulator(q))  # m_s, l_s
    constants = {"D": D, "BD": max(16, triton.next_power_of_2(D)), "BN": launch.BN, "WINDOW": window or 0}
    sizes = (Tq, S, H, Hkv, splits)
    with on_device(q):
        decode_split[(B * Hkv * tiles * splits,)](
            q, k, v, lengths, o, part, sums, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *sizes, scale,
            **constants, BM=BM, SPLIT=splits > 1, PRECISION=precision(q), **options(launch),
        )  # fmt: skip
        if splits > 1:
            decode_combine[(B * Tq * H,)](
                part, sums, lengths, o, *sizes, **constants, num_warps=1, enable_fp_fusion=True
            )
    return o


def parts(programs: int, keys: int, BN: int, multiprocessors: int) -> int:
    """How many parts the keys of a row are cut into, where one part each makes `programs`."""
    fill = PER_MULTIPROCESSOR * multiprocessors // programs
    return min(max(fill, triton.cdiv(keys, MOST_KEYS)), triton.cdiv(keys, BN))


@triton.jit
def row_of(lengths, b, Tq, S, splits, BN: tl.constexpr, WINDOW: tl.constexpr):
    """Row b's length, the first key that its first query sees, and how many keys a part has, in whole tiles."""
    length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), S)
    first = length * 0
    if WINDOW > 0:
        first = tl.maximum(length - Tq - WINDOW + 1, 0)
    return length, first, tl.cdiv(tl.cdiv(length - first, BN), splits) * BN


@triton.jit(do_not_specialize=["S", "splits"])  # a cache that grows is no new kernel
def decode_split(
    q, k, v, lengths, o, part, sums,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    Tq, S, H, Hkv, splits, scale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one row and head: part [B, Hkv, splits, G * Tq, D], sums [B, Hkv, splits, G * Tq, 2].

    Without SPLIT there is one part, and o [B, Tq, H, D] is written. q [B, Tq, H, D]; k and v [B, S, Hkv, D].
    """
    ACC: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float64 else tl.float32
    G = H // Hkv
    tiles = tl.cdiv(G * Tq, BM)
    pid = tl.program_id(0)  # heads side by side: what neighbours read is one stretch of memory
    tile, h, split, b = pid % tiles, pid // tiles % Hkv, pid // (tiles * Hkv) % splits, pid // (tiles * Hkv * splits)
    length, first, step = row_of(lengths, b, Tq, S, splits, BN, WINDOW)
    begin = first + split * step
    if SPLIT:
        if begin >= length:  # decode_combine does not read it
            return
    end = tl.minimum(begin + step, length)

    rows = tile * BM + tl.arange(0, BM)  # row t * G + g is query t of head h * G + g
    inside = rows < G * Tq
    position = length - Tq + rows // G  # [BM]
    head = h * G + rows % G
    columns = tl.arange(0, BD)
    where = b.to(tl.int64) * stride_qb + (rows // G).to(tl.int64) * stride_qt + head.to(tl.int64) * stride_qh
    q_mask = inside[:, None] & (columns < D)[None, :]
    q_tile = tl.load(q + where[:, None] + columns[None, :], mask=q_mask, other=0.0)

    WIDE: tl.constexpr = q.dtype.element_ty.primitive_bitwidth >= 32
    c = scale if WIDE else scale * LOG2E
    m = tl.full([BM], -float("inf"), ACC)
    l = tl.zeros([BM], ACC)  # noqa: E741
    acc = tl.zeros([BM, BD], ACC)
    for start in tl.range(begin, end, BN):  # loads stop at `end`, so what lies past the length is never read
        k_tile = load_tile(k, b, start, h, stride_kb, stride_kt, stride_kh, end, D, BN, BD, False, True)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION, out_dtype=ACC)  # [BM, BN]
        j = (start + tl.arange(0, BN))[None, :]
        seen = j <= position[:, None]
        if WINDOW > 0:
            seen = seen & (j > position[:, None] - WINDOW)
        s = tl.where(seen, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * c)
        base = tl.where(m_new == -float("inf"), 0.0, m_new)  # nothing seen yet: exp(-inf - 0), not exp(-inf + inf)
        p = exponential(s * c - base[:, None], WIDE)
        alpha = exponential(m - base, WIDE)
        l = l * alpha + tl.sum(p, 1)  # noqa: E741
        v_tile = load_tile(v, b, start, h, stride_vb, stride_vt, stride_vh, end, D, BN, BD, False, True)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * alpha[:, None], input_precision=PRECISION, out_dtype=ACC)
        m = m_new

    if SPLIT:
        place = ((b.to(tl.int64) * Hkv + h) * splits + split) * G * Tq + rows
        tl.store(part + place[:, None] * D + columns[None, :], acc, mask=q_mask)
        tl.store(sums + 2 * place, m, mask=inside)
        tl.store(sums + 2 * place + 1, l, mask=inside)
    else:
        acc = acc / tl.where(inside & (position >= 0), l, 1.0)[:, None]  # before the row's first token, 0 / 1
        place = (b.to(tl.int64) * Tq + rows // G) * H + head
        tl.store(o + place[:, None] * D + columns[None, :], acc.to(o.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=["S", "splits"])  # a cache that grows is no new kernel
def decode_combine(
    part, sums, lengths, o, Tq, S, H, Hkv, splits,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """o [B, Tq, H, D] of decode_split's results: one program a query and head."""
    WIDE: tl.constexpr = o.dtype.element_ty.primitive_bitwidth >= 32
    CHUNK: tl.constexpr = 2048 // BD  # parts at a time: 64 numbers a thread
    pid = tl.program_id(0)
    h, t, b = pid % H, pid // H % Tq, pid // (H * Tq)
    length, first, step = row_of(lengths, b, Tq, S, splits, BN, WINDOW)
    live = tl.cdiv(length - first, tl.maximum(step, 1))
    G = H // Hkv
    place = (b.to(tl.int64) * Hkv + h // G) * splits * G * Tq + t * G + h % G  # of part 0
    columns = tl.arange(0, BD)[None, :]
    m = tl.full([1], -float("inf"), sums.dtype.element_ty)
    l = tl.zeros([1], sums.dtype.element_ty)  # noqa: E741
    acc = tl.zeros([BD], sums.dtype.element_ty)
    for start in tl.range(0, live, CHUNK):
        s = start + tl.arange(0, CHUNK)
        row = place + s * (G * Tq)
        m_s = tl.load(sums + 2 * row, mask=s < live, other=-float("inf"))
        l_s = tl.load(sums + 2 * row + 1, mask=s < live, other=0.0)
        a_s = tl.load(part + row[:, None] * D + columns, mask=(s < live)[:, None] & (columns < D), other=0.0)
        m_new = tl.maximum(m, tl.max(m_s, 0))
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
        w, alpha = exponential(m_s - base, WIDE), exponential(m - base, WIDE)
        l = l * alpha + tl.sum(w * l_s, 0)  # noqa: E741
        acc = acc * alpha + tl.sum(w[:, None] * a_s, 0)
        m = m_new
    acc = acc / tl.where(length - Tq + t >= 0, l, 1.0)
    tl.store(o + pid.to(tl.int64) * D + tl.arange(0, BD), acc.to(o.dtype.element_ty), mask=tl.arange(0, BD) < D)
