"""Arguments checked before a kernel sees them: one error that names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_STRIDE = 1 << 24  # of positions, in elements: offsets within a tile of 128 are 32 bits
HEAD_DIMENSIONS = "a multiple of 8 from 16 to 256"
MOST_QUERIES = 16  # of decode_attention
MOST_WIDTH = 16384  # of a row that LayerNorm holds in registers


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    dropout_p: float,
    window: int | None,
    cu_seqlens: Tensor | None,
) -> None:
    _check_heads({"q": q, "k": k, "v": v})
    _check_scale_and_window(scale, window)
    check_dropout(dropout_p)
    if cu_seqlens is not None:
        _check_documents(cu_seqlens, q.shape[0], q.shape[1], k.shape[1])


def check_dropout(dropout_p: float) -> None:
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and below 1")


def _check_documents(cu_seqlens: Tensor, B: int, Tq: int, Tk: int) -> None:
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens is a {type(cu_seqlens).__name__}; it must be an int32 tensor")
    if Tq != Tk:
        raise ValueError(f"cu_seqlens needs as many queries as keys, not {Tq} and {Tk}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens is {_name(cu_seqlens.dtype)}; it must be int32")
    if cu_seqlens.dim() == 3:
        if cu_seqlens.dtype != torch.int32 or cu_seqlens.shape != (2, B, Tk):
            raise ValueError(
                f"cu_seqlens is {_name(cu_seqlens.dtype)} {list(cu_seqlens.shape)}; document_bounds of this batch is "
                f"int32 {[2, B, Tk]}"
            )
        return


def check_boundaries(cu_seqlens: Tensor, positions: int) -> None:
    """That documents [documents + 1] cover B * T `positions`; on a GPU by an assertion of its own."""
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens is {list(cu_seqlens.shape)}; it must be [documents + 1]")
    if torch.compiler.is_compiling() or type(cu_seqlens) is not Tensor or cu_seqlens.device.type == "meta":
        return
    right = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == positions) & (cu_seqlens[1:] >= cu_seqlens[:-1]).all()
    if cu_seqlens.device.type != "cpu":
        torch._assert_async(right, f"cu_seqlens must rise from 0 to B * T = {positions} and never decrease")
    elif not right:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.tolist() if len(cu_seqlens) < 20 else f'{len(cu_seqlens)} numbers'}; it must "
            f"rise from 0 to B * T = {positions} and never decrease"
        )


def check_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None, window: int | None
) -> None:
    named = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    _check_heads(named)
    if not 1 <= q.shape[1] <= MOST_QUERIES:
        raise ValueError(f"q has {q.shape[1]} positions; it must have 1 to {MOST_QUERIES}: causal_attention takes more")
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths is a {type(lengths).__name__}; it must be an int32 tensor on q's device")
    if lengths.dtype != torch.int32:
        raise TypeError(f"lengths is {_name(lengths.dtype)}; it must be int32")
    if lengths.shape != (q.shape[0],):
        raise ValueError(f"lengths is {list(lengths.shape)}; it must be [{q.shape[0]}], one number a row")
    if lengths.device != q.device:
        raise ValueError(f"lengths is on {lengths.device} and q on {q.device}; they must be on one device")
    _check_scale_and_window(scale, window)
    for name, x in named.items():
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} requires a gradient and decode_attention has none; use causal_attention, or torch.no_grad()"
            )


def _check_heads(tensors: dict[str, Tensor]) -> None:
    """q [B, Tq, H, D], k and v [B, Tk, Hkv, D], by the names of a caller's arguments."""
    (q_name, q), (k_name, k), (v_name, v) = tensors.items()
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
        if x.dim() != 4:
            raise ValueError(f"{name} is {list(x.shape)}; it must be [B, T, H, D]")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} is {_name(x.dtype)}; it must be float16, bfloat16 or float32")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {_name(x.dtype)} and {q_name} is {_name(q.dtype)}; they must be of one dtype")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and {q_name} on {q.device}; they must be on one device")
        if x.stride(-1) != 1 and x.shape[-1] > 1 and x.numel():
            raise ValueError(f"{name} has a last stride of {x.stride(-1)}; it must be 1: pass {name}.contiguous()")
        if x.stride(1) >= MOST_STRIDE and x.shape[1] > 1:
            raise ValueError(f"{name} has a stride of {x.stride(1)} between positions; it must be below {MOST_STRIDE}")
    (B, Tq, H, D), (_, Tk, Hkv, _) = q.shape, k.shape
    if k.shape != v.shape:
        raise ValueError(f"{k_name} is {list(k.shape)} and {v_name} is {list(v.shape)}; they must have one shape")
    if k.shape[0] != B or k.shape[3] != D:
        raise ValueError(f"{q_name} is {list(q.shape)} and {k_name} is {list(k.shape)}; B and D must agree")
    if D % 8 or not 16 <= D <= 256:
        raise ValueError(f"the head dimension D is {D}; it must be {HEAD_DIMENSIONS}")
    if Hkv == 0 or H % Hkv:
        raise ValueError(
            f"{q_name} has {H} heads and {k_name} has {Hkv}; "
            f"the heads of {q_name} must be a multiple of those of {k_name}"
        )
    if Tq > Tk:
        raise ValueError(f"{q_name} has {Tq} positions and {k_name} has {Tk}; there must be no more queries than keys")


def _check_scale_and_window(scale: float | None, window: int | None) -> None:
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be a finite number above 0")
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, (int, torch.SymInt)):
            raise TypeError(f"window is {window!r}; it must be a whole number of keys, or None")
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1, or None for all keys")


