"""The linear cross entropy, forward and backward: gptfast's chunks against the logits in memory.

The share is that of three matrix products N x V x C, 6 N V C FLOP. `recompute` makes the logits again in the backward.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import wider
from .suite import Call, Case, Setup


def cases(setup: Setup) -> Iterator[Case]:
    N, V, C = setup.size((32768, 50304, 768), (1024 if setup.quick else 4096, 50257, 768), (16, 64, 32))
    dtype = setup.dtype

    def inputs() -> tuple[Any, ...]:
        x, w = (torch.randn(n, C, device=setup.device) for n in (N, V))
        return x.to(dtype), (0.02 * w).to(dtype), torch.randint(V, (N,), device=setup.device)

    def both(function: Callable[..., Tensor]) -> Callable[..., Call]:
        def prepare(x: Tensor, w: Tensor, t: Tensor) -> Call:
            x, w = x.detach().requires_grad_(), w.detach().requires_grad_()

            def call() -> Any:
                loss = function(x, w, t)
                return loss.detach(), *torch.autograd.grad(loss, (x, w))

            return call

        return prepare

    def plain(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.T, t)

    yield Case(
        "kernels", "linear_cross_entropy forward + backward", f"N={N} V={V} C={C}", str(dtype).removeprefix("torch."),
        inputs, {name: both(function) for name, function in forms(setup, plain).items()}, work=6 * N * V * C,
        unit="TFLOP/s", of=setup.matmul, need=6 * N * V * C,
        intensity=6 * N * V * C / (dtype.itemsize * 2 * C * (N + V)),
        reference=wider(lambda *x: both(plain)(*x)()), yardstick="eager",
    )  # fmt: skip


def forms(setup: Setup, plain: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    from gptfast import kernels, ops

    ours: Any = kernels if setup.triton else ops

    def wide(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy((x @ w.T).float(), t)

    found = {
        "gptfast": ours.linear_cross_entropy,
        "gptfast recompute": lambda x, w, t: ours.linear_cross_entropy(x, w, t, recompute=True),
        "eager": plain,
        "eager fp32": wide,
    }
    if setup.peers and setup.on_gpu:
        found["compiled"] = torch.compile(wide)
        if importlib.util.find_spec("liger_kernel"):
            found["Liger"] = _liger
    return found


def _liger(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(w, x, t)
