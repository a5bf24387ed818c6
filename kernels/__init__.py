"""Operations of a GPT block as fused Triton kernels, and in `reference` as plain PyTorch, which defines them.

Names load on first use: `reference` needs no Triton. On tensors of a CPU the kernels run only in Triton's interpreter
(TRITON_INTERPRET=1, set before Python starts); `gptfast.ops` picks what runs where.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import reference
    from .attention import causal_attention, causal_attention_qkvpacked
    from .decode import decode_attention
    from .reference import document_bounds

_HOME = {
    "causal_attention": "attention",
    "causal_attention_qkvpacked": "attention",
    "decode_attention": "decode",
    "document_bounds": "reference",
}

__all__ = ["causal_attention", "causal_attention_qkvpacked", "decode_attention", "document_bounds", "reference"]


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