def check_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    _check_floats({name: t for name, t in tensors.items() if t is not None or name == "weight"})
    _check_width(x)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual is {list(residual.shape)} and x is {list(x.shape)}; they must have one shape")
    _check_vector("weight", weight, x)
    if bias is not None:
        _check_vector("bias", bias, x)
        if bias.dtype != weight.dtype:
            raise TypeError(
                f"bias is {_name(bias.dtype)} and weight is {_name(weight.dtype)}; they must be of one dtype"
            )
    if not 0 <= eps < math.inf:  # math.isfinite cannot be traced
        raise ValueError(f"eps is {eps}; it must be a finite number, at least 0")


def check_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> None:
    _check_floats({"x": x} if bias is None else {"x": x, "bias": bias})
    if bias is not None:
        if x.dim() == 0:
            raise ValueError("x is a scalar; it must be [..., C]")
        _check_vector("bias", bias, x)
    if approximate not in ("tanh", "none"):
        raise ValueError(f'approximate is {approximate!r}; it must be "tanh" or "none"')


def check_embedding(idx: Tensor, wte: Tensor, wpe: Tensor, dropout_p: float, start: int) -> None:
    _check_floats({"wte": wte, "wpe": wpe})
    _check_integers("idx", idx, "[B, T]", 2, wte)
    for name, x in (("wte", wte), ("wpe", wpe)):
        if x.dim() != 2:
            raise ValueError(f"{name} is {list(x.shape)}; it must be [rows, C]")
    if wte.shape[1] != wpe.shape[1] or wte.dtype != wpe.dtype:
        raise ValueError(
            f"wte is {_name(wte.dtype)} {list(wte.shape)} and wpe is {_name(wpe.dtype)} {list(wpe.shape)}; "
            "they must have one width and dtype"
        )
    if not 0 <= start <= wpe.shape[0] - idx.shape[1]:
        raise ValueError(
            f"positions {start} to {start + idx.shape[1] - 1} are not all in wpe, which has {wpe.shape[0]} rows"
        )
    check_dropout(dropout_p)
    _check_range("idx", idx, wte.shape[0], None)


def check_cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, reduction: str, label_smoothing: float, z_loss: float
) -> None:
    _check_floats({"logits": logits})
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits is {list(logits.shape)}; it must be [N, V]")
    _check_targets(targets, logits.shape[0], logits.shape[1], ignore_index, logits)
    _check_loss(reduction, label_smoothing, z_loss)


def check_linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str, label_smoothing: float, z_loss: float
) -> None:
    _check_floats({"x": x, "weight": weight})
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(f"x is {list(x.shape)} and weight is {list(weight.shape)}; they must be [N, C] and [V, C]")
    if x.dtype != weight.dtype:
        raise TypeError(f"x is {_name(x.dtype)} and weight is {_name(weight.dtype)}; they must be of one dtype")
    _check_targets(targets, x.shape[0], weight.shape[0], ignore_index, x)
    _check_loss(reduction, label_smoothing, z_loss)


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction is {reduction!r}; it must be "mean", "sum" or "none"')


def _check_loss(reduction: str, label_smoothing: float, z_loss: float) -> None:
    check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to 1")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss is {z_loss}; it must be a finite number, at least 0")


def _check_targets(targets: Tensor, N: int, V: int, ignore_index: int, x: Tensor) -> None:
    if isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.shape != (N,):
        raise ValueError(f"targets is {list(targets.shape)}; it must be [{N}], one for each row")
    _check_integers("targets", targets, "[N]", 1, x)  # not {N}: to print a size is to compile for it
    _check_range("targets", targets, V, ignore_index)


def _check_range(name: str, x: Tensor, size: int, ignored: int | None) -> None:
    """On a CPU only: a GPU would have to be waited for, and its kernels give NaN for such an entry."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or type(x) is not Tensor:
        return
    wrong = (x < 0) | (x >= size)
    wrong = wrong if ignored is None else wrong & (x != ignored)
    if wrong.any():
        allowed = f"0 to {size - 1}" + ("" if ignored is None else f", or {ignored} to be ignored")
        raise IndexError(f"{name} holds {x[wrong][0].item()}; allowed is {allowed}")


def _check_floats(tensors: dict[str, Any]) -> None:
    (first, x), *_ = tensors.items()
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}; it must be a tensor")
        if t.dtype not in DTYPES:
            raise TypeError(f"{name} is {_name(t.dtype)}; it must be float16, bfloat16 or float32")
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device} and {first} on {x.device}; they must be on one device")


def _check_integers(name: str, x: Tensor, shape: str, dimensions: int, other: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be an int64 tensor")
    if x.dtype != torch.int64:
        raise TypeError(f"{name} is {_name(x.dtype)}; it must be int64")
    if x.dim() != dimensions:
        raise ValueError(f"{name} is {list(x.shape)}; it must be {shape}")
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} and the rest on {other.device}; they must be on one device")


def _check_width(x: Tensor) -> None:
    if x.dim() == 0 or not 1 <= x.shape[-1] <= MOST_WIDTH:
        raise ValueError(f"x is {list(x.shape)}; it must be [..., C] with C from 1 to {MOST_WIDTH}")


def _check_vector(name: str, vector: Tensor, x: Tensor) -> None:
    if vector.shape != x.shape[-1:]:
        raise ValueError(f"{name} is {list(vector.shape)} and x is {list(x.shape)}; {name} must be [{x.shape[-1]}]")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
