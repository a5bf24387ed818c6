"""Small models of every family, what each computes, and a layer that stands in for another."""

from __future__ import annotations

import pytest
import torch
from other_models import BOOK, BookGPT, NanoConfig, NanoGPT
from torch import nn
from torch.nn import functional as F

transformers = pytest.importorskip("transformers")
V, T = 101, 20


def hugging_face(cls="GPT2LMHeadModel", **settings):
    defaults = {
        "vocab_size": V, "n_positions": 64, "n_layer": 2, "n_head": 2, "n_embd": 32, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    return getattr(transformers, cls)(transformers.GPT2Config(**{**defaults, **settings}))


MAKERS = {
    "hugging face": hugging_face,
    "nanogpt": lambda: NanoGPT(NanoConfig()),
    "nanogpt, no biases": lambda: NanoGPT(NanoConfig(bias=False)),
    "book": lambda: BookGPT(BOOK),
    "book, qkv biases": lambda: BookGPT(BOOK | {"qkv_bias": True}),
    "book, fast": lambda: BookGPT(BOOK, fast=True),
}


def make(name):
    torch.manual_seed(0)
    model = MAKERS[name]()
    for parameter in model.parameters():  # ones and zeros would hide a mistake
        nn.init.normal_(parameter, std=0.2)
    return model


def loss_of(model, idx):
    """The loss as each model's users take it, and the logits."""
    targets = idx.clone()
    targets[0, :3] = -1 if isinstance(model, NanoGPT) else -100
    if isinstance(model, NanoGPT):
        logits, loss = model(idx, targets)
    elif isinstance(model, BookGPT):
        logits = model(idx)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    else:
        output = model(idx, labels=targets)
        logits, loss = output.logits, output.loss
    return loss, logits


def results(model, idx):
    model.zero_grad()
    loss, logits = loss_of(model, idx)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())], logits


def assert_close(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return 0.5 * self.inner(x)


def replaced(model, names):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in names and hasattr(child, "weight"):
                module._modules[name] = Scaled(child)
