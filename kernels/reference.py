"""The operations of a GPT-2 step in plain PyTorch, written to be read: the definition of correct.

Every kernel and every dispatched operation is compared with the function of the same name here. Nothing is fused,
nothing is in place, and statistics are taken in fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_boundaries, check_reduction


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def attention_mask(
    Tq: int,
    Tk: int,
    *,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
    B: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which keys each query sees: bool [Tq, Tk], or [B, T, T] with `cu_seqlens`.

    Queries are the last `Tq` of the `Tk` positions (aligned at the bottom right). Query i sees key j when j <= i, i - j
    < window, and both lie in the same document. `cu_seqlens` int32 [documents + 1] holds the boundaries over the
    flattened [B * T] positions, or is what `document_bounds` made of them.
    """
    i = torch.arange(Tk - Tq, Tk, device=device)[:, None]  # [Tq, 1]
    j = torch.arange(Tk, device=device)[None, :]  # [1, Tk]
    seen = j <= i
    if window is not None:
        seen = seen & (i - j < window)
    if cu_seqlens is not None:
        if Tq != Tk:
            raise ValueError("cu_seqlens needs as many queries as keys")
        bounds = cu_seqlens if cu_seqlens.dim() == 3 else document_bounds(cu_seqlens, B, Tk)
        seen = seen & (j >= bounds[0, :, :, None])
    return seen


def document_bounds(cu_seqlens: Tensor, B: int, T: int) -> Tensor:
    """int32 [2, B, T]: the first position of each position's document, and one past the last, within its row.

    `cu_seqlens` [documents + 1] holds the boundaries over the flattened [B * T] positions; a document ends with its
    row. A kernel takes either; what serves many layers is made once. Raises ValueError for boundaries that decrease or
    do not end at B * T.
    """
    check_boundaries(cu_seqlens, B * T)
    cu = cu_seqlens.to(torch.int32)
    positions = torch.arange(B * T, device=cu.device, dtype=torch.int32)
    document = torch.bucketize(positions, cu[1:-1], right=True)
    row = positions // T * T
    low = torch.maximum(cu[document], row) - row
    high = torch.minimum(cu[document + 1], row + T) - row
    return torch.stack((low, high)).view(2, B, T)


def dropout_threshold(p: float) -> int:
    """Dropped are 16-bit numbers below this: p is rounded to steps of 2^-16, short of 1."""
    return min(round(p * 65536), 65535)


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, rounds: int = 7) -> list[Tensor]:
    """Philox 4x32 (Salmon et al. 2011, section 3.3): four 32-bit words, held in int64, of a counter of four.

    `seed` int64 [1] is the key. Seven rounds are the fewest that pass BigCrush there, and what FlashAttention takes.
    """
    mask = 0xFFFFFFFF
    c = [x & mask for x in torch.broadcast_tensors(c0, c1, c2, c3)]
    k0, k1 = seed & mask, seed >> 32 & mask

    def multiply(a: int, x: Tensor) -> tuple[Tensor, Tensor]:  # the upper and lower 32 bits, in pieces that fit int64
        low, high = a * (x & 0xFFFF), a * (x >> 16)
        middle = (low >> 16) + (high & mask)
        return (middle >> 16) + (high >> 32 << 16) & mask, (low & 0xFFFF) | (middle << 16) & mask

    for _ in range(rounds):
        (high0, low0), (high2, low2) = multiply(0xD2511F53, c[0]), multiply(0xCD9E8D57, c[2])
        c = [high2 ^ c[1] ^ k0, low2, high0 ^ c[3] ^ k1, low0]
        k0, k1 = k0 + 0x9E3779B9 & mask, k1 + 0xBB67AE85 & mask
    return c


