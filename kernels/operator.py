"""One description of an operation, and the two ways it is called.

As a registered torch operator for everything that traces or watches (torch.compile, export, dispatch modes); as a plain
function, or an autograd function where a gradient is wanted, for eager calls, which the dispatcher would cost more than
a small kernel takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants them; what is not a tensor is left for the checks to name."""
    if not all(isinstance(x, Tensor) for x in tensors) or not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors)


def plain(*tensors: Tensor) -> bool:
    """Whether nothing watches the call, so that an autograd function will do without the dispatcher's overhead."""
    return (
        not torch.compiler.is_compiling()
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose own derivative raises. Under torch's once_differentiable it is taken for a constant, without a
    word, where the gradient that comes in is one.
    """

    @functools.wraps(backward)
    def only(ctx: Any, *gradients: Any) -> Any:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return backward(ctx, *gradients)
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        message = "gptfast's operators have no second derivative; those of gptfast.kernels.reference have"
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [x if x is None else x.detach().requires_grad_() for x in outputs]
        return torch._C._functions.DelayedError(message.encode(), len(outputs))(*outputs)

    return only


class Operator:
    """torch.ops.gptfast.<name>: `run` makes the outputs, `fake` their shapes, `backward` the gradients of `run`'s
    arguments from what `save` kept, as for torch.autograd.Function; without `backward` it has no gradient.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        self.run = run
        self.function: Any = None
        operator = torch.library.custom_op(f"gptfast::{name}", run, mutates_args=())
        operator.register_fake(fake)
        if backward is not None:
            once = first_derivative(backward)
            operator.register_autograd(once, setup_context=save)
            methods: dict[str, Any] = {"forward": run, "setup_context": save, "backward": once}
            self.function = type(name, (torch.autograd.Function,), {key: staticmethod(f) for key, f in methods.items()})
        self.registered = getattr(torch.ops.gptfast, name)

    def __call__(self, *arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if not plain(*tensors):
            return self.registered(*arguments)
        if self.function is not None and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return self.function.apply(*arguments)
        return self.run(*arguments)
