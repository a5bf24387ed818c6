"""Generation: GPT.generate beside transformers' generate; on a GPU also the prefill, a forward of a whole prompt.

GPT-2 124M with random weights, the same in all forms. `eager` generates with the same modules in a plain loop around a
cache of keys and values (neither the C++ step nor a CUDA graph), and prefills with PyTorch's own operators. A step
reads every weight once: the share is of the rate at which this machine reads memory, which a batch of one cannot pass.
In fp32 a greedy text must be transformers', id for id.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptfast import GPT, GPTConfig
from gptfast.model import KVCache
from gptfast.weights.huggingface import config_values, to_hf

from .suite import Case, Setup, forward

PROMPT = 32  # tokens
# Rows of a batch up to which ids are compared: of thousands of choices one is within rounding of another too often.
COMPARED = 8


def cases(setup: Setup) -> Iterator[Case]:
    batches, new = setup.size(((1, 8, 64), 128), ((1, 8), 64), ((2,), 8))
    if setup.quick and not setup.dry:  # transformers takes a second or more for 64 tokens, eight times a case
        batches, new = ((1, 64), 64) if setup.on_gpu else ((1,), 32)
    for dtype in (torch.bfloat16, torch.float32):
        models = Models(setup, dtype)
        for B in batches[:1] if setup.quick and dtype == torch.float32 else batches:
            yield generation(setup, models, B, new)
            if dtype == torch.bfloat16 and (B == batches[0] or not setup.quick):
                yield generation(setup, models, B, new, top_k=50)
        for B in setup.size((1, 8), (), (2,)):
            yield prefill(setup, models, B, setup.size(1024, 0, 16))
    if setup.on_gpu and setup.peers and importlib.util.find_spec("transformers"):
        models = Models(setup, torch.bfloat16)
        for B in batches:  # last, since it compiles for a minute for each
            yield generation(setup, models, B, new, compiled=True)


class Models:
    """gptfast's model and transformers' with the same random weights, each made when it is asked for."""

    def __init__(self, setup: Setup, dtype: torch.dtype) -> None:
        self.device, self.dtype = setup.device, dtype
        self.config = GPTConfig.preset(setup.size("gpt2", "gpt2", "tiny"))

    @functools.cached_property
    def gptfast(self) -> GPT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = GPT(self.config)
        with torch.no_grad():
            for matrix in (p for p in model.h.parameters() if p.dim() == 2):
                matrix.mul_(2)  # else a greedy text repeats one token, whatever attention does
        return model.to(self.device, self.dtype).eval()

    @functools.cached_property
    def transformers(self) -> Any:
        import transformers

        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config_values(self.config)))
        model.load_state_dict(to_hf(self.gptfast), strict=False)  # its head is the embedding, by another name
        model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
        return model.to(self.device, self.dtype).eval()

    @functools.cached_property
    def exact(self) -> GPT:
        return copy.deepcopy(self.gptfast).float()

    def inputs(self, B: int, T: int) -> Callable[[], tuple[Any, ...]]:
        """The same texts in every run: a choice within rounding of another is then met by every run or by none."""
        seeds = itertools.count()

        def draw() -> tuple[Any, ...]:
            generator = torch.Generator().manual_seed(next(seeds))
            return torch.randint(self.config.vocab_size, (B, T), generator=generator).to(self.device), None

        return draw


def generation(
    setup: Setup, models: Models, B: int, new: int, top_k: int | None = None, compiled: bool = False
) -> Case:
    """Greedy, or drawn from the `top_k` likeliest; `compiled`: beside transformers' compiled step alone."""
    sampled = top_k is not None

    def ours(idx: Tensor) -> Tensor:
        return models.gptfast.generate(idx, new, temperature=1.0 if sampled else 0.0, top_k=top_k)

    def theirs(idx: Tensor, **more: Any) -> Tensor:
        how = {"do_sample": True, "top_k": top_k, **more} if sampled else {"do_sample": False, **more}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return models.transformers.generate(
                idx, max_new_tokens=new, min_new_tokens=new, attention_mask=torch.ones_like(idx), **how
            )

    forms: dict[str, Callable[..., Any]] = {"gptfast": ours}
    if not sampled:
        forms["eager"] = lambda idx: in_a_loop(models.gptfast, idx, new)
    found = importlib.util.find_spec("transformers") is not None
    if setup.peers and found:
        forms["transformers"] = theirs
    if compiled:  # transformers compiles the step itself where the cache has a fixed size
        forms = {"gptfast": ours, "transformers compiled": lambda idx: theirs(idx, cache_implementation="static")}
    config = models.config
    shape = f"{config.n_layer} layers of {config.n_embd}, B={B}, {PROMPT} + {new} tokens"
    weights = number_of_weights(config) * models.dtype.itemsize
    compared = found and not sampled and models.dtype == torch.float32 and B <= COMPARED
    name = f"generate, top-k {top_k}" if sampled else "generate, compiled" if compiled else "generate"
    return Case(
        "decode", name, shape, str(models.dtype).removeprefix("torch."),
        models.inputs(B, PROMPT), {name: forward(form) for name, form in forms.items()}, work=B * new, unit="tokens/s",
        of="read", need=new * weights, reference=(lambda idx, _: theirs(idx)) if compared else None,
    )  # fmt: skip


