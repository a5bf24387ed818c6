"""A model from tensors in files: allocated once, each tensor copied straight to its place."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import nn

from ..config import GPTConfig
from ..errors import GptfastError
from ..model import GPT
from .layout import empty_model
from .tensors import Stored, Tensors


def common_dtype(tensors: Tensors) -> torch.dtype:
    """The smallest type that holds every number of `tensors`: of bf16 and fp16 that is fp32."""
    return functools.reduce(torch.promote_types, (stored.dtype for stored in tensors.values()))


def equal(a: Stored, b: Stored) -> bool:
    """Whether two tensors hold the same numbers, whatever their types."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return torch.equal(a.read(), b.read())
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    return torch.equal(a.read().to(wide), b.read().to(wide))


def build(tensors: Tensors, config: GPTConfig, where: str) -> GPT:
    """A GPT that owns copies of `tensors`, which are named and shaped as its parameters, in the type they have; where
    they have several, in the smallest that holds all of them, so that no bit is lost and one type comes out.

    The head is tied where the configuration says so and the file has none of its own or one that is equal bit for bit.
    """
    dtype = common_dtype(tensors)
    tensors = dict(tensors)
    head = tensors.get("lm_head.weight")
    tie = config.tie_weights
    if head is None or (tie and equal(head, tensors["wte.weight"])):
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
        parameter = torch.empty(stored.shape, dtype=dtype)
        try:
            parameter.copy_(stored.read())
        except (RuntimeError, NotImplementedError, AssertionError) as error:  # a kind of tensor that is none of ours
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise GptfastError(f"{where}: {name} cannot be copied ({reason})") from error
        module, _, leaf = name.rpartition(".")
        setattr(modules[module], leaf, nn.Parameter(parameter))
    if tie:
        model.lm_head.weight = model.wte.weight
    return model
