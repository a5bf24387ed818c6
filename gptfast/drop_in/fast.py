"""The fast forwards: each stands in for one module's own and runs that where anything is not as it should be.

A `Fast` is what `module.forward` is set to. It holds the module and a few names, so that it is copied, pickled and
saved with the module; the class, the children, the parameters and their names stay what they are.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..modules import untouched
from .lazy import lazy_logits
from .parts import is_conv1d, is_linear, weight_and_bias

# Where the residual addition and the LayerNorm are two kernels all the same, and a block's own forward does as well.
SEPARATE = {"cpu"}


class Fast:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def child(self, path: str) -> nn.Module:
        """nn.Module.get_submodule without its checks, which take as long as a small kernel."""
        module: Any = self.module
        for name in path.split("."):
            module = module._modules[name]
        return module

    def slow(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        return type(self.module).forward(self.module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(type(self.module).forward)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Restored(Fast):
    """What a fast forward becomes where a forward that was put over it outlives `restore` and still calls it."""

    __call__ = Fast.slow


class FastMLP(Fast):
    """Linear, GELU, Linear, dropout: the bias of the first goes with the GELU."""

    def __init__(self, module: nn.Module, names: tuple[str, str, str, str | None], kind: str) -> None:
        super().__init__(module)
        self.names, self.kind = names, kind
        self.activation = self.child(names[1])

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        fc, activation, projection = (self.child(name) for name in self.names[:3])
        plain = (is_linear(fc) or is_conv1d(fc)) and untouched(fc) and not args and not kwargs
        if not plain or activation is not self.activation or not untouched(activation):
            return self.slow(x, *args, **kwargs)
        out = projection(ops.linear_gelu(x, *weight_and_bias(fc), self.kind))
        return out if self.names[3] is None else self.child(self.names[3])(out)


class FastAttention(Fast):
    """Causal self-attention of x [B, T, C] with one projection for q, k and v, or three, and one after it.

    `qkv` and `out` are names of children; `dropout` (of the probabilities) that of a child or a number; `after` that of
    the dropout at the end.
    """

    def __init__(
        self, module: nn.Module, qkv: tuple[str, ...], out: str, heads: int, dropout: str | None, after: str | None
    ) -> None:
        super().__init__(module)
        self.qkv, self.out, self.heads, self.dropout, self.after = qkv, out, heads, dropout, after

    def probability(self) -> float | None:
        """Of the dropout of probabilities as it is now; None where it is no longer a dropout."""
        if self.dropout is None:
            return 0.0
        p = self.module.__dict__.get(self.dropout)
        if isinstance(p, (int, float)):
            return p if self.module.training else 0.0
        dropout = self.module._modules.get(self.dropout)
        if type(dropout) is nn.Dropout and untouched(dropout):
            return dropout.p if dropout.training else 0.0
        return 0.0 if type(dropout) is nn.Identity else None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        p = self.probability()
        if p is None or args or kwargs or x.dim() != 3 or not x.numel():
            return self.slow(x, *args, **kwargs)
        B, T, _ = x.shape
        q, *rest = (self.child(name)(x) for name in self.qkv)
        if rest:
            heads = (y.view(B, T, self.heads, -1) for y in (q, *rest))
            y = ops.causal_attention(*heads, dropout_p=p)
        else:
            y = ops.causal_attention_qkvpacked(q.view(B, T, 3, self.heads, -1), dropout_p=p)
        y = self.child(self.out)(y.reshape(B, T, -1))
        return y if self.after is None else self.child(self.after)(y)


class FastBlock(Fast):
    """x + attention(norm(x)), and of that s the same with the MLP: s and the second norm come from one kernel.

    `names` are those of the first norm, the attention, the second norm, the MLP and the dropout of both, if it is the
    block's; `norm` holds the second norm's weight and bias names and its eps.
    """

    def __init__(
        self, module: nn.Module, names: tuple[str, str, str, str, str | None], norm: tuple[str, str | None, float]
    ) -> None:
        super().__init__(module)
        self.names, self.norm = names, norm
        self.norm_module = self.child(names[2])

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What the attention gets beside x; None where the block is asked for what this forward does not do."""
        return None if args or kwargs else {}

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.slow(x, *args, **kwargs) if x.device.type in SEPARATE else self.fused(x, *args, **kwargs)

    def fused(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        norm = self.child(self.names[2])
        arguments = self.arguments(args, kwargs)
        if arguments is None or norm is not self.norm_module or not untouched(norm):
            return self.slow(x, *args, **kwargs)
        branch = self.child(self.names[1])(self.child(self.names[0])(x), **arguments)
        if isinstance(branch, tuple):  # transformers' returns its weights too, or None
            branch = branch[0]
        drop = None if self.names[4] is None else self.child(self.names[4])
        p = 0.0
        if drop is not None and type(drop) is nn.Dropout and untouched(drop):
            p = drop.p if drop.training else 0.0
        elif drop is not None:
            branch = drop(branch)
        weight, bias, eps = self.norm
        eps = getattr(norm, "eps", eps)
        y, s = ops.add_layer_norm(
            branch, x, getattr(norm, weight), None if bias is None else getattr(norm, bias), eps, p
        )
        y = self.child(self.names[3])(y)
        return s + (y if drop is None else drop(y))


class FastGPT2Block(FastBlock):
    """transformers' block, whose attention gets the caches and masks that the block is called with."""

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        names = _names(type(self.module).forward)
        found = {**dict(zip(names, args, strict=False)), **kwargs}
        if found.pop("encoder_hidden_states", None) is not None or found.get("output_attentions"):
            return None
        found.pop("encoder_attention_mask", None)
        return found

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(x, *args, **kwargs)
        return (out,) if _before_5() and not isinstance(out, tuple) else out


@functools.cache
def _names(forward: Any) -> tuple[str, ...]:
    """Of its arguments after self and the hidden states, in their order."""
    return tuple(inspect.signature(forward).parameters)[2:]


@functools.cache
def _before_5() -> bool:
    """Whether transformers' blocks return a tuple."""
    import transformers

    return int(transformers.__version__.split(".")[0]) < 5


class FastHead(Fast):
    """A Linear without bias from hidden states to logits, which become the loss without being made (lazy.py)."""

    def __call__(self, x: Tensor) -> Any:
        weight: Any = self.module.weight
        wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        watched = (
            torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or torch._C._functorch.peek_interpreter_stack() is not None
        )
        if not wanted or watched or type(weight) is not nn.Parameter or type(x) is not Tensor:
            return self.slow(x)
        return lazy_logits(x, weight)
