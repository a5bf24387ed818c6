"""The operations of a GPT-2 step in plain PyTorch, written to be read: the definition of correct.

Every kernel and every dispatched operation is compared with the function of the same name here. Nothing is fused,
nothing is in place, and statistics are taken in fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
    flattened [B * T] positions; the start of every row is one of them.
    """
    i = torch.arange(Tk - Tq, Tk, device=device)[:, None]  # [Tq, 1]
    j = torch.arange(Tk, device=device)[None, :]  # [1, Tk]
    seen = j <= i
    if window is not None:
        seen = seen & (i - j < window)
    if cu_seqlens is not None:
        if Tq != Tk:
            raise ValueError("cu_seqlens needs as many queries as keys")
        positions = torch.arange(B * Tk, device=device).view(B, Tk)
        document = torch.bucketize(positions, cu_seqlens[1:-1], right=True)  # [B, T]
        seen = seen & (document[:, :, None] == document[:, None, :])
    return seen


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scale, over the keys that are seen) v (Vaswani et al. 2017, eq. 1).

    q [B, Tq, H, D], k and v [B, Tk, Hkv, D] with Tq <= Tk and H a multiple of Hkv; returns [B, Tq, H, D] in q's dtype.
    `scale` is 1/sqrt(D) by default. A query that sees no key gives zeros. See `attention_mask` for window and
    documents.
    """
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    k, v = (x.repeat_interleave(H // Hkv, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", _wide(q), _wide(k)) * (1 / math.sqrt(D) if scale is None else scale)
    seen = attention_mask(Tq, Tk, window=window, cu_seqlens=cu_seqlens, B=B, device=q.device)
    seen = seen[:, None] if cu_seqlens is not None else seen
    scores = scores.masked_fill(~seen, -math.inf)  # [B, H, Tq, Tk]
    p = torch.softmax(scores, dim=-1).masked_fill(~seen, 0.0)
    p = F.dropout(p, dropout_p, training=dropout_p > 0)
    return torch.einsum("bhij,bjhd->bihd", p, _wide(v)).to(q.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (Ba et al. 2016); x [..., C]."""
    w = _wide(x)
    mean = w.mean(-1, keepdim=True)
    variance = (w - mean).square().mean(-1, keepdim=True)
    y = (w - mean) * torch.rsqrt(variance + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """GELU (Hendrycks & Gimpel 2016): x Phi(x), or GPT-2's tanh form of it."""
    w = _wide(x)
    if approximate == "none":
        return (0.5 * w * (1 + torch.erf(w / math.sqrt(2)))).to(x.dtype)
    return (0.5 * w * (1 + torch.tanh(math.sqrt(2 / math.pi) * (w + 0.044715 * w**3)))).to(x.dtype)


def embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float = 0.0, start: int = 0) -> Tensor:
    """Token row plus position row: idx int64 [B, T], wte [V, C], wpe [P, C] -> [B, T, C]; positions count from
    `start`.
    """
    x = wte[idx] + wpe[start : start + idx.shape[1]]
    return F.dropout(x, dropout_p, training=dropout_p > 0)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """log sum exp(logits) - logits[target] in fp32; logits [N, V], targets int64 [N]. Ignored rows give 0 and do not
    count.
    """
    w = _wide(logits)
    kept = targets != ignore_index
    chosen = w.gather(1, targets.where(kept, 0)[:, None])[:, 0]
    losses = (torch.logsumexp(w, dim=1) - chosen).where(kept, 0.0)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction is {reduction!r}; it must be "mean", "sum" or "none"')
    if reduction == "none":
        return losses
    return losses.sum() / (kept.sum() if reduction == "mean" else 1)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """`cross_entropy(x @ weight.T, targets)`: x [N, C], weight [V, C], targets int64 [N] -> fp32 scalar, or [N] for
    "none".
    """
    return cross_entropy(_wide(x) @ _wide(weight).T, targets, ignore_index, reduction)


__all__: Sequence[str] = [
    "attention_mask", "causal_attention", "cross_entropy", "embedding", "gelu", "layer_norm", "linear_cross_entropy",
]  # fmt: skip
