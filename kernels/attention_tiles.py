"""What the attention kernels share: loading and storing tiles, which keys a query sees, and the dropout mask."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tile(
    x, b, row, h, stride_b, stride_t, stride_h, T,
    D: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Rows row .. row + ROWS of head h of x [B, T, H, D] as [ROWS, BD]; what lies outside is zero.

    x is a tensor descriptor where TMA, else a pointer. Without CHECK all rows are known to exist. Offsets of a batch
    row or of many rows can pass 2^31, those within a tile cannot (checks.MOST_STRIDE).
    """
    if TMA:
        tile = x.load([b, row, h, 0]).reshape(ROWS, BD)
    else:
        rows = tl.arange(0, ROWS)[:, None]
        columns = tl.arange(0, BD)[None, :]
        start = tl.cast(b, tl.int64) * stride_b + tl.cast(row, tl.int64) * stride_t + tl.cast(h, tl.int64) * stride_h
        pointers = x + start + (rows * stride_t + columns)
        if CHECK and D < BD:
            tile = tl.load(pointers, mask=(rows < T - row) & (columns < D), other=0.0)
        elif CHECK:
            tile = tl.load(pointers, mask=rows < T - row, other=0.0)
        elif D < BD:
            tile = tl.load(pointers, mask=columns < D, other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    x, tile, b, row, h, stride_b, stride_t, stride_h, T, D: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """The inverse of load_tile, through a pointer."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BD)[None, :]
    x += tl.cast(b, tl.int64) * stride_b + tl.cast(row, tl.int64) * stride_t + tl.cast(h, tl.int64) * stride_h
    tl.store(x + rows * stride_t + columns, tile.to(x.dtype.element_ty), mask=(rows < T - row) & (columns < D))


@triton.jit
def program(pairs, tiles, group):
    """(tile, pair) of this program: pair counts batch rows and heads, tile counts tiles of the sequence.

    Pairs are taken in groups whose keys and values fit the L2 cache together; within a group, tile 0 of each pair comes
    first, then tile 1. With the longest tile as tile 0, what is left at the end is short.
    """
    pid = tl.program_id(0)
    first = pid // (tiles * group) * group
    size = tl.minimum(group, pairs - first)
    place = pid - first * tiles
    return place // size, first + place % size


@triton.jit
def first_key(position, b, low, T, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The first key that a query at `position` sees; `low` int32 [B, T] holds the document's."""
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    if DOCUMENTS:
        first = tl.maximum(first, tl.load(low + tl.cast(b, tl.int64) * T + tl.minimum(position, T - 1)))
    return first


@triton.jit
def key_ranges(
    start, shift, b, low, Tk, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr
):  # fmt: skip
    """begin, whole, diagonal and end of the keys that queries start .. start + BM walk over.

    Keys [begin, whole) are cut off below for some of the queries, [whole, diagonal) seen by all, [diagonal, end) in the
    future of some; whole and diagonal lie between tiles. `shift` is Tk - Tq.
    """
    end = tl.minimum(start + BM + shift, Tk)
    diagonal = (start + shift + 1) // BN * BN
    begin = diagonal * 0
    whole = begin
    if WINDOW > 0 or DOCUMENTS:
        begin = first_key(start + shift, b, low, Tk, WINDOW, DOCUMENTS) // BN * BN
        whole = tl.cdiv(first_key(end - 1, b, low, Tk, WINDOW, DOCUMENTS), BN) * BN
        whole = tl.minimum(whole, diagonal)
    return begin, whole, diagonal, end


@triton.jit
def last_query(position, b, high, T, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr):
    """One past the last query's position that sees the key at `position`; `high` int32 [B, T] is the document's."""
    last = position * 0 + T
    if WINDOW > 0:
        last = tl.minimum(position + WINDOW, T)
    if DOCUMENTS:
        last = tl.minimum(last, tl.load(high + tl.cast(b, tl.int64) * T + tl.minimum(position, T - 1)))
    return last


@triton.jit
def exponential(x, WIDE: tl.constexpr):
    """exp(x) of natural x where WIDE (inputs of fp32), else of an x that was made in units of log2(e).

    Folding log2(e) into the scale saves a multiplication an element and costs an error of 2^-25 |x|: nothing next to
    that of 16-bit inputs, and as much again as fp32 makes.
    """
    return tl.exp2(x * LOG2E) if WIDE else tl.exp2(x)


@triton.jit
def keep(seed, pair, i, j, threshold, BM: tl.constexpr, BN: tl.constexpr):
    """Which probabilities of queries i .. i + BM and keys j .. j + BN survive dropout, bool [BM, BN].

    reference.dropout_mask is the definition. One call of Philox gives eight elements, 16 bits each: two rows 8 apart by
    four keys 8 apart, which lie in the same thread of a matrix unit's accumulator. The compiler sees that and moves
    nothing between threads: a plain forward with tiles of 128 x 64 has 1,723 instructions on sm_90 (counted in its
    disassembly), 2,954 with this, 5,863 with one call an element, and the same shared memory. (Where rows are keys, in
    the kernel of dK and dV, bits go through 8 KB of it.) i is a multiple of 16, j of 32.
    """
    rows = i // 2 + tl.arange(0, BM // 2)[:, None]
    columns = j // 4 + tl.arange(0, BN // 4)[None, :]
    zero = rows * 0 + columns * 0
    w0, w1, w2, w3 = tl.philox(seed, zero + columns, zero + rows, zero + pair, zero, 7)
    first = tl.join(tl.join(w0 & 0xFFFF, w0 >> 16), tl.join(w1 & 0xFFFF, w1 >> 16))  # [BM / 2, BN / 4, half, word % 2]
    second = tl.join(tl.join(w2 & 0xFFFF, w2 >> 16), tl.join(w3 & 0xFFFF, w3 >> 16))
    bits = tl.join(first, second).reshape(BM // 16, 8, BN // 32, 8, 2, 2, 2)
    bits = bits.permute(0, 4, 1, 2, 6, 5, 3)  # [BM / 16, half, 8, BN / 32, word // 2, word % 2, 8]
    return bits.reshape(BM, BN) >= threshold
