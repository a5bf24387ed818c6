"""The one place that decides what runs. Everything above calls these functions and knows no device.

Each has the signature of its namesake in `gptfast.kernels.reference`. What runs as a Triton kernel on a GPU is decided
by the launch table (gptfast/kernels/launch_table.json): where PyTorch has a kernel of its own that does the same, when
it was measured to be faster there; where it would take several passes over memory (a window, packed documents, fused
operations on rows), unless it was measured to be slower. Everything else, and everything on a CPU, is ATen.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import aten
from .kernels.reference import document_bounds

__all__ = [
    "add_layer_norm", "bias_gelu", "causal_attention", "causal_attention_qkvpacked", "cross_entropy",
    "decode_attention", "document_bounds", "embedding", "gelu", "layer_norm", "linear_cross_entropy", "linear_gelu",
]  # fmt: skip

TRITON = importlib.util.find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}  # ROCm's tensors are "cuda" too
ROW_WIDTHS = (1024, 2048, 4096, 8192, 16384)  # where the launch table's rows for LayerNorm end


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


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`gptfast.kernels.layer_norm` where it was measured to be faster than F.layer_norm."""
    if _row_kernels(x, ("norm_forward", "norm_backward"), fused=False):
        from .kernels.norm import layer_norm as kernel

        return kernel(x, weight, bias, eps)
    return aten.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(layer_norm(s), s) for s = residual + dropout(x)."""
    if _row_kernels(x, ("norm_forward", "norm_backward")):
        from .kernels.norm import add_layer_norm as kernel

        return kernel(x, residual, weight, bias, eps, dropout_p)
    return aten.add_layer_norm(x, residual, weight, bias, eps, dropout_p)


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """`gptfast.kernels.gelu` where it was measured to be faster than F.gelu."""
    if _row_kernels(x, ("gelu_forward", "gelu_backward"), fused=False):
        from .kernels.activation import gelu as kernel

        return kernel(x, approximate)
    return aten.gelu(x, approximate)


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    """gelu(x + bias)."""
    if _row_kernels(x, ("gelu_forward", "gelu_backward")):
        from .kernels.activation import bias_gelu as kernel

        return kernel(x, bias, approximate)
    return aten.bias_gelu(x, bias, approximate)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """gelu(x @ weight.T + bias): x [..., C], weight [D, C], bias [D] -> [..., D].

    The bias goes with the GELU where that is a kernel of ours, and with the matrix product elsewhere.
    """
    if bias is not None and _row_kernels(x, ("gelu_forward", "gelu_backward")):
        return bias_gelu(F.linear(x, weight), bias, approximate)
    return aten.linear_gelu(x, weight, bias, approximate)


def embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float = 0.0, start: int = 0) -> Tensor:
    """dropout(wte[idx] + wpe[positions]), positions counted from `start`."""
    if _row_kernels(wte, ("embedding_forward", "embedding_backward")):
        from .kernels.embed import embedding as kernel

        return kernel(idx.long(), wte, wpe, dropout_p, start)  # no copy where it is int64
    return aten.embedding(idx, wte, wpe, dropout_p, start)


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    """Of logits [N, V] in any dtype, computed and returned in fp32."""
    if _row_kernels(logits, ("cross_entropy",)):
        from .kernels.loss import cross_entropy as kernel

        return kernel(logits, targets, ignore_index, reduction, label_smoothing, z_loss)
    return aten.cross_entropy(logits, targets, ignore_index, reduction, label_smoothing, z_loss)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, z_loss: float = 0.0, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """`cross_entropy(x @ weight.T, targets)` in chunks, on every device: the logits are never held."""
    arguments = (x, weight, targets, ignore_index, reduction, label_smoothing, z_loss, recompute)
    if _row_kernels(x, ("cross_entropy",), width=weight.shape[0]):
        from .kernels.linear_loss import linear_cross_entropy as kernel

        return kernel(*arguments)
    return aten.linear_cross_entropy(*arguments)


def _row_kernels(x: Tensor, kernels: tuple[str, ...], fused: bool = True, width: int = 0) -> bool:
    """Whether the Triton kernels run on rows like those of x, and are to be preferred: see the head of this file."""
    if x.device.type not in TRITON_DEVICES or not TRITON or not x.dim():
        return False
    if not torch.compiler.is_compiling() and type(x) not in (Tensor, torch.nn.Parameter):
        return False  # a DTensor, say, which knows what to do with ATen's operators only
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return False
    width = width or x.shape[-1]
    if width == 0 or (kernels[0] == "norm_forward" and width > ROW_WIDTHS[-1]):
        return False
    # A number that a traced graph may depend on: the table's own width, not that of x.
    width = next((w for w in ROW_WIDTHS if width <= w), 1 << 30)
    return _rows_preferred(str(x.device), kernels, width, x.element_size(), fused)


def _rows_preferred(device: str, kernels: tuple[str, ...], width: int, size: int, fused: bool) -> bool:
    from .kernels import launch

    arch = launch.architecture(torch.device(device))
    prefer = [launch.choose(arch, kernel, False, width, size, 0).prefer for kernel in kernels]
    return all(x == "triton" or (fused and x != "torch") for x in prefer)


_rows_preferred._dynamo_marked_constant = True  # type: ignore[attr-defined]
