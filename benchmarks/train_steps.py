"""A training step of each way to train that the benchmarks compare: a plain PyTorch GPT-2, and gptfast's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from plain_gpt import PlainGPT, plain_optimizer
from torch import nn

import gptfast
from gptfast.optim import adamw
from gptfast.precision import ComputeCopy

VOCAB = 50304
Size = tuple[int, int, int, int]  # layers, heads, width, context
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_step(size: Size, bf16: bool, compiled: bool, device: str = "cpu") -> Step:
    layers, heads, width, context = size
    model = PlainGPT(layers, heads, width, context, VOCAB).to(device)
    optimizer = plain_optimizer(model)
    run = torch.compile(model) if compiled else model

    def step(idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            loss = run(idx, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def gptfast_step(size: Size, compiled: bool, device: str = "cpu") -> Step:
    layers, heads, width, context = size
    config = gptfast.GPTConfig(VOCAB, context, layers, heads, width)
    copy = ComputeCopy(gptfast.GPT(config).to(device), torch.bfloat16)
    optimizer = adamw(copy.master, 6e-4)
    run = torch.compile(copy.model) if compiled else copy.model

    def step(idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        copy.clear_gradients()
        loss = run(idx, targets)
        loss.backward()
        copy.collect_gradients()
        nn.utils.clip_grad_norm_(copy.master.parameters(), 1.0)
        optimizer.step()
        copy.refresh()
        return loss.detach()

    return step
