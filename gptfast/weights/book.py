"""The layout of GPTModel in Raschka's *Build a Large Language Model (From Scratch)*: separate query, key and value,
LayerNorms with scale and shift, a head that is not tied, and a causal mask in every block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import GPTConfig
from ..errors import GptfastError
from ..model import GPT
from .layout import Layout, checked_config, export
from .nanogpt import check_alike

_NAMES = {
    "wte.weight": "tok_emb.weight", "wpe.weight": "pos_emb.weight", "lm_head.weight": "out_head.weight",
    "ln_f.weight": "final_norm.scale", "ln_f.bias": "final_norm.shift",
    "ln_1.weight": "norm1.scale", "ln_1.bias": "norm1.shift", "ln_2.weight": "norm2.scale", "ln_2.bias": "norm2.shift",
    "attn.c_proj.weight": "att.out_proj.weight", "attn.c_proj.bias": "att.out_proj.bias",
    "mlp.c_fc.weight": "ff.layers.0.weight", "mlp.c_fc.bias": "ff.layers.0.bias",
    "mlp.c_proj.weight": "ff.layers.2.weight", "mlp.c_proj.bias": "ff.layers.2.bias",
}  # fmt: skip


def _parts(name: str) -> tuple[str, ...]:
    block = re.match(r"h\.(\d+)\.", name)
    prefix = f"trf_blocks.{block[1]}." if block else ""
    rest = name[block.end() :] if block else name
    if rest.startswith("attn.c_attn."):
        return tuple(f"{prefix}att.W_{which}.{rest.split('.')[2]}" for which in ("query", "key", "value"))
    return (prefix + _NAMES[rest],)


LAYOUT = Layout("the book's GPTModel", _parts, False, re.compile(r"^trf_blocks\.\d+\.att\.mask$"))

_CFG = {
    "vocab_size": "vocab_size", "context_length": "context_length", "emb_dim": "n_embd", "n_heads": "n_head",
    "n_layers": "n_layer", "drop_rate": "dropout", "qkv_bias": "qkv_bias",
}  # fmt: skip


def config_of(cfg: Mapping[str, Any]) -> GPTConfig:
    """The configuration that the book's cfg dictionary describes; whether the head is tied, the weights show."""
    missing = [name for name in _CFG if name not in cfg and name != "drop_rate"]
    if missing:
        raise GptfastError(f"the book's cfg does not say {', '.join(missing)}")
    return checked_config("the book's cfg", **{ours: cfg[name] for name, ours in _CFG.items() if name in cfg})


def to_book(model: GPT) -> dict[str, Tensor]:
    """A state dict for the book's GPTModel, its causal masks included, so that it loads strictly."""
    check_alike(model.config, "the book's GPTModel", LAYOUT.activation)
    state = export(model, LAYOUT, biases=True)
    if not (model.config.bias and model.config.qkv_bias):
        state = {name: t for name, t in state.items() if not re.search(r"\.W_(query|key|value)\.bias$", name)}
    mask = torch.triu(torch.ones(model.config.context_length, model.config.context_length), diagonal=1)
    return state | {f"trf_blocks.{i}.att.mask": mask for i in range(model.config.n_layer)}
