"""The one place that decides what runs. Everything above calls these functions and knows no device.

Each has the signature of its namesake in `gptfast.kernels.reference`. ATen runs everywhere for now; a Triton kernel
takes its place here, by a measured table, as it comes.
"""

from __future__ import annotations

from .aten import causal_attention, embedding, gelu, layer_norm, linear_cross_entropy

__all__ = ["causal_attention", "embedding", "gelu", "layer_norm", "linear_cross_entropy"]
