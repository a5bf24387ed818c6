"""Exact causal attention, forward and backward, with dropout, a window, packed documents and grouped heads.

For one head, with queries i and the keys j that they see (j <= i, and in the same window and document):

    S_ij = scale q_i . k_j        P_ij = exp(S_ij - L_i),  L_i = log sum_j exp S_ij        O_i = sum_j P_ij Z_ij v_j

where Z is 0 with probability `dropout_p` and 1 / (1 - dropout_p) else (1 without dropout). With dO given,

    dV_j  = sum_i P_ij Z_ij dO_i                                     since O is linear in v
    dP_ij = Z_ij dO_i . v_j
    dS_ij = P_ij (dP_ij - D_i),   D_i = sum_j P_ij dP_ij             the Jacobian of softmax: diag(P) - P P^T
          with D_i = sum_j P_ij Z_ij v_j . dO_i = O_i . dO_i         so that a row needs no second pass over its keys
    dQ_i  = scale sum_j dS_ij k_j,   dK_j = scale sum_i dS_ij q_i
    and a gradient dL of L adds P_ij dL_i to dS_ij: D_i - dL_i takes the place of D_i.

(Dao et al. 2022, appendix B; Dao 2023.) Nothing of size T x T is ever in memory: S and P are made again in the backward
from L, and Z from its counter. The kernels are in attention_forward.py and attention_backward.py, their launch in
attention_launch.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import attention_launch as run
from .checks import check_attention
from .launch import check_device
from .operator import autocast, first_derivative, plain
from .reference import document_bounds


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
    """softmax(q k^T * scale, over the keys that are seen) v, fused (Vaswani et al. 2017, eq. 1; Dao 2023).

    q [B, Tq, H, D]; k and v [B, Tk, Hkv, D] with H a multiple of Hkv and Tq <= Tk, aligned at the bottom right; fp16,
    bf16 or fp32 (in tf32 where torch.backends.cuda.matmul.fp32_precision says so); D a multiple of 8 from 16 to 256;
    any strides with a last one of 1. Returns [B, Tq, H, D] in q's dtype.

    `scale` is 1/sqrt(D) by default. `window`: a query sees the last `window` keys, itself among them. `cu_seqlens`
    int32 [documents + 1]: boundaries over the flattened [B * T] positions, or what `document_bounds` made of them once
    for many calls. `dropout_p`, in steps of 2^-16, drops probabilities by the mask of reference.dropout_mask, its seed
    drawn from torch's generator of the device. `deterministic=False` lets 16-bit gradients of q be added up in any
    order, which is faster. Raises ValueError or TypeError, naming the argument.
    """
    q, k, v = autocast(q, k, v)
    check_attention(q, k, v, scale, dropout_p, window, cu_seqlens)
    check_device(q, "q")
    arguments = _arguments(q, k, scale, dropout_p, window, cu_seqlens, deterministic)
    if plain(q, k, v):
        return _Attention.apply(q, k, v, *arguments)
    return torch.ops.gptfast.causal_attention(q, k, v, *arguments)[0]


def causal_attention_qkvpacked(
    qkv: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    window: int | None = None,
    cu_seqlens: Tensor | None = None,
    deterministic: bool = True,
) -> Tensor:
    """`causal_attention` of the slices of qkv [B, T, 3, H, D]; its gradient is one tensor, not three to be stacked."""
    (qkv,) = autocast(qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv is {list(qkv.shape)}; it must be [B, T, 3, H, D]")
    q, k, v = qkv.unbind(2)
    check_attention(q, k, v, scale, dropout_p, window, cu_seqlens)
    check_device(qkv, "qkv")
    arguments = _arguments(q, k, scale, dropout_p, window, cu_seqlens, deterministic)
    if plain(qkv):
        return _PackedAttention.apply(qkv, *arguments)
    return torch.ops.gptfast.causal_attention_qkvpacked(qkv, *arguments)[0]


def _arguments(
    q: Tensor, k: Tensor, scale: float | None, dropout_p: float, window: int | None, cu_seqlens: Tensor | None,
    deterministic: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """What the operators take after the tensors: bounds, seed, scale, dropout_p, window, deterministic."""
    bounds = seed = None
    if cu_seqlens is not None:
        bounds = cu_seqlens if cu_seqlens.dim() == 3 else document_bounds(cu_seqlens, k.shape[0], k.shape[1])
        bounds = bounds.to(q.device, non_blocking=True)
    if dropout_p:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=q.device)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return bounds, seed, scale, float(dropout_p), window, deterministic


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None, seed: Tensor | None, *rest: Any
    ) -> Tensor:
        o, lse = run.forward(q, k, v, bounds, seed, *rest[:-1])
        ctx.save_for_backward(q, k, v, o, lse, bounds, seed)
        ctx.rest = rest
        return o

    @staticmethod
    @first_derivative
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse, bounds, seed = ctx.saved_tensors
        return *run.backward(do, q, k, v, o, lse, None, bounds, seed, *ctx.rest), None, None, None, None, None, None


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bounds: Tensor | None, seed: Tensor | None, *rest: Any) -> Tensor:
        q, k, v = qkv.unbind(2)
        o, lse = run.forward(q, k, v, bounds, seed, *rest[:-1])
        ctx.save_for_backward(qkv, o, lse, bounds, seed)
        ctx.rest = rest
        return o

    @staticmethod
    @first_derivative
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        qkv, o, lse, bounds, seed = ctx.saved_tensors
        return run.packed_backward(do, qkv, o, lse, None, bounds, seed, *ctx.rest), None, None, None, None, None, None


# The same as operators, for everything that traces or watches: torch.compile, export, dispatch modes.


@torch.library.custom_op("gptfast::causal_attention", mutates_args=())
def _causal_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None, seed: Tensor | None, scale: float, dropout_p: float,
    window: int | None, deterministic: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output [B, Tq, H, D] and the log-sum-exp fp32 [B, H, Tq]; bounds is document_bounds' int32 [2, B, T]."""
    return run.forward(q, k, v, bounds, seed, scale, dropout_p, window)