def draw_seed(device: torch.device) -> Tensor:
    """int64 [1] from torch's generator of the device, which no host waits for."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


def dropout_mask(seed: Tensor, B: int, H: int, Tq: int, Tk: int, p: float) -> Tensor:
    """What survives dropout, bool [B, H, Tq, Tk]; `seed` int64 [1].

    The counter (8 (j // 32) + j % 8, 8 (i // 16) + i % 8, b H + h, 0) gives the eight elements of its row pair and key
    quadruple 16 bits each: word (j // 8) % 4, its lower half for even i // 8, else the upper.
    """
    pair = torch.arange(B * H, device=seed.device).view(B, H, 1, 1)
    i = torch.arange(Tq, device=seed.device)[:, None]
    j = torch.arange(Tk, device=seed.device)[None, :]
    words = torch.stack(philox(seed, j // 32 * 8 + j % 8, i // 16 * 8 + i % 8, pair, torch.zeros_like(i)))
    word = words.gather(0, (j // 8 % 4).expand(1, B, H, Tq, Tk))[0]
    return (word >> (i // 8 % 2 * 16) & 0xFFFF) >= dropout_threshold(p)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
    deterministic: bool = True,
) -> Tensor:
    """softmax(q k^T * scale, over the keys that are seen) v (Vaswani et al. 2017, eq. 1).

    q [B, Tq, H, D], k and v [B, Tk, Hkv, D] with Tq <= Tk and H a multiple of Hkv; returns [B, Tq, H, D] in q's dtype.
    `scale` is 1/sqrt(D) by default. A query that sees no key gives zeros. See `attention_mask` for window and
    documents; `cu_seqlens` may also be what `document_bounds` returns. Dropout is by `dropout_mask`, its seed the next
    number of torch's generator of the device. Always deterministic.
    """
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    k, v = (x.repeat_interleave(H // Hkv, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", _wide(q), _wide(k)) * (1 / math.sqrt(D) if scale is None else scale)
    seen = attention_mask(Tq, Tk, window=window, cu_seqlens=cu_seqlens, B=B, device=q.device)
    seen = seen[:, None] if cu_seqlens is not None else seen
    scores = scores.masked_fill(~seen, -math.inf)  # [B, H, Tq, Tk]
    p = torch.softmax(scores, dim=-1).masked_fill(~seen, 0.0)
    if dropout_p:
        threshold = dropout_threshold(dropout_p)
        p = p * dropout_mask(draw_seed(q.device), B, H, Tq, Tk, dropout_p) * (65536 / (65536 - threshold))
    return torch.einsum("bhij,bjhd->bihd", p, _wide(v)).to(q.dtype)


def causal_attention_qkvpacked(qkv: Tensor, **features: Any) -> Tensor:
    """`causal_attention` of the slices of qkv [B, T, 3, H, D]."""
    return causal_attention(*qkv.unbind(2), **features)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """`causal_attention` of the last Tq tokens of each row to the first lengths[b] keys of its cache.

    q [B, Tq, H, D], k_cache and v_cache [B, S, Hkv, D] with H a multiple of Hkv, lengths int32 [B], what is outside 0
    .. S counting as 0 or S; returns [B, Tq, H, D] in q's dtype. Query t is at position lengths[b] - Tq + t; a negative
    one gives zeros. What no query of a row sees may hold anything, NaN too.
    """
    (_, Tq, H, D), (_, S, Hkv, _) = q.shape, k_cache.shape
    position = lengths.clamp(0, S)[:, None, None] - Tq + torch.arange(Tq, device=q.device)[:, None]  # [B, Tq, 1]
    j = torch.arange(S, device=q.device)
    seen = j <= position  # [B, Tq, S]
    if window is not None:
        seen = seen & (position - j < window)
    unused = ~seen.any(1)[:, :, None, None]  # [B, S, 1, 1]
    k, v = (x.masked_fill(unused, 0).repeat_interleave(H // Hkv, dim=2) for x in (k_cache, v_cache))
    scores = torch.einsum("bihd,bjhd->bhij", _wide(q), _wide(k)) * (1 / math.sqrt(D) if scale is None else scale)
    seen = seen[:, None]
    p = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1).masked_fill(~seen, 0.0)  # [B, H, Tq, S]
    return torch.einsum("bhij,bjhd->bihd", p, _wide(v)).to(q.dtype)


def row_dropout_mask(seed: Tensor, N: int, C: int, p: float) -> Tensor:
    """What survives dropout of a tensor of N rows, bool [N, C]; `seed` int64 [1].

    The counter (c // 8, n, 0, 0) gives the eight elements of its octet 16 bits each: element e = c % 8 takes word
    2 (e % 2) + e // 2 % 2, its lower half for e < 4, else the upper.
    """
    n, c = torch.arange(N, device=seed.device)[:, None], torch.arange(C, device=seed.device)[None, :]
    words = torch.stack(philox(seed, c // 8, n, torch.zeros_like(n), torch.zeros_like(n)))  # [4, N, C]
    word = words.gather(0, (2 * (c % 2) + c // 2 % 2).expand(1, N, C))[0]
    return (word >> (c // 4 % 2 * 16) & 0xFFFF) >= dropout_threshold(p)


def _dropout(x: Tensor, p: float) -> Tensor:
    """Of the rows of x [..., C], by `row_dropout_mask`."""
    if not p:
        return x
    kept = row_dropout_mask(draw_seed(x.device), x.numel() // max(1, x.shape[-1]), x.shape[-1], p).view(x.shape)
    return x * kept * (65536 / (65536 - dropout_threshold(p)))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (Ba et al. 2016); x [..., C]."""
    w = _wide(x)
    mean = w.mean(-1, keepdim=True)
    variance = (w - mean).square().mean(-1, keepdim=True)
    y = (w - mean) * torch.rsqrt(variance + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) for s = residual + dropout(x), both [..., C]; s has residual's dtype, layer_norm(s) x's."""
    s = (_wide(residual) + _dropout(_wide(x), dropout_p)).to(residual.dtype)
    return layer_norm(_wide(s), weight, bias, eps).to(x.dtype), s


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """GELU (Hendrycks & Gimpel 2016): x Phi(x), or GPT-2's tanh form of it."""
    w = _wide(x)
    if approximate == "none":
        return (0.5 * w * (1 + torch.erf(w / math.sqrt(2)))).to(x.dtype)
    return (0.5 * w * (1 + torch.tanh(math.sqrt(2 / math.pi) * (w + 0.044715 * w**3)))).to(x.dtype)


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    """`gelu(x + bias)`: x [..., C], bias [C]."""
    return gelu(_wide(x) + bias, approximate).to(x.dtype)


def embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float = 0.0, start: int = 0) -> Tensor:
    """Token row plus position row: idx int64 [B, T], wte [V, C], wpe [P, C] -> [B, T, C]; positions count from
    `start`.
    """
    x = _wide(wte)[idx] + _wide(wpe)[start : start + idx.shape[1]]
    return _dropout(x, dropout_p).to(wte.dtype)


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    """-sum_v q_v log p_v + z_loss L^2 in fp32, L = log sum exp(logits), log p = logits - L; logits [N, V], targets
    int64 [N].

    q is 1 - label_smoothing at the target and label_smoothing / V added everywhere (Szegedy et al. 2016, section 7);
    z_loss is that of Chowdhery et al. 2022, section 5. Ignored rows give 0 and do not count in the mean.
    """
    check_reduction(reduction)
    w = _wide(logits)
    kept = targets != ignore_index
    log_z = torch.logsumexp(w, dim=1)
    chosen = w.gather(1, targets.where(kept, 0)[:, None])[:, 0]
    losses = log_z - (1 - label_smoothing) * chosen + z_loss * log_z.square()
    if label_smoothing:  # classes of probability 0 have logits of -inf
        losses = losses - label_smoothing * w.mean(1)
    losses = losses.where(kept, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / (kept.sum() if reduction == "mean" else 1)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, z_loss: float = 0.0, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """`cross_entropy(x @ weight.T, targets)`: x [N, C], weight [V, C], targets int64 [N] -> fp32 scalar, or [N] for
    "none". `recompute` is about memory only.
    """
    return cross_entropy(_wide(x) @ _wide(weight).T, targets, ignore_index, reduction, label_smoothing, z_loss)


__all__: Sequence[str] = [
    "add_layer_norm", "attention_mask", "bias_gelu", "causal_attention", "causal_attention_qkvpacked", "cross_entropy",
    "decode_attention", "document_bounds", "dropout_mask", "embedding", "gelu", "layer_norm", "linear_cross_entropy",
    "philox", "row_dropout_mask",
]  # fmt: skip