def in_a_loop(model: GPT, idx: Tensor, new: int) -> Tensor:
    cache, tokens = KVCache.empty(model, len(idx)), [idx]
    for _ in range(new):
        logits = model.lm_head(model.hidden(tokens[-1], cache=cache)[:, -1])
        tokens.append(logits.argmax(-1, keepdim=True))
    return torch.cat(tokens, dim=1)


def number_of_weights(config: GPTConfig) -> int:
    """Of those that a step reads: all but the table of positions."""
    C = config.n_embd
    return config.n_layer * (12 * C * C + 13 * C) + 2 * C + config.vocab_size * C


def prefill(setup: Setup, models: Models, B: int, T: int) -> Case:
    """Logits of the last token [B, V]."""
    config = models.config

    def ours(idx: Tensor) -> Tensor:
        return models.gptfast.lm_head(models.gptfast.hidden(idx)[:, -1])

    forms: dict[str, Callable[..., Any]] = {"gptfast": ours, "eager": lambda idx: plain(models.gptfast, idx)}
    if setup.peers and importlib.util.find_spec("transformers"):
        forms["transformers"] = lambda idx: models.transformers(idx, logits_to_keep=1).logits[:, -1]
    C, V = config.n_embd, config.vocab_size
    flops = B * config.n_layer * (24 * T * C * C + 2 * T * T * C) + 2 * B * V * C  # half of attention is masked

    def reference(idx: Tensor, _: None) -> Tensor:
        with torch.no_grad():
            return plain(models.exact, idx)

    return Case(
        "decode", "prefill", f"{config.n_layer} layers of {C}, B={B} T={T}", str(models.dtype).removeprefix("torch."),
        models.inputs(B, T), {name: forward(form) for name, form in forms.items()}, work=B * T, unit="tokens/s",
        of="matmul bf16" if models.dtype == torch.bfloat16 else "matmul fp32", need=flops, reference=reference,
        yardstick="eager",
    )  # fmt: skip


def plain(model: GPT, idx: Tensor) -> Tensor:
    """Logits of the last token [B, V] in PyTorch's own operators, as nanoGPT computes them."""

    def norm(layer: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)

    x = model.wte(idx) + model.wpe.weight[: idx.shape[1]]
    for block in model.h:
        attention: Any = block.attn
        qkv = attention.c_attn(norm(block.ln_1, x)).unflatten(-1, (3, attention.heads, -1))
        q, k, v = (z.transpose(1, 2) for z in qkv.unbind(2))  # [B, H, T, D]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention.c_proj(y.transpose(1, 2).flatten(2))
        mlp: Any = block.mlp
        x = x + mlp.c_proj(F.gelu(mlp.c_fc(norm(block.ln_2, x)), approximate="tanh"))
    return model.lm_head(norm(model.ln_f, x[:, -1]))
