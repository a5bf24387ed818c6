"""The fastest form of each operation in PyTorch's own (ATen) kernels: what runs where no Triton kernel does.

Signatures are those of `gptfast.kernels.reference`. `gptfast.ops` decides when these run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import reference
from .kernels.checks import check_cross_entropy, check_linear_cross_entropy
from .kernels.chunked import ChunkedCrossEntropy, reduced
from .kernels.operator import autocast, first_derivative

# The softmax of a chunk of logits (kernels/chunked.py) works on blocks of this size, so that its fp32 copy stays in a
# CPU's cache.
SOFTMAX_BYTES = 8 << 20

# On a CPU, ATen's fused attention is slower than plain matrix multiplications up to here, forward and backward
# together: 20.6 ms to 7.8 at T = 128, 52.7 to 39.4 at 256, 91 to 72 at 512; 109 to 143 at 1,024 (docs/training.md). A
# forward alone is faster in it: 3.2 ms to 4.3 at T = 128, 8.8 to 12.7 at 256, B = 4 in bf16. With AMX: 19.1 ms to 8.0
# at T = 128, 13.7 to 12.9 at 256, 18 to 31 at 512.
CPU_FUSED_ABOVE = 256 if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else 512

# On a CPU, packed documents are attended to one by one, unless they are many and short: a mask over whole rows computes
# what it hides, but a call of its own takes as long as so many scores [B, T, T] (4 heads of 64, forward and backward:
# 12.2 ms to 5.6 at T = 480 and 60 tokens a document, 12.9 to 10.6 at 15, 12.6 to 17.2 at 8).
SCORES_A_CALL = 5_000


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
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    if cu_seqlens is not None and q.device.type == "cpu" and Tq == Tk and not torch.compiler.is_compiling():
        lengths = _document_lengths(cu_seqlens, B, Tk)
        if len(lengths) * SCORES_A_CALL <= B * Tk * Tk:
            parts = zip(*(x.flatten(0, 1)[None].split(lengths, dim=1) for x in (q, k, v)), strict=True)
            each = [causal_attention(*part, scale=scale, dropout_p=dropout_p, window=window) for part in parts]
            return torch.cat(each, dim=1).view(B, Tq, H, D)
    masked = window is not None or cu_seqlens is not None or 1 < Tq < Tk
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    short = trained and not masked and Tq == Tk <= CPU_FUSED_ABOVE and H == Hkv and not dropout_p
    if q.device.type == "cpu" and short:
        q, k, v = (x.transpose(1, 2).reshape(B * H, Tq, D) for x in (q, k, v))
        y = _ShortAttention.apply(q, k, v, D**-0.5 if scale is None else scale)
        return y.view(B, H, Tq, D).transpose(1, 2)
    mask = None
    if masked:
        mask = reference.attention_mask(Tq, Tk, window=window, cu_seqlens=cu_seqlens, B=B, device=q.device)
        mask = mask[:, None] if cu_seqlens is not None else mask
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout_p, scale=scale,
        is_causal=bool(mask is None and Tq > 1), enable_gqa=H != Hkv,
    )  # fmt: skip
    return y.transpose(1, 2)  # [B, T, H, D]


def _document_lengths(cu_seqlens: Tensor, B: int, T: int) -> list[int]:
    """Tokens of each document, which ends with its row, over the flattened [B * T] positions."""
    bounds = cu_seqlens if cu_seqlens.dim() == 3 else reference.document_bounds(cu_seqlens, B, T)
    starts = (bounds[0] == torch.arange(T, dtype=bounds.dtype)).flatten().nonzero()[:, 0]
    return torch.diff(starts, append=starts.new_tensor([B * T])).tolist()


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    Tq, S, whole = q.shape[1], k_cache.shape[1], False
    gqa = q.shape[2] != k_cache.shape[2]
    if q.device.type == "cpu" and lengths.numel() and not torch.compiler.is_compiling():
        # Each row's own keys, with nothing to hide: B = 8, S = 1,024 in bf16 takes 0.9 ms, and 11.7 where a mask needs
        # what it hides to be overwritten in a copy of the cache.
        ends = lengths.clamp(0, S).tolist()
        if len(set(ends)) > 1:
            rows = zip(*(x.split(1) for x in (q, k_cache, v_cache, lengths)), strict=True)
            return torch.cat([decode_attention(*row, scale=scale, window=window) for row in rows])
        start = 0 if window is None else max(0, ends[0] - Tq - window + 1)
        whole, S = ends[0] > 0, max(1, ends[0]) - start
        k_cache, v_cache = k_cache[:, start : start + S], v_cache[:, start : start + S]
        if whole and Tq == 1:
            q, k, v = q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2)
            return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=gqa).transpose(1, 2)
        lengths = lengths.clamp(0, start + S) - start
    position = lengths.clamp(0, S)[:, None] - Tq + torch.arange(Tq, device=q.device)  # [B, Tq]
    j = torch.arange(S, device=q.device)
    seen = j <= position[:, :, None]  # [B, Tq, S]
    if window is not None:
        seen = seen & (position[:, :, None] - j < window)
    if not whole:  # what is not seen may hold NaN, which a weight of zero does not hide
        k_cache, v_cache = (x.masked_fill(~seen.any(1)[:, :, None, None], 0) for x in (k_cache, v_cache))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2), attn_mask=seen[:, None], scale=scale,
        enable_gqa=gqa,
    )  # fmt: skip
    return y.transpose(1, 2).masked_fill((position < 0)[:, :, None, None], 0)


class _ShortAttention(torch.autograd.Function):
    """Attention with the scores in memory, as batched matrix multiplications: q, k, v [B * H, T, D] on a CPU.

    S = scale q k^T, P = softmax(S), O = P v. Then dV = P^T dO; dP = dO v^T; dS = P (dP - rowsum(P dP));
    dQ = scale dS k; dK = scale dS^T q (Dao et al. 2022, appendix B.2). P and dP are fp32, which takes a third longer
    than bf16 and makes the error that of ATen's fused kernel: a P kept in bf16 doubles that of O and dQ.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        T = q.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        above = torch.full((T, T), -math.inf, dtype=wide).triu(1)
        with torch.autocast("cpu", enabled=False):
            p = torch.softmax(torch.baddbmm(above, q.to(wide), k.to(wide).mT, alpha=scale), dim=-1)  # [B * H, T, T]
            o = (p @ v.to(wide)).to(q.dtype)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return o

    @staticmethod
    @first_derivative
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            dp = do.to(p.dtype) @ v.to(p.dtype).mT
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).to(q.dtype)
            return (ds @ k).mul_(ctx.scale), (ds.mT @ q).mul_(ctx.scale), p.to(q.dtype).mT @ do, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    if weight.dtype == x.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    wide = torch.promote_types(x.dtype, weight.dtype)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias, eps).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    s = (residual + (F.dropout(x, dropout_p) if dropout_p else x)).to(residual.dtype)
    return layer_norm(s.to(torch.promote_types(s.dtype, x.dtype)), weight, bias, eps).to(x.dtype), s


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    return F.gelu(x, approximate=approximate)


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    return F.gelu(x + bias, approximate=approximate).to(x.dtype)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate=approximate)


def embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float = 0.0, start: int = 0) -> Tensor:
    x = F.embedding(idx, wte) + wpe[start : start + idx.shape[1]]
    return F.dropout(x, dropout_p) if dropout_p else x


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    check_cross_entropy(logits, targets, ignore_index, reduction, label_smoothing, z_loss)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if not z_loss:
        return F.cross_entropy(logits, targets, reduction=reduction, **options)
    losses = F.cross_entropy(logits, targets, reduction="none", **options)
    penalty = (z_loss * torch.logsumexp(logits, dim=1).square()).where(targets != ignore_index, 0.0)
    return reduced(losses + penalty, targets, ignore_index, reduction)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, z_loss: float = 0.0, recompute: bool = False,
) -> Tensor:  # fmt: skip
    x, weight = autocast(x, weight)
    check_linear_cross_entropy(x, weight, targets, ignore_index, reduction, label_smoothing, z_loss)
    return _chunked(x, weight, targets, ignore_index, reduction, label_smoothing, z_loss, recompute)


def _step(
    logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, z_loss: float, *, losses: Tensor | None,
    gradients: bool, upstream: Tensor | None,
) -> None:  # fmt: skip
    """Losses of rows of logits [n, V], and their gradient in the logits' place (kernels/loss.py has the formulas)."""
    n, V = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    kept = (targets != ignore_index)[:, None]
    targets = targets[:, None].where(kept, 0)
    on_cpu = logits.device.type == "cpu"
    block = max(1, SOFTMAX_BYTES // (V * 4)) if on_cpu else n
    for start in range(0, n, block):
        rows = slice(start, start + block)
        z, t, some = logits[rows], targets[rows], kept[rows]
        p = torch.softmax(z, dim=1, dtype=wide)
        top = z.amax(1, keepdim=True).to(wide)
        spread = -p.amax(1, keepdim=True).log()  # log sum exp(z - max z): the largest p is one over that sum
        if losses is not None:
            loss = (top - z.gather(1, t)) + spread
            if smoothing:
                loss += smoothing * (z.gather(1, t) - z.mean(1, keepdim=True, dtype=wide))
            if z_loss:
                loss += z_loss * (top + spread).square()
            losses[rows] = loss.where(some, 0.0)[:, 0]
        if not gradients:
            continue
        if z_loss:
            p *= 1 + 2 * z_loss * (top + spread)
        if smoothing:
            p -= smoothing / V
        p.scatter_add_(1, t, torch.full_like(t, smoothing - 1, dtype=wide))
        if upstream is not None:
            p *= upstream[rows, None]
        if not on_cpu or not some.all():
            p.masked_fill_(~some, 0.0)
        z.copy_(p)


_chunked = ChunkedCrossEntropy("chunked_cross_entropy", _step)
