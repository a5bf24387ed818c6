"""A model from tensors in files: allocated once, each tensor copied straight to its place."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..config import GPTConfig
from ..errors import GptfastError
from ..model import GPT
from .layout import empty_model
from .tensors import Tensors


def build(tensors: Tensors, config: GPTConfig, where: str) -> GPT:
    """A GPT that owns copies of `tensors`, which are named and shaped as its parameters, in the types they have.

    The head is tied where the configuration says so and the file has none of its own or one that is equal bit for bit.
    """
    for name, stored in tensors.items():
        if not stored.dtype.is_floating_point:
            raise GptfastError(f"{where} holds {name} as {str(stored.dtype).removeprefix('torch.')}, not as weights")
    tensors = dict(tensors)
    head = tensors.get("lm_head.weight")
    tie = config.tie_weights
    if head is None or (tie and torch.equal(head.read(), tensors["wte.weight"].read())):
        tensors.pop("lm_head.weight", None)
        tie = True
    else:
        tie = False
    if head is None and not config.tie_weights:
        raise GptfastError(f"{where} has no head of its own (lm_head.weight), but the configuration does not tie it")
    if tie != config.tie_weights:
        config = replace(config, tie_weights=tie)
    model = empty_model(config)
    modules = dict(model.named_modules())
    # The largest first: what a mapping adds to the memory is then least when most of the model is there.
    for name, stored in sorted(tensors.items(), key=lambda item: -torch.Size(item[1].shape).numel()):
        parameter = torch.empty(stored.shape, dtype=stored.dtype)
        parameter.copy_(stored.read())
        module, _, leaf = name.rpartition(".")
        setattr(modules[module], leaf, nn.Parameter(parameter))
    if tie:
        model.lm_head.weight = model.wte.weight
    return model