@torch.library.custom_op("gptfast::causal_attention_backward", mutates_args=())
def _causal_attention_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, dlse: Tensor | None, bounds: Tensor | None,
    seed: Tensor | None, scale: float, dropout_p: float, window: int | None, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    run.backward_into(dq, dk, dv, do, q, k, v, o, lse, dlse, bounds, seed, scale, dropout_p, window, deterministic)
    return dq, dk, dv


@torch.library.custom_op("gptfast::causal_attention_qkvpacked", mutates_args=())
def _causal_attention_qkvpacked(
    qkv: Tensor, bounds: Tensor | None, seed: Tensor | None, scale: float, dropout_p: float, window: int | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = qkv.unbind(2)
    return run.forward(q, k, v, bounds, seed, scale, dropout_p, window)


@torch.library.custom_op("gptfast::causal_attention_qkvpacked_backward", mutates_args=())
def _causal_attention_qkvpacked_backward(
    do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, dlse: Tensor | None, bounds: Tensor | None, seed: Tensor | None,
    scale: float, dropout_p: float, window: int | None, deterministic: bool,
) -> Tensor:  # fmt: skip
    return run.packed_backward(
        do, qkv, o, lse, dlse, bounds, seed, scale, dropout_p, window, deterministic
    )  # fmt: skip


@_causal_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, Tq, H, _D = q.shape
    return q.new_empty(q.shape), q.new_empty(B, H, Tq, dtype=torch.promote_types(q.dtype, torch.float32))


@_causal_attention_backward.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@_causal_attention_qkvpacked.register_fake
def _(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, T, _3, H, D = qkv.shape
    return qkv.new_empty(B, T, H, D), qkv.new_empty(B, H, T, dtype=torch.promote_types(qkv.dtype, torch.float32))


@_causal_attention_qkvpacked_backward.register_fake
def _(do: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(tensors: int) -> Any:
    """Keep the first `tensors` inputs (q, k, v or qkv), both outputs, the bounds and the seed for the backward."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:tensors], *output, *inputs[tensors : tensors + 2])
        ctx.rest = inputs[tensors + 2 :]
        ctx.set_materialize_grads(False)

    return setup


def _gradients(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, bounds, seed = ctx.saved_tensors
    do = torch.zeros_like(o) if do is None else do
    gradients = torch.ops.gptfast.causal_attention_backward(do, q, k, v, o, lse, dlse, bounds, seed, *ctx.rest)
    return *gradients, None, None, None, None, None, None


def _packed_gradients(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    qkv, o, lse, bounds, seed = ctx.saved_tensors
    do = torch.zeros_like(o) if do is None else do
    dqkv = torch.ops.gptfast.causal_attention_qkvpacked_backward(do, qkv, o, lse, dlse, bounds, seed, *ctx.rest)
    return dqkv, None, None, None, None, None, None


_causal_attention.register_autograd(first_derivative(_gradients), setup_context=_save(3))
_causal_attention_qkvpacked.register_autograd(first_derivative(_packed_gradients), setup_context=_save(1))
