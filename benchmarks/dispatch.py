"""What a call costs before any arithmetic: each operation of gptfast.ops on tiny tensors, beside PyTorch's own.

Without gradients, and with them: a forward and a backward. The time is the wall clock's over calls that follow each
other without waiting for a GPU, so there it is what Python takes to launch. Outputs are not checked here: they are
by the cases of these operations at real sizes; so few numbers would fail the rule by chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptfast import ops
from gptfast.machine import synchronize

from .suite import Call, Case, Setup, Timed

B, T, H, D, V = 1, 16, 2, 64, 64  # [B, T, H, D]; rows of C
C = H * D
CALLS = 100  # in a row; a GPU queues a thousand launches before it makes the host wait


def cases(setup: Setup) -> Iterator[Case]:
    for name, (shapes, ours, plain) in operations(setup).items():
        for suffix, form in (("", without_gradients), (", with gradients", with_gradients)):
            if name == "decode_attention" and suffix:
                continue  # it has none

            def inputs(shapes: tuple[Any, ...] = shapes) -> tuple[Tensor, ...]:
                return tuple(
                    torch.randint(V, x, device=setup.device) if isinstance(x, list)
                    else torch.randn(x, device=setup.device, dtype=setup.dtype)
                    for x in shapes
                )  # fmt: skip

            dtype = str(setup.dtype).removeprefix("torch.")
            yield Case(
                "kernels", f"call of {name}{suffix}", f"B={B} T={T} H={H} D={D}", dtype,
                inputs, {"gptfast": form(ours, setup), "eager": form(plain, setup)}, work=1, unit="calls/s",
            )  # fmt: skip


def without_gradients(function: Callable[..., Any], setup: Setup) -> Callable[..., Call]:
    def prepare(*inputs: Tensor) -> Call:
        @torch.no_grad()
        def call() -> Timed:
            return _timed(lambda: function(*inputs), setup)

        return call

    return prepare


def with_gradients(function: Callable[..., Any], setup: Setup) -> Callable[..., Call]:
    def prepare(*inputs: Tensor) -> Call:
        given = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
        leaves = [x for x in given if x.requires_grad]
        first = function(*given)
        ones = [torch.ones_like(out) for out in (first if isinstance(first, tuple) else (first,))]

        def both() -> Any:
            out = function(*given)
            return torch.autograd.grad(out if isinstance(out, tuple) else (out,), leaves, ones)

        return lambda: _timed(both, setup)

    return prepare


def _timed(call: Callable[[], Any], setup: Setup) -> Timed:
    calls = 2 if setup.dry else CALLS
    synchronize(setup.device)
    start = time.perf_counter()
    for _ in range(calls):
        out = call()
    seconds = (time.perf_counter() - start) / calls
    synchronize(setup.device)
    return Timed(seconds, out)


def operations(setup: Setup) -> dict[str, tuple[tuple[Any, ...], Callable[..., Any], Callable[..., Any]]]:
    """Of each: the shapes of its inputs (a list: ids below V), the function of gptfast.ops, and PyTorch's."""
    lengths = torch.full((B,), T, dtype=torch.int32, device=setup.device)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2)

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (C,), w, b)

    def added(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        s = r + x
        return norm(s, w, b), s

    qkv, rows, row = ((B, T, H, D),) * 3, (B, T, C), (C,)
    return {
        "causal_attention": (qkv, ops.causal_attention, attention),
        "causal_attention_qkvpacked": (
            ((B, T, 3, H, D),), ops.causal_attention_qkvpacked, lambda x: attention(*x.unbind(2))
        ),
        "decode_attention": (
            ((B, 1, H, D), *qkv[1:]), lambda q, k, v: ops.decode_attention(q, k, v, lengths), attention
        ),
        "layer_norm": ((rows, row, row), ops.layer_norm, norm),
        "add_layer_norm": ((rows, rows, row, row), ops.add_layer_norm, added),
        "gelu": ((rows,), ops.gelu, lambda x: F.gelu(x, approximate="tanh")),
        "bias_gelu": ((rows, row), ops.bias_gelu, lambda x, b: F.gelu(x + b, approximate="tanh")),
        "linear_gelu": (
            (rows, (C, C), row), ops.linear_gelu, lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh")
        ),
        "embedding": (
            ([B, T], (V, C), (T, C)), ops.embedding, lambda idx, wte, wpe: F.embedding(idx, wte) + wpe[:T]
        ),
        "cross_entropy": (((T, V), [T]), ops.cross_entropy, lambda z, t: F.cross_entropy(z.float(), t)),
        "linear_cross_entropy": (
            ((T, C), (V, C), [T]), ops.linear_cross_entropy, lambda x, w, t: F.cross_entropy((x @ w.T).float(), t)
        ),
    }  # fmt: skip
