"""The one place that decides what runs. Everything above calls these functions and knows no device.

Each has the signature of its namesake in `gptfast.kernels.reference`. On a GPU, attention runs as a Triton kernel where
the launch table (gptfast/kernels/launch_table.json) says that it was measured to be faster there, and where PyTorch has
no fused kernel at all: a window, packed documents. Everything else, and everything on a CPU, is ATen.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from . import aten
from .aten import embedding, gelu, layer_norm, linear_cross_entropy
from .kernels.reference import document_bounds

__all__ = [
    "causal_attention", "causal_attention_qkvpacked", "decode_attention", "document_bounds", "embedding", "gelu",
    "layer_norm", "linear_cross_entropy",
]  # fmt: skip

TRITON = importlib.util.find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}  # ROCm's tensors are "cuda" too


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
    """`gptfast.kernels.causal_attention` where it is right and faster, PyTorch's attention elsewhere."""
    arguments: dict[str, Any] = {"scale": scale, "dropout_p": dropout_p, "window": window, "cu_seqlens": cu_seqlens}
    if _attention_in_triton(q, k, v, **arguments):
        from .kernels.attention import causal_attention as fused

        return fused(q, k, v, **arguments, deterministic=deterministic)
    return aten.causal_attention(q, k, v, **arguments)


def causal_attention_qkvpacked(
    qkv: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
    deterministic: bool = True,
) -> Tensor:
    """`causal_attention` of the slices of qkv [B, T, 3, H, D], whose gradient is then one tensor."""
    arguments: dict[str, Any] = {"scale": scale, "dropout_p": dropout_p, "window": window, "cu_seqlens": cu_seqlens}
    q, k, v = qkv.unbind(2)
    if _attention_in_triton(q, k, v, **arguments):
        from .kernels.attention import causal_attention_qkvpacked as fused

        return fused(qkv, **arguments, deterministic=deterministic)
    return aten.causal_attention(q, k, v, **arguments)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """`gptfast.kernels.decode_attention` on a GPU: PyTorch has nothing that reads lengths on the device but a mask."""
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k_cache, v_cache))
    if _takes(q, k_cache, v_cache, scale) and q.shape[1] <= 16 and not gradients:
        from .kernels.decode import decode_attention as fused

        return fused(q, k_cache, v_cache, lengths.to(torch.int32), scale=scale, window=window)
    return aten.decode_attention(q, k_cache, v_cache, lengths, scale=scale, window=window)


def _attention_in_triton(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout_p: float, window: int | None,
    cu_seqlens: Tensor | None,
) -> bool:  # fmt: skip
    """Whether the kernel takes these tensors, and is to be preferred for them."""
    if not _takes(q, k, v, scale):
        return False
    if cu_seqlens is not None or (window is not None and window < k.shape[1]):
        return True  # PyTorch would hold a mask [T, T], and compute what it hides
    # Numbers that a traced graph may depend on: the table's own head dimensions, and no length.
    D = 64 if q.shape[-1] <= 64 else 128 if q.shape[-1] <= 128 else 256
    dropout = True if dropout_p > 0 else False
    T = 1 << 30 if torch.compiler.is_compiling() else k.shape[1]
    return _preferred(str(q.device), dropout, D, q.element_size(), T, q.requires_grad)


def _takes(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> bool:
    """Whether the Triton kernels of attention run on these tensors, and right."""
    if q.device.type not in TRITON_DEVICES or not TRITON:
        return False
    D = q.shape[-1]
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    if D % 8 or not 16 <= D <= 256 or q.dtype not in dtypes or q.shape[1] > k.shape[1]:
        return False
    if any(x.dtype != q.dtype or x.stride(-1) != 1 for x in (q, k, v)):
        return False
    return scale is None or 0 < scale < math.inf


def _preferred(device: str, dropout: bool, D: int, size: int, T: int, gradients: bool) -> bool:
    from .kernels import launch

    kernels = ("forward", "backward_kv") if gradients else ("forward",)
    arch = launch.architecture(torch.device(device))
    return all(launch.choose(arch, kernel, dropout, D, size, T).prefer == "triton" for kernel in kernels)


# As torch.compiler.assume_constant_result does, which would import torch._dynamo, and Triton with it, for everybody.
_preferred._dynamo_marked_constant = True  # type: ignore[attr-defined]
