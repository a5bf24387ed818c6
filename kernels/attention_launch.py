"""Launching the attention kernels: shapes and strides in, outputs and gradients out; nothing is checked here."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_backward import attention_backward_kv, attention_backward_q, attention_delta
from .attention_forward import attention_forward
from .checks import MOST_STRIDE
from .launch import accumulator, launch_for, on_device, options, tma_fits
from .reference import dropout_threshold

# Heads are walked through in groups whose keys and values stay in the L2 cache while the group's tiles read them.
GROUP_BYTES = 16 << 20


def precision(x: Tensor) -> str:
    """How fp32 matrices are multiplied: in tf32 where PyTorch's own setting says so, else as precisely as fp32.

    On NVIDIA that is three tf32 products on the matrix units: Triton's exact form, "ieee", keeps whole operands in
    registers and spilled with all tiles that were tried up to a head dimension of 128 (272 to 2,288 bytes on sm_90).
    Above it the parts of three products spill more, and do not fit the shared memory of sm_89. AMD's units multiply
    fp32.
    """
    if x.dtype != torch.float32 or torch.version.hip:
        return "ieee"
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3" if x.shape[-1] <= 128 else "ieee"


def _group(k: Tensor) -> int:
    return max(1, GROUP_BYTES // (2 * k.shape[1] * k.shape[3] * k.element_size()))


def _features(
    q: Tensor, k: Tensor, bounds: Tensor | None, seed: Tensor | None, dropout_p: float, window: int | None
) -> tuple[int, float, dict[str, Any]]:
    threshold = dropout_threshold(dropout_p) if seed is not None else 0
    window = window if window is not None and window < k.shape[1] else 0  # a wider one hides nothing
    constants = {
        "D": q.shape[3], "BD": max(16, triton.next_power_of_2(q.shape[3])), "WINDOW": window,
        "DOCUMENTS": bounds is not None, "DROPOUT": seed is not None, "PRECISION": precision(q),
    }  # fmt: skip
    return threshold, 65536 / (65536 - threshold), constants


def _descriptor(x: Tensor, rows: int, BD: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, 1, BD])


def forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None, seed: Tensor | None, scale: float, dropout_p: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o [B, Tq, H, D] and lse fp32 [B, H, Tq]."""
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    o = q.new_empty(B, Tq, H, D)
    lse = q.new_empty(B, H, Tq, dtype=accumulator(q))
    if o.numel() == 0:
        return o, lse
    threshold, rescale, constants = _features(q, k, bounds, seed, dropout_p, window)
    BD = constants["BD"]
    launch = launch_for(q, "forward", D, Tk, seed is not None, D == BD and tma_fits(q, k, v))
    tensors: Any = (q, k, v)
    if launch.tma:
        tensors = (_descriptor(q, launch.BM, BD), _descriptor(k, launch.BN, BD), _descriptor(v, launch.BN, BD))
    with on_device(q):  # the backward is called by autograd, which has seen to it
        attention_forward[(triton.cdiv(Tq, launch.BM) * B * H,)](
            *tensors, o, lse, None if bounds is None else bounds[0], seed,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
            B, H, H // Hkv, Tq, Tk, _group(k), scale, threshold, rescale,
            **constants, BM=launch.BM, BN=launch.BN, TMA=launch.tma, **options(launch),
        )  # fmt: skip
    return o, lse


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, dlse: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv; slices of one buffer where q, k and v are."""
    if packed(q, k, v):
        dq, dk, dv = q.new_empty(*q.shape[:2], 3, *q.shape[2:]).unbind(2)
    else:
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    backward_into(dq, dk, dv, do, q, k, v, o, lse, dlse, *rest)
    return dq, dk, dv


def packed(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether q, k and v are the slices of one tensor [B, T, 3, H, D]."""
    step = q.shape[2] * q.shape[3]
    return (
        q.shape == k.shape
        and q.stride() == k.stride() == v.stride()
        and q.stride()[1:] == (3 * step, q.shape[3], 1)
        and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
        and k.storage_offset() - q.storage_offset() == v.storage_offset() - k.storage_offset() == step
    )


def packed_backward(do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, dlse: Tensor | None, *rest: Any) -> Tensor:
    dqkv = qkv.new_empty(qkv.shape)
    (dq, dk, dv), (q, k, v) = dqkv.unbind(2), qkv.unbind(2)
    backward_into(dq, dk, dv, do, q, k, v, o, lse, dlse, *rest)
    return dqkv


def backward_into(
    dq: Tensor, dk: Tensor, dv: Tensor, do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    dlse: Tensor | None, bounds: Tensor | None, seed: Tensor | None, scale: float, dropout_p: float,
    window: int | None, deterministic: bool,
) -> None:  # fmt: skip
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    if q.numel() == 0:
        dk.zero_()
        dv.zero_()
        return
    do = do if do.stride(-1) == 1 and do.stride(1) < MOST_STRIDE else do.contiguous()
    threshold, rescale, constants = _features(q, k, bounds, seed, dropout_p, window)
    BD = constants["BD"]
    low, high = (None, None) if bounds is None else bounds.unbind(0)

    delta = torch.empty_like(lse)
    rows = 32
    attention_delta[(triton.cdiv(Tq, rows) * B * H,)](
        o, do, delta, *o.stride()[:3], *do.stride()[:3], H, Tq, D=D, BM=rows, BD=BD, num_warps=4, enable_fp_fusion=True
    )
    if dlse is not None:
        delta -= dlse

    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3])
    sizes = (B, H, H // Hkv, Tq, Tk, _group(k), scale, threshold, rescale)
    one_pass = not deterministic and q.element_size() == 2  # in fp32 its tiles do not fit everywhere
    sum_q = q.new_zeros(B, Tq, H, D, dtype=lse.dtype) if one_pass else None
    aligned = D == BD and tma_fits(q, k, v, do)
    launch = launch_for(q, "backward_atomic" if one_pass else "backward_kv", D, Tk, seed is not None, aligned)
    attention_backward_kv[(triton.cdiv(Tk, launch.BN) * B * Hkv,)](
        *_sources(q, k, v, do, launch.BM, launch.BN, BD, launch.tma), dk, dv, sum_q, lse, delta, low, high, seed,
        *strides, *dk.stride()[:3], *dv.stride()[:3], *sizes,
        **constants, BM=launch.BM, BN=launch.BN, TMA=launch.tma, ATOMIC=one_pass, **options(launch),
    )  # fmt: skip
    if sum_q is not None:
        dq.copy_(sum_q.mul_(scale))
        return
    launch = launch_for(q, "backward_q", D, Tk, seed is not None, aligned)
    attention_backward_q[(triton.cdiv(Tq, launch.BM) * B * H,)](
        *_sources(q, k, v, do, launch.BM, launch.BN, BD, launch.tma), dq, lse, delta, low, seed,
        *strides, *dq.stride()[:3], *sizes,
        **constants, BM=launch.BM, BN=launch.BN, TMA=launch.tma, **options(launch),
    )  # fmt: skip


def _sources(q: Tensor, k: Tensor, v: Tensor, do: Tensor, BM: int, BN: int, BD: int, tma: bool) -> tuple[Any, ...]:
    """q, k, v and do as the backward's kernels take them."""
    if not tma:
        return q, k, v, do
    return _descriptor(q, BM, BD), _descriptor(k, BN, BD), _descriptor(v, BN, BD), _descriptor(do, BM, BD)
