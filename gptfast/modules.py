"""What is asked of a module before something else computes in its stead."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def untouched(module: nn.Module) -> bool:
    """Whether calling it runs its class's forward and nothing else: no hooks, no forward of its own."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )
