"""gptfast.explain tells the truth, after modules were replaced, and a forward put over a fast one outlives restore."""

from __future__ import annotations

import functools

import pytest
import torch
from cases import Scaled, T, V, assert_close, make, results
from torch import nn

import gptfast
from gptfast.drop_in.lazy import LazyLogits


def told(model) -> dict[str, str]:
    """What `explain` says of each part."""
    return dict(line.split(maxsplit=1) for line in gptfast.explain(model).splitlines()[1:])


FIRST = {  # the first block, and the names of its attention, its MLP, and the MLP's activation
    "hugging face": ("transformer.h.0", "attn", "mlp", "act"),
    "nanogpt": ("transformer.h.0", "attn", "mlp", "gelu"),
    "book": ("trf_blocks.0", "att", "ff", "layers.1"),
}


@pytest.mark.parametrize("name", FIRST)
def test_explain_tells_what_was_replaced_since(name):
    model, other = gptfast.accelerate(make(name)), make(name)
    block, _, mlp, activation = FIRST[name]
    head = "out_head" if name == "book" else "lm_head"
    assert all(line.startswith("fast") for line in told(model).values())
    setattr(model, head, nn.Linear(32, V, bias=False))
    replaced = model.get_submodule(f"{block}.{mlp}.{activation}".rsplit(".", 1)[0])
    setattr(replaced, activation.split(".")[-1], nn.GELU(approximate="tanh"))
    second = block.replace("0", "1")
    model.get_submodule(second.rsplit(".", 1)[0])[1] = other.get_submodule(block)
    said = told(model)
    for part in (head, second, f"{second}.{mlp}"):
        assert said[part].startswith("own forward: it came into the model since; call gptfast.accelerate(model) again")
    assert said[f"{block}.{mlp}"].startswith("own forward: something in it was replaced since")
    assert said[block].startswith("fast")
    idx = torch.randint(V, (2, T))
    got = results(model, idx)[0]
    assert all(line.startswith("fast") for line in told(gptfast.accelerate(model)).values())
    assert_close(results(model, idx)[0], got)
    assert_close(results(gptfast.restore(model), idx)[0], got)


def test_explain_tells_of_attention_that_was_set_or_replaced_since():
    model = gptfast.accelerate(make("hugging face"))
    model.set_attn_implementation("sdpa")
    assert told(model)["transformer"].startswith("own attention: it was set to 'sdpa' since")
    gptfast.accelerate(model)
    model.transformer.h[1].attn = Passing(model.transformer.h[1].attn)
    assert told(model)["transformer.h.1.attn"] == "own forward: it is no GPT2Attention of transformers"
    assert told(model)["transformer"].startswith("fast")


class Passing(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_explain_names_the_package_of_what_only_has_the_name():
    cls = type("Linear", (Scaled,), {"__module__": "lora.layers"})
    model = gptfast.accelerate(make("hugging face"))
    model.lm_head = cls(model.lm_head)
    assert told(model)["lm_head"] == "own forward: it is lora's Linear, not a Linear without bias"


@pytest.mark.parametrize("name", FIRST)
def test_a_forward_that_was_put_over_a_fast_one_outlives_restore(name):
    """... and calls the model's own then, as if the model had never been accelerated."""
    model, idx = make(name), torch.randint(V, (2, T))
    want = results(model, idx)[0]
    gptfast.accelerate(model)
    block, attention, mlp, _ = FIRST[name]
    parts = [block, f"{block}.{mlp}", "out_head" if name == "book" else "lm_head"]
    parts += [] if name == "hugging face" else [f"{block}.{attention}"]  # whose attention has no forward of ours
    calls = []

    def watched(part):
        module = model.get_submodule(part)
        forward = module.forward

        @functools.wraps(forward)
        def wrapper(*args, **kwargs):
            calls.append(part)
            return forward(*args, **kwargs)

        module.forward = wrapper

    for part in parts:
        watched(part)
    lazy = results(model, idx)
    assert isinstance(lazy[1], LazyLogits) and set(calls) == set(parts)
    assert_close(lazy[0], want)
    said = told(model)
    assert all(said[part].endswith("if the forward that was put over it since calls it") for part in parts)
    gptfast.restore(model)
    calls.clear()
    got, logits = results(model, idx)
    assert type(logits) is torch.Tensor and set(calls) == set(parts)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))  # the same code, the same bits
    said = told(gptfast.accelerate(model))
    assert all("a forward of its own" in said[part] for part in parts)
    assert_close(results(model, idx)[0], want)
