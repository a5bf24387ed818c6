"""The backward of causal attention, from the output's gradient dO and the saved log-sum-exp (attention.py derives it).

Two kernels that each own what they write, so gradients are the same in every run: one walks over the queries that see
a tile of keys (dK, dV), one over the keys that a tile of queries sees (dQ). That is seven matrix multiplications a pair
of tiles; with ATOMIC the first also adds its part of dQ into an fp32 buffer, which makes five, in whatever order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tiles import LOG2E, exponential, first_key, keep, key_ranges, last_query, load_tile, program, store_tile


@triton.jit(do_not_specialize=["Tq"])
def attention_delta(
    o, do, delta, stride_ob, stride_ot, stride_oh, stride_gb, stride_gt, stride_gh, H, Tq,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """delta [B, H, Tq] = rowsum(dO * O), in fp32."""
    tiles = tl.cdiv(Tq, BM)
    start, pair = tl.program_id(0) % tiles * BM, tl.program_id(0) // tiles
    b, h = pair // H, pair % H
    o_tile = load_tile(o, b, start, h, stride_ob, stride_ot, stride_oh, Tq, D, BM, BD, False, True)
    do_tile = load_tile(do, b, start, h, stride_gb, stride_gt, stride_gh, Tq, D, BM, BD, False, True)
    ACC: tl.constexpr = delta.dtype.element_ty
    rows = start + tl.arange(0, BM)
    total = tl.sum(o_tile.to(ACC) * do_tile.to(ACC), 1)
    tl.store(delta + tl.cast(pair, tl.int64) * Tq + rows, total, mask=rows < Tq)


@triton.jit(do_not_specialize=["B", "Tq", "Tk", "group"])  # another length is no new kernel
def attention_backward_kv(
    q, k, v, do, dk, dv, dq, lse, delta, low, high, seed,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh, stride_dkb, stride_dkt, stride_dkh, stride_dvb, stride_dvt, stride_dvh,
    B, H, G, Tq, Tk, group, scale, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """dk and dv [B, Tk, H // G, D]: the sums over the G query heads of each key head are made here.

    With ATOMIC also dq fp32 [B, Tq, H, D], contiguous and zero before: added up, and not yet times `scale`.
    """
    ACC: tl.constexpr = lse.dtype.element_ty
    tile, pair = program(B * (H // G), tl.cdiv(Tk, BN), group)
    start = tile * BN  # the first keys are seen by the most queries
    b, h = pair // (H // G), pair % (H // G)
    shift = Tk - Tq
    columns = start + tl.arange(0, BN)  # [BN], keys
    last = last_query(columns, b, high, Tk, WINDOW, DOCUMENTS)  # [BN], as a position
    k_tile = load_tile(k, b, start, h, stride_kb, stride_kt, stride_kh, Tk, D, BN, BD, TMA, True)
    v_tile = load_tile(v, b, start, h, stride_vb, stride_vt, stride_vh, Tk, D, BN, BD, TMA, True)

    # Queries [begin, whole) do not see all keys of the tile yet, [whole, lower) do, [lower, end) some no longer.
    begin = tl.maximum(start - shift, 0) // BM * BM
    whole = tl.cdiv(tl.maximum(start + BN - 1 - shift, 0), BM) * BM  # never for a tile with keys past the end
    end = Tq
    if WINDOW > 0 or DOCUMENTS:
        final = tl.minimum(start + BN, Tk) - 1
        end = tl.maximum(last_query(final, b, high, Tk, WINDOW, DOCUMENTS) - shift, 0)
        lower = tl.maximum(last_query(start, b, high, Tk, WINDOW, DOCUMENTS) - shift, 0) // BM * BM
        whole = tl.minimum(whole, end)
        lower = tl.maximum(lower, whole)
    else:
        whole = tl.minimum(whole, end)
        lower = end

    dk_acc = tl.zeros([BN, BD], ACC)
    dv_acc = tl.zeros([BN, BD], ACC)
    seed_value = tl.load(seed) if DROPOUT else 0
    for g in tl.range(0, G):
        head = h * G + g
        query = b * H + head  # the pair of batch row and query head
        dk_acc, dv_acc = _walk_queries(
            dk_acc, dv_acc, k_tile, v_tile, q, do, dq, begin, whole, start, columns, last, lse, delta, seed_value,
            b, head, query, stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, H, Tq, shift, scale,
            threshold, rescale, D, BM, BN, BD, True, WINDOW > 0 or DOCUMENTS, DROPOUT, PRECISION, TMA, ATOMIC,
        )  # fmt: skip
        dk_acc, dv_acc = _walk_queries(
            dk_acc, dv_acc, k_tile, v_tile, q, do, dq, whole, lower, start, columns, last, lse, delta, seed_value,
            b, head, query, stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, H, Tq, shift, scale,
            threshold, rescale, D, BM, BN, BD, False, False, DROPOUT, PRECISION, TMA, ATOMIC,
        )  # fmt: skip
        if WINDOW > 0 or DOCUMENTS:
            dk_acc, dv_acc = _walk_queries(
                dk_acc, dv_acc, k_tile, v_tile, q, do, dq, lower, end, start, columns, last, lse, delta, seed_value,
                b, head, query, stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, H, Tq, shift, scale,
                threshold, rescale, D, BM, BN, BD, True, True, DROPOUT, PRECISION, TMA, ATOMIC,
            )  # fmt: skip
    store_tile(dk, dk_acc * scale, b, start, h, stride_dkb, stride_dkt, stride_dkh, Tk, D, BN, BD)
    store_tile(dv, dv_acc, b, start, h, stride_dvb, stride_dvt, stride_dvh, Tk, D, BN, BD)


@triton.jit
def _walk_queries(
    dk, dv, k_tile, v_tile, q, do, dq, begin, end, column, columns, last, lse, delta, seed, b, h, pair,
    stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, H, Tq, shift, scale, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, MASK: tl.constexpr, LOWER: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Add what queries [begin, end) give to dk (without its factor `scale`) and dv, both [BN, BD]."""
    WIDE: tl.constexpr = k_tile.dtype.primitive_bitwidth >= 32
    unit = 1.0 if WIDE else LOG2E
    lse += tl.cast(pair, tl.int64) * Tq
    delta += tl.cast(pair, tl.int64) * Tq
    for start in tl.range(begin, end, BM):
        rows = start + tl.arange(0, BM)
        q_tile = load_tile(q, b, start, h, stride_qb, stride_qt, stride_qh, Tq, D, BM, BD, TMA, True)
        st = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION, out_dtype=dk.dtype)  # [BN, BM]
        row_lse = tl.load(lse + rows, mask=rows < Tq, other=float("inf"))  # queries that do not exist: exp(0 - inf) = 0
        pt = exponential(st * (scale * unit) - (row_lse * unit)[None, :], WIDE)
        if MASK:
            seen = columns[:, None] <= rows[None, :] + shift
            if LOWER:
                seen = seen & (rows[None, :] + shift < last[:, None])
            pt = tl.where(seen, pt, 0.0)
        do_tile = load_tile(do, b, start, h, stride_gb, stride_gt, stride_gh, Tq, D, BM, BD, TMA, True)
        dpt = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION, out_dtype=dk.dtype)  # [BN, BM]
        if DROPOUT:
            kept = tl.trans(keep(seed, pair, start, column, threshold, BM, BN))
            dropped = tl.where(kept, pt * rescale, 0.0)
            dpt = tl.where(kept, dpt * rescale, 0.0)
        else:
            dropped = pt
        dv = tl.dot(dropped.to(do_tile.dtype), do_tile, dv, input_precision=PRECISION, out_dtype=dv.dtype)
        dst = pt * (dpt - tl.load(delta + rows, mask=rows < Tq, other=0.0)[None, :])
        dst = dst.to(q_tile.dtype)
        dk = tl.dot(dst, q_tile, dk, input_precision=PRECISION, out_dtype=dk.dtype)
        if ATOMIC:
            dq_tile = tl.dot(tl.trans(dst), k_tile, input_precision=PRECISION, out_dtype=dk.dtype)  # [BM, BD]
            width = tl.arange(0, BD)
            place = dq + ((tl.cast(b, tl.int64) * Tq + start) * H + h) * D
            place += tl.arange(0, BM)[:, None] * (H * D) + width[None, :]
            tl.atomic_add(place, dq_tile, mask=(rows < Tq)[:, None] & (width < D)[None, :], sem="relaxed")
    return dk, dv


