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

# Rows of logits held at once by `linear_cross_entropy`, in bytes of logits. Chunks this size keep the matrix
# multiplications at full rate; the softmax works on blocks of SOFTMAX_BYTES inside them, so that its fp32 copy stays in
# the cache.
CHUNK_BYTES = 128 << 20
SOFTMAX_BYTES = 8 << 20

# On a CPU, ATen's fused attention is slower than plain matrix multiplications up to here, forward and backward
# together: 20.6 ms to 7.8 at T = 128, 52.7 to 39.4 at 256, 91 to 72 at 512; 109 to 143 at 1,024 (docs/training.md).
CPU_FUSED_ABOVE = 512


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
    masked = window is not None or cu_seqlens is not None or 1 < Tq < Tk
    if q.device.type == "cpu" and not masked and Tq == Tk <= CPU_FUSED_ABOVE and H == Hkv and not dropout_p:
        q, k, v = (x.transpose(1, 2).reshape(B * H, Tq, D) for x in (q, k, v))
        y = _ShortAttention.apply(q, k, v, D**-0.5 if scale is None else scale)
        return y.view(B, H, Tq, D).transpose(1, 2)
    mask = None
    if masked:
        mask = reference.attention_mask(Tq, Tk, window=window, cu_seqlens=cu_seqlens, B=B, device=q.device)
        mask = mask[:, None] if cu_seqlens is not None else mask
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, dropout_p=dropout_p, scale=scale,
        is_causal=mask is None and Tq > 1, enable_gqa=H != Hkv,
    )  # fmt: skip
    return y.transpose(1, 2)  # [B, T, H, D]


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    Tq, S = q.shape[1], k_cache.shape[1]
    position = lengths.clamp(0, S)[:, None] - Tq + torch.arange(Tq, device=q.device)  # [B, Tq]
    j = torch.arange(S, device=q.device)
    seen = j <= position[:, :, None]  # [B, Tq, S]
    if window is not None:
        seen = seen & (position[:, :, None] - j < window)
    unused = ~seen.any(1)[:, :, None, None]  # may hold NaN, which a weight of zero does not hide
    k, v = (x.masked_fill(unused, 0).transpose(1, 2) for x in (k_cache, v_cache))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=seen[:, None], scale=scale, enable_gqa=q.shape[2] != k_cache.shape[2]
    )
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
    @torch.autograd.function.once_differentiable  # a second derivative is refused, not computed wrongly
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            dp = do.to(p.dtype) @ v.to(p.dtype).mT
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).to(q.dtype)
            return (ds @ k).mul_(ctx.scale), (ds.mT @ q).mul_(ctx.scale), p.to(q.dtype).mT @ do, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    return F.gelu(x, approximate=approximate)


def embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float = 0.0, start: int = 0) -> Tensor:
    x = F.embedding(idx, wte) + wpe[start : start + idx.shape[1]]
    return F.dropout(x, dropout_p) if dropout_p else x


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Loss and both gradients from chunks of logits that are overwritten by their own gradient: [N, V] is never held.

    The gradients are made in the forward, while the logits are at hand, and scaled in the backward. Per-token losses
    that need a gradient take the plain way, with all logits.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction is {reduction!r}; it must be "mean", "sum" or "none"')
    gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if gradients and reduction == "none":
        logits = (x @ weight.T).to(torch.promote_types(x.dtype, torch.float32))
        return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    return _chunked_cross_entropy(x, weight, targets, ignore_index, reduction, gradients)[0]


@torch.library.custom_op("gptfast::chunked_cross_entropy", mutates_args=())
def _chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss in fp32 (fp64 of fp64), and its gradients by x [N, C] and weight [V, C] (empty if not asked for)."""
    N, V = x.shape[0], weight.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    kept = targets != ignore_index
    scale = kept.to(wide) / (kept.sum() if reduction == "mean" else 1)  # [N]
    targets = targets.where(kept, 0)[:, None]
    losses = x.new_empty(N, dtype=wide)
    dx = torch.empty_like(x) if gradients else x.new_empty(0)
    dw = torch.zeros_like(weight, dtype=wide) if gradients else x.new_empty(0)
    chunk = max(1, math.ceil(N / max(1, math.ceil(N * V * x.element_size() / CHUNK_BYTES))))
    block = max(1, SOFTMAX_BYTES // (V * 4)) if x.device.type == "cpu" else chunk
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        logits = x[rows] @ weight.T  # [n, V]
        for z, t, loss in zip(logits.split(block), targets[rows].split(block), losses[rows].split(block), strict=True):
            p = torch.softmax(z, dim=1, dtype=wide)
            # loss = (max(z) - z_t) + log sum exp(z - max(z)), and the largest p is one over that sum
            loss.copy_(((z.amax(1, keepdim=True).to(wide) - z.gather(1, t)) - p.amax(1, keepdim=True).log())[:, 0])
            if gradients:
                z.copy_(p)
                z.scatter_(1, t, (p.gather(1, t) - 1).to(z.dtype))
        if gradients:
            torch.mm(logits, weight, out=dx[rows])
            dw += logits.T @ (x[rows] * scale[rows, None]).to(x.dtype)
    if gradients:
        dx.mul_(scale[:, None])
    losses = (losses * scale).where(kept | (scale != scale), 0.0)  # NaN scale: no row is kept, and the mean is NaN
    losses = losses if reduction == "none" else losses.sum()
    return losses, dx, dw.to(weight.dtype)


@_chunked_cross_entropy.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    losses = x.new_empty(x.shape[:1] if reduction == "none" else (), dtype=torch.promote_types(x.dtype, torch.float32))
    return losses, x.new_empty(x.shape if gradients else 0), x.new_empty(weight.shape if gradients else 0)


def _save_gradients(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # under create_graph
        raise RuntimeError("linear_cross_entropy has no second derivative; use gptfast.kernels.reference for one")
    dx, dw = ctx.saved_tensors
    return dx * grad.to(dx.dtype), dw * grad.to(dw.dtype), None, None, None, None


_chunked_cross_entropy.register_autograd(_scale_gradients, setup_context=_save_gradients)
