"""Logits that are computed when somebody asks for them.

A head that is an `nn.Linear` without a bias returns them in training. Handed to `F.cross_entropy`, flattened or in fp32
if need be, they become the fused loss, and the [N, V] matrix is never made. Anything else that is done with them makes
it, once, and goes on with it. For autograd they are what `F.linear` gives: a gradient of theirs goes on to x and the
weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..kernels.operator import autocast, autocast_enabled, first_derivative, no_autocast


class LazyLogits(torch.Tensor):
    """x @ weight.T for x [..., C] and weight [V, C], not yet computed: [..., V] in `dtype`."""

    x: Tensor
    weight: Tensor
    made: Tensor | None

    @staticmethod
    def __new__(cls, x: Tensor, weight: Tensor, dtype: torch.dtype) -> LazyLogits:
        shape = (*x.shape[:-1], weight.shape[0])
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=x.device)

    def __init__(self, x: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
        self.x, self.weight, self.made = x, weight, None

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.cross_entropy and isinstance(args[0], cls):
            loss = _loss(*args, **kwargs)
            if loss is not None:
                return loss
        elif function in _SHAPES and isinstance(args[0], cls):
            lazy = _reshaped(function, args[0], args[1:], kwargs)
            if lazy is not None:
                return lazy
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def plain(value: Any) -> Any:
            return value.compute() if isinstance(value, cls) else value

        return function(*torch.utils._pytree.tree_map(plain, args), **torch.utils._pytree.tree_map(plain, kwargs or {}))

    def compute(self) -> Tensor:
        if self.made is None:
            with torch.no_grad(), no_autocast(self.device):
                self.made = F.linear(self.x, self.weight).to(self.dtype)
        return self.made


class _Linear(torch.autograd.Function):
    """What LazyLogits are to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        return LazyLogits(x.detach(), weight.detach(), dtype)

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = g.to(x.dtype)
        dx = g @ weight if ctx.needs_input_grad[0] else None
        dw = g.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, dw, None


# What keeps them lazy: .float(), .to(dtype), and the ways to say [-1, V].
_SHAPES = {Tensor.float, Tensor.to, Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.contiguous, torch.flatten}


def lazy_logits(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` when it is asked for: x [..., C], weight [V, C]; autocast is followed."""
    x, weight = autocast(x, weight)
    return _made(x, weight, x.dtype)


def _made(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    logits = _Linear.apply(x, weight, dtype)
    logits.source = x, weight  # with their graph; those that the logits hold have none
    return logits


def _reshaped(function: Any, logits: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The same logits in another dtype, or with other leading dimensions; None where it is neither."""
    if logits.made is not None or not hasattr(logits, "source"):
        return None
    x, weight = logits.source
    if function is Tensor.contiguous:
        return logits if not args and not kwargs else None
    if function is Tensor.float or function is Tensor.to:
        if function is Tensor.to and (kwargs or len(args) != 1 or not isinstance(args[0], torch.dtype)):
            return None
        dtype = torch.float32 if function is Tensor.float else args[0]
        return _made(x, weight, dtype) if dtype in (logits.dtype, torch.float32) else None
    with torch._C.DisableTorchFunctionSubclass():
        shape = function(torch.empty(logits.shape, device="meta"), *args, **kwargs).shape
    if not shape or shape[-1] != logits.shape[-1]:
        return None
    return _made(x.reshape(*shape[:-1], x.shape[-1]), weight, logits.dtype)


def _loss(
    logits: Any, target: Tensor, weight: Tensor | None = None, size_average: Any = None, ignore_index: int = -100,
    reduce: Any = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor | None:  # fmt: skip
    """F.cross_entropy of lazy logits [N, V]; None where the fused loss is not the same thing."""
    if weight is not None or size_average is not None or reduce is not None or logits.dim() != 2:
        return None
    if logits.made is not None or not hasattr(logits, "source") or target.dtype != torch.int64 or target.dim() != 1:
        return None
    x, w = logits.source
    loss = ops.linear_cross_entropy(x, w, target, ignore_index, reduction, label_smoothing)
    return loss if autocast_enabled(x.device) else loss.to(logits.dtype)  # fp32 under autocast, as torch's