@triton.jit(do_not_specialize=["B", "Tq", "Tk", "group"])  # another length is no new kernel
def attention_backward_q(
    q, k, v, do, dq, lse, delta, low, seed,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh, stride_dqb, stride_dqt, stride_dqh,
    B, H, G, Tq, Tk, group, scale, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dq [B, Tq, H, D]; the walk is that of the forward."""
    ACC: tl.constexpr = lse.dtype.element_ty
    tiles = tl.cdiv(Tq, BM)
    tile, pair = program(B * H, tiles, group)
    start = (tiles - 1 - tile) * BM
    b, h = pair // H, pair % H
    shift = Tk - Tq
    rows = start + tl.arange(0, BM)
    position = rows + shift
    first = first_key(position, b, low, Tk, WINDOW, DOCUMENTS)
    q_tile = load_tile(q, b, start, h, stride_qb, stride_qt, stride_qh, Tq, D, BM, BD, TMA, True)
    do_tile = load_tile(do, b, start, h, stride_gb, stride_gt, stride_gh, Tq, D, BM, BD, TMA, True)
    row_lse = tl.load(lse + tl.cast(pair, tl.int64) * Tq + rows, mask=rows < Tq, other=float("inf"))  # [BM]
    row_delta = tl.load(delta + tl.cast(pair, tl.int64) * Tq + rows, mask=rows < Tq, other=0.0)

    begin, whole, diagonal, end = key_ranges(start, shift, b, low, Tk, BM, BN, WINDOW, DOCUMENTS)

    acc = tl.zeros([BM, BD], ACC)
    seed_value = tl.load(seed) if DROPOUT else 0
    if WINDOW > 0 or DOCUMENTS:
        acc = _walk_keys(
            acc, q_tile, do_tile, k, v, begin, whole, start, position, first, row_lse, row_delta, seed_value, b, h,
            pair, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold, rescale,
            D, BM, BN, BD, True, True, DROPOUT, PRECISION, TMA,
        )  # fmt: skip
    acc = _walk_keys(
        acc, q_tile, do_tile, k, v, whole, diagonal, start, position, first, row_lse, row_delta, seed_value, b, h,
        pair, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold, rescale,
        D, BM, BN, BD, False, False, DROPOUT, PRECISION, TMA,
    )  # fmt: skip
    acc = _walk_keys(
        acc, q_tile, do_tile, k, v, diagonal, end, start, position, first, row_lse, row_delta, seed_value, b, h,
        pair, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold, rescale,
        D, BM, BN, BD, True, WINDOW > 0 or DOCUMENTS, DROPOUT, PRECISION, TMA,
    )  # fmt: skip
    store_tile(dq, acc * scale, b, start, h, stride_dqb, stride_dqt, stride_dqh, Tq, D, BM, BD)


@triton.jit
def _walk_keys(
    dq, q_tile, do_tile, k, v, begin, end, row, position, first, lse, delta, seed, b, h, pair,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, G, Tk, scale, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, MASK: tl.constexpr, LOWER: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Add what keys [begin, end) give to dq [BM, BD], without its factor `scale`."""
    WIDE: tl.constexpr = q_tile.dtype.primitive_bitwidth >= 32
    unit = 1.0 if WIDE else LOG2E
    for start in tl.range(begin, end, BN):
        k_tile = load_tile(k, b, start, h // G, stride_kb, stride_kt, stride_kh, Tk, D, BN, BD, TMA, MASK)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION, out_dtype=dq.dtype)  # [BM, BN]
        p = exponential(s * (scale * unit) - (lse * unit)[:, None], WIDE)
        if MASK:
            columns = start + tl.arange(0, BN)
            seen = columns[None, :] <= position[:, None]
            if LOWER:
                seen = seen & (columns[None, :] >= first[:, None])
            p = tl.where(seen, p, 0.0)
        v_tile = load_tile(v, b, start, h // G, stride_vb, stride_vt, stride_vh, Tk, D, BN, BD, TMA, MASK)
        dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION, out_dtype=dq.dtype)  # [BM, BN]
        if DROPOUT:
            dp = tl.where(keep(seed, pair, row, start, threshold, BM, BN), dp * rescale, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k_tile.dtype), k_tile, dq, input_precision=PRECISION, out_dtype=dq.dtype)
    return dq
