"""Operations of a GPT block as fused Triton kernels, and in `reference` as plain PyTorch, which defines them.

Names load on first use: `reference` needs no Triton. On tensors of a CPU the kernels run only in Triton's interpreter
(TRITON_INTERPRET=1, set before Python starts); `gptfast.ops` picks what runs where.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import reference
    from .activation import bias_gelu, gelu
    from .attention import causal_attention, causal_attention_qkvpacked
    from .decode import decode_attention
    from .embed import embedding
    from .linear_loss import linear_cross_entropy
    from .loss import cross_entropy
    from .norm import add_layer_norm, layer_norm
    from .reference import document_bounds

# Modules have other names than the functions they hold, which importing them would hide.
_HOME = {
    "add_layer_norm": "norm",
    "bias_gelu": "activation",
    "causal_attention": "attention",
    "causal_attention_qkvpacked": "attention",
    "cross_entropy": "loss",
    "decode_attention": "decode",
    "document_bounds": "reference",
    "embedding": "embed",
    "gelu": "activation",
    "layer_norm": "norm",
    "linear_cross_entropy": "linear_loss",
}

__all__ = [
    "add_layer_norm", "bias_gelu", "causal_attention", "causal_attention_qkvpacked", "cross_entropy",
    "decode_attention", "document_bounds", "embedding", "gelu", "layer_norm", "linear_cross_entropy", "reference",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "reference":
        return importlib.import_module(".reference", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ImportError(
            f"gptfast.kernels.{name} needs Triton: pip install triton (Linux); gptfast.ops.{name} runs without it"
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
