"""What the fast paths ask of a module before they compute in its stead.

A module is taken for what it looks like only if nothing was done to it: it has the class it should have, no hooks, no
forward of its own. What its code computes (which GELU, which eps) is found by asking it: a probe of a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modules import untouched


def is_linear(module: nn.Module | None) -> bool:
    return type(module) is nn.Linear


def is_conv1d(module: nn.Module | None) -> bool:
    """transformers' Conv1D, a Linear whose weight is [in, out]."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Of a Linear or Conv1D, the weight as [out, in]."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (weight.T if is_conv1d(module) else weight), module.bias  # type: ignore[return-value]


@torch.no_grad()
def gelu_kind(module: nn.Module) -> str | None:
    """ "tanh" or "none" for a module that computes that form of GELU, None for any other."""
    if not untouched(module) or any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    try:
        y = module(x)
    except Exception:
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    for kind in ("tanh", "none"):
        if torch.allclose(y, F.gelu(x, approximate=kind), rtol=1e-5, atol=1e-6):
            return kind
    return None


@torch.no_grad()
def norm_parts(module: nn.Module) -> tuple[str, str | None, float] | None:
    """The names of a LayerNorm's weight and bias, and its eps; None for what is no LayerNorm of the last dimension."""
    if not untouched(module):
        return None
    for weight_name, bias_name in (("weight", "bias"), ("scale", "shift")):
        weight, bias = getattr(module, weight_name, None), getattr(module, bias_name, None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and weight.device.type != "meta":
            break
    else:
        return None
    if set(dict(module.named_parameters())) - {weight_name, bias_name} or list(module.children()):
        return None
    x = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    x[1] *= 1e-3  # where eps tells
    x += 1  # an RMSNorm leaves it
    eps = getattr(module, "eps", 1e-5)
    try:
        y = module(x)
    except Exception:
        return None
    if not isinstance(eps, float) or not isinstance(y, Tensor):
        return None
    tolerance = 1e-4 if weight.dtype == torch.float32 else 5e-2
    want = F.layer_norm(x.double(), weight.shape, weight.double(), None if bias is None else bias.double(), eps)
    if not torch.allclose(y.double(), want, rtol=tolerance, atol=tolerance):
        return None
    return weight_name, bias_name if bias is not None else None, eps


LONGEST = 512  # positions of a probe of attention: a window in its code that is wider is not seen


def fingerprint(module: nn.Module) -> Any:
    """Equal for modules whose code does the same, as far as their classes and plain attributes tell."""

    def plain(value: Any) -> bool:
        return value is None or isinstance(value, (bool, int, float, str, tuple))

    return tuple(
        (name, type(child), tuple(sorted((k, repr(v)) for k, v in vars(child).items() if k != "training" and plain(v))))
        for name, child in module.named_modules()
    )


def masks_are_causal(module: nn.Module) -> bool:
    """Whether every square buffer hides the future and nothing else: a mask, as the book and nanoGPT keep one."""
    for buffer in module.buffers():
        if buffer.dim() >= 2 and buffer.shape[-1] == buffer.shape[-2]:
            one = buffer.reshape(-1, *buffer.shape[-2:]).bool()
            future = torch.ones_like(one).triu(1)
            if not torch.equal(one, future) and not torch.equal(one, ~future):
                return False
    return True


@torch.no_grad()
def computes_the_same(module: nn.Module, fast: Callable[[Tensor], Any], positions: int) -> bool:
    """Whether `fast` gives what the module's own forward gives for random numbers, without dropout."""
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.device.type == "meta" or parameter.dim() == 0 or not masks_are_causal(module):
        return False
    width = next((p.shape[-1] for p in module.parameters() if p.dim() == 2), parameter.shape[-1])
    T = min([positions, *(b.shape[-1] for b in module.buffers() if b.dim() >= 2)])
    x = torch.randn(1, T, width, generator=torch.Generator().manual_seed(0)).to(parameter.device, parameter.dtype)
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        own, ours = module(x), fast(x)
        if not isinstance(own, Tensor) or not isinstance(ours, Tensor) or own.shape != ours.shape:
            return False
        tolerance = 1e-3 if parameter.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((own - ours).abs().max() <= tolerance * own.abs().max())
    except Exception:  # whatever its own code, or ours, says to three-dimensional random numbers
        return False
    finally:
        for child, mode in modes:
            child.training = mode
