"""One description of an operation, and the two ways it is called.

As a registered torch operator for everything that traces or watches (torch.compile, export, dispatch modes); as a plain
function, or an autograd function where a gradient is wanted, for eager calls, which the dispatcher would cost more than
a small kernel takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def autocast_enabled(device: torch.device) -> bool:
    """Also on devices that have no autocast, meta say."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, enabled=False) if autocast_enabled(device) else nullcontext()


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants them; what is not a tensor is left for the checks to name."""
    if not all(isinstance(x, Tensor) for x in tensors) or not autocast_enabled(tensors[0].device):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors)


def plain(*tensors: Tensor) -> bool:
    """Whether nothing watches the call, so that an autograd function will do without the dispatcher's overhead.

    Raises NotImplementedError inside torch.func.grad and jvp, and for tensors with a tangent: neither a registered
    operator nor an autograd function says so itself where it would give zeros.
    """
    if torch.compiler.is_compiling():
        return False
    interpreter = torch._C._functorch.peek_interpreter_stack()
    transforms = torch._C._functorch.TransformType
    dual = forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)
    if dual or (interpreter is not None and interpreter.key() in (transforms.Grad, transforms.Jvp)):
        raise NotImplementedError(
            "torch.func.grad, vjp, jvp and forward-mode derivatives do not go through gptfast's operators; "
            "gptfast.kernels.reference has functions that they go through"
        )
    return (
        interpreter is None
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that raises under create_graph: it has no derivative, and what it returns would count as constant.

    torch's once_differentiable raises later, and not at all where the gradient that comes in is a constant, or where
    torch.autograd.grad asks for inputs that it does not find behind it.
    """

    @functools.wraps(backward)
    def only(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "gptfast's operators have no second derivative, which create_graph=True asks for; "
                "those of gptfast.kernels.reference have"
            )
        return backward(ctx, *gradients)

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
