"""Logits that are computed when somebody asks for them.

A head that is an `nn.Linear` without a bias returns them in training. Handed to `F.cross_entropy`, flattened or in fp32
if need be, they become the fused loss, and the [N, V] matrix is never made. Anything else that is done with them makes
it, once, and goes on with it. For autograd they are what `F.linear` gives: a gradient of theirs goes on to x and the
weight.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..kernels.operator import autocast, autocast_enabled, first_derivative, no_autocast


class Product:
    """x @ weight.T for x [..., C] and weight [V, C], of which several logits may be views; computed once."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self.x, self.weight = x, weight  # with their graph, for the fused loss
        self.versions = x._version, weight._version
        self.made: dict[torch.dtype, Tensor] = {}
        self.views: list[weakref.ref[Any]] = []

    def shared(self) -> bool:
        """Whether more than one tensor shows it."""
        return sum(view() is not None for view in self.views) > 1

    def in_dtype(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self.made:
            if (self.x._version, self.weight._version) != self.versions:
                raise RuntimeError(
                    "these logits were never computed, and the weights have changed since (optimizer.step()?); "
                    "ask for logits before, or call gptfast.restore(model)"
                )
            with torch.no_grad(), no_autocast(self.x.device):
                self.made[dtype] = F.linear(self.x.detach(), self.weight.detach()).to(dtype)
        return self.made[dtype]


class LazyLogits(torch.Tensor):
    """A `Product` as a tensor [..., V] in `dtype`, not yet computed."""

    product: Product

    @staticmethod
    def __new__(cls, product: Product, shape: tuple[int, ...], dtype: torch.dtype) -> LazyLogits:
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=product.x.device)

    def __init__(self, product: Product, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.product = product
        product.views.append(weakref.ref(self))

    @property
    def untouched(self) -> bool:
        """Whether nobody has computed them, and nobody waits for their gradient."""
        with torch._C.DisableTorchFunctionSubclass():
            return not self.product.made and not self._backward_hooks and not self.retains_grad

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        logits = args[0] if args and isinstance(args[0], cls) else None
        name = getattr(function, "__name__", "")
        if function is F.cross_entropy and logits is not None:
            loss = _loss(*args, **kwargs)
            if loss is not None:
                return loss
        elif function in _SHAPES and logits is not None:
            lazy = _reshaped(function, logits, args[1:], kwargs)
            if lazy is not None:
                return lazy
        elif logits is not None and name in ("tolist", "numpy", "data_ptr", "__reduce_ex__"):
            return getattr(logits * 1 if logits.requires_grad else logits.compute(), name)(*args[1:], **kwargs)
        elif logits is not None and _in_place(name) and logits.product.shared():
            raise RuntimeError("logits that were reshaped or cast are not changed in place; clone them first")
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
        with torch._C.DisableTorchFunctionSubclass():
            return self.product.in_dtype(self.dtype).view(self.shape)


class _Linear(torch.autograd.Function):
    """What LazyLogits are to autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, product: Product, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return LazyLogits(product, shape, dtype)

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = g.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
        dx = g @ weight if ctx.needs_input_grad[0] else None
        dw = g.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None


# What keeps them lazy: .float(), .to(dtype), and the ways to say [-1, V].
_SHAPES = {Tensor.float, Tensor.to, Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.contiguous, torch.flatten}


def _in_place(name: str) -> bool:
    dunder = name.startswith("__")
    return (dunder and (name == "__setitem__" or name.startswith("__i"))) or (not dunder and name.endswith("_"))


def lazy_logits(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` when it is asked for: x [..., C], weight [V, C]; autocast is followed."""
    x, weight = autocast(x, weight)
    return _of(Product(x, weight), (*x.shape[:-1], weight.shape[0]), x.dtype)


def _of(product: Product, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return _Linear.apply(product.x, product.weight, product, shape, dtype)


def _reshaped(function: Any, logits: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The same logits in another dtype, or with other leading dimensions; None where it is neither."""
    if not logits.untouched:
        return None
    if function is Tensor.contiguous:
        return logits if not args and not kwargs else None
    if function is Tensor.float or function is Tensor.to:
        if function is Tensor.to and (kwargs or len(args) != 1 or not isinstance(args[0], torch.dtype)):
            return None
        dtype = torch.float32 if function is Tensor.float else args[0]
        if dtype == logits.dtype:
            return logits
        return _of(logits.product, tuple(logits.shape), dtype) if dtype == torch.float32 else None
    with torch._C.DisableTorchFunctionSubclass():
        shape = tuple(function(torch.empty(logits.shape, device="meta"), *args, **kwargs).shape)
    return _of(logits.product, shape, logits.dtype) if shape and shape[-1] == logits.shape[-1] else None


def _loss(
    logits: Any, target: Tensor, weight: Tensor | None = None, size_average: Any = None, ignore_index: int = -100,
    reduce: Any = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor | None:  # fmt: skip
    """F.cross_entropy of lazy logits [N, V]; None where the fused loss is not the same thing."""
    if weight is not None or size_average is not None or reduce is not None or logits.dim() != 2:
        return None
    if not logits.untouched or target.dtype != torch.int64 or target.dim() != 1:
        return None
    x, w = logits.product.x, logits.product.weight
    loss = ops.linear_cross_entropy(x.reshape(-1, x.shape[-1]), w, target, ignore_index, reduction, label_smoothing)
    # fp32 under autocast, as torch's
    return loss if autocast_enabled(x.device) else loss.to(logits.dtype)
