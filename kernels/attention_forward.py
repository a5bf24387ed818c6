"""The forward of causal attention: one program holds a tile of queries and walks over the keys they see.

Online softmax (Milakov & Gimelshein 2018; Dao et al. 2022, algorithm 1), for 16-bit inputs in base 2: with c = scale *
log2(e), one fused multiply-add and one exp2 an element. The maximum m, the sum l and the output are fp32.
"""
# ruff: noqa: E741 - l is the field's name for the sum

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tiles import LOG2E, exponential, first_key, keep, key_ranges, load_tile, program, store_tile


@triton.jit(do_not_specialize=["B", "Tq", "Tk", "group"])  # another length is no new kernel
def attention_forward(
    q, k, v, o, lse, low, seed,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_ob, stride_ot, stride_oh,
    B, H, G, Tq, Tk, group, scale, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """o [B, Tq, H, D] and lse fp32 [B, H, Tq] of q [B, Tq, H, D] and k, v [B, Tk, H // G, D]."""
    ACC: tl.constexpr = lse.dtype.element_ty
    tiles = tl.cdiv(Tq, BM)
    tile, pair = program(B * H, tiles, group)
    start = (tiles - 1 - tile) * BM  # the last queries see the most keys
    b, h = pair // H, pair % H
    shift = Tk - Tq
    rows = start + tl.arange(0, BM)
    position = rows + shift  # [BM], of the queries among the keys
    first = first_key(position, b, low, Tk, WINDOW, DOCUMENTS)  # [BM]
    q_tile = load_tile(q, b, start, h, stride_qb, stride_qt, stride_qh, Tq, D, BM, BD, TMA, True)

    begin, whole, diagonal, end = key_ranges(start, shift, b, low, Tk, BM, BN, WINDOW, DOCUMENTS)

    m = tl.full([BM], -float("inf"), ACC)
    l = tl.zeros([BM], ACC)
    acc = tl.zeros([BM, BD], ACC)
    seed_value = tl.load(seed) if DROPOUT else 0
    if WINDOW > 0 or DOCUMENTS:
        m, l, acc = _walk(
            m, l, acc, q_tile, k, v, begin, whole, start, position, first, seed_value, b, h, pair,
            stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold,
            D, BM, BN, BD, True, True, DROPOUT, PRECISION, TMA,
        )  # fmt: skip
    m, l, acc = _walk(
        m, l, acc, q_tile, k, v, whole, diagonal, start, position, first, seed_value, b, h, pair,
        stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold,
        D, BM, BN, BD, False, False, DROPOUT, PRECISION, TMA,
    )  # fmt: skip
    m, l, acc = _walk(
        m, l, acc, q_tile, k, v, diagonal, end, start, position, first, seed_value, b, h, pair,
        stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold,
        D, BM, BN, BD, True, WINDOW > 0 or DOCUMENTS, DROPOUT, PRECISION, TMA,
    )  # fmt: skip

    acc = acc * (rescale / l)[:, None]  # a row whose logits are all -inf is 0 / 0, as in torch
    store_tile(o, acc, b, start, h, stride_ob, stride_ot, stride_oh, Tq, D, BM, BD)
    WIDE: tl.constexpr = q_tile.dtype.primitive_bitwidth >= 32
    total = m + tl.log(l) if WIDE else (m + tl.log2(l)) / LOG2E
    tl.store(lse + tl.cast(pair, tl.int64) * Tq + rows, total, mask=rows < Tq)


@triton.jit
def _walk(
    m, l, acc, q_tile, k, v, begin, end, row, position, first, seed, b, h, pair,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, MASK: tl.constexpr, LOWER: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Take keys [begin, end) into the running maximum m [BM], sum l [BM] and output acc [BM, BD]."""
    WIDE: tl.constexpr = q_tile.dtype.primitive_bitwidth >= 32
    c = scale if WIDE else scale * LOG2E
    for start in tl.range(begin, end, BN):
        k_tile = load_tile(k, b, start, h // G, stride_kb, stride_kt, stride_kh, Tk, D, BN, BD, TMA, MASK)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION, out_dtype=acc.dtype)  # [BM, BN]
        columns = start + tl.arange(0, BN)
        if MASK:
            seen = columns[None, :] <= position[:, None]
            if LOWER:
                seen = seen & (columns[None, :] >= first[:, None])
            s = tl.where(seen, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * c)
        base = tl.where(m_new == -float("inf"), 0.0, m_new)  # nothing seen yet: exp(-inf - 0), not exp(-inf + inf)
        p = exponential(s * c - base[:, None], WIDE)
        alpha = exponential(m - base, WIDE)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        if DROPOUT:
            p = tl.where(keep(seed, pair, row, start, threshold, BM, BN), p, 0.0)
        v_tile = load_tile(v, b, start, h // G, stride_vb, stride_vt, stride_vh, Tk, D, BN, BD, TMA, MASK)
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        m = m_new
    return m, l, acc
