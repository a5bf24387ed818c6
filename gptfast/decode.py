"""Rows of text that grow by a token at a time: what `GPT.generate`, the chat and the server run on.

A step is the same few hundred small operations each time, and reads every weight once: it costs memory bandwidth and
the way from one operation to the next. On a CPU csrc/gpt/step.cpp does all of them in one call; on a GPU they are
recorded once in a CUDA graph. What either does not know (a hook, an adapter, another dtype) runs as `GPT.step`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import extension
from .errors import GptfastError
from .model import GPT, MLP, Attention, Block, KVCache, LayerNorm, RowCache
from .modules import untouched

PLAIN = {GPT, Block, Attention, MLP, LayerNorm, nn.Embedding, nn.Linear, nn.ModuleList}


class Decoder:
    """`rows` texts on one cache of keys and values; each is begun by `prefill` and grown by `step`.

    The model must be in eval mode; its weights must stay where they are, and its modules what they are, as long as this
    lives. One thread at a time.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        if model.training:
            raise GptfastError("the model is in training mode; call model.eval() first")
        cache = KVCache.empty(model, rows)
        self.model, self.context = model, model.config.context_length
        self.device = cache.k.device
        self.lengths = [0] * rows  # tokens that each row holds
        self.stale = True  # cache.position does not follow from the last step
        self.cache = RowCache(cache.k, cache.v, torch.zeros(rows, dtype=torch.int64, device=self.device))
        self.cpu_step = _cpu_step(model)
        self.graph = _Graph(model, self.cache) if self.device.type == "cuda" and _plain(model) else None

    @torch.no_grad()
    def prefill(self, idx: Tensor, row: int = 0) -> Tensor:
        """Begin rows `row`, `row` + 1 ... anew with idx int64 [n, T]; logits [n, V] of what follows."""
        n, T = idx.shape
        rows = slice(row, row + n)
        x = self.model.hidden(idx, cache=KVCache(self.cache.k[:, rows], self.cache.v[:, rows]))
        self.lengths[rows] = [T] * n
        self.stale = True
        return self.model.lm_head(x[:, -1])

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Logits [n, V] after one more token int64 [n] of each of `rows`, by default all. On a GPU the tensor is
        written anew by the next step.
        """
        chosen = range(len(self.lengths)) if rows is None else rows
        full = [row for row in chosen if self.lengths[row] >= self.context]
        if full:
            raise GptfastError(f"row {full[0]} is full: it holds the model's whole context of {self.context} tokens")
        if self.cpu_step:
            logits = torch.empty(len(tokens), self.model.lm_head.out_features)
            k, v = self.cache.k, self.cache.v  # [L, rows, context, H, D]
            places = [self.lengths[row] for row in chosen]
            self.cpu_step.run(
                k.data_ptr(), v.data_ptr(), k.shape[1], tokens.tolist(), list(chosen), places, logits.data_ptr()
            )
        else:
            logits = self._whole_step(tokens, rows)
        for row in chosen:
            self.lengths[row] += 1
        return logits

    def _whole_step(self, tokens: Tensor, rows: Sequence[int] | None) -> Tensor:
        """A step of all rows; those that are not asked for are not advanced."""
        if self.stale:
            places = [min(length, self.context - 1) for length in self.lengths]
            self.cache.position.copy_(torch.tensor(places))
        self.stale = rows is not None
        run = self.graph.step if self.graph else lambda every: self.model.step(every, self.cache)
        if rows is None:
            return run(tokens)
        chosen = torch.tensor(rows, device=self.device)
        return run(tokens.new_zeros(len(self.lengths)).index_copy(0, chosen, tokens))[chosen]


class _Graph:
    """`GPT.step` on these rows as a CUDA graph."""

    def __init__(self, model: GPT, cache: RowCache) -> None:
        self.tokens = torch.zeros(len(cache.position), dtype=torch.int64, device=cache.position.device)
        side = torch.cuda.Stream(self.tokens.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            model.step(self.tokens, cache)  # compiles and allocates what the recording must not
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.logits = model.step(self.tokens, cache)

    def step(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits


_kept: weakref.WeakKeyDictionary[GPT, tuple[Any, Decoder]] = weakref.WeakKeyDictionary()


@contextmanager
def decoder_for(model: GPT, rows: int) -> Iterator[Decoder]:
    """A Decoder to use alone. On a GPU the model's last one is kept, with its cache of keys and values, and used again
    where it still holds: to record a graph takes as long as many tokens.
    """
    if next(model.parameters()).device.type != "cuda":
        yield Decoder(model, rows)
        return
    what = (rows, _plain(model), *((p.data_ptr(), p.dtype) for p in model.parameters()))
    kept = _kept.pop(model, None)
    decoder = kept[1] if kept and kept[0] == what else None
    del kept  # its memory, before the next one's
    decoder = decoder or Decoder(model, rows)
    yield decoder
    decoder.model = cast(GPT, weakref.proxy(model))  # what the dictionary holds must not hold its key
    _kept[model] = what, decoder


def _plain(model: GPT) -> bool:
    """Whether the model computes what its class says, in its weights' dtype, and nothing else."""
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return False
    return all(type(module) in PLAIN and untouched(module) for module in model.modules())


def _cpu_step(model: GPT) -> Any:
    """The step of csrc/gpt for this model, where it computes the same; else None."""
    core, weights = extension.core(), list(model.parameters())
    kind = weights[0].dtype
    fits = all(w.device.type == "cpu" and w.dtype == kind and w.is_contiguous() for w in weights)
    plain = _plain(model) and all(type(w) is nn.Parameter for w in weights)
    if core is None or not fits or not plain or kind not in (torch.float32, torch.bfloat16):
        return None
    if model.lm_head.bias is not None or len(model.wte.weight) != len(model.lm_head.weight):
        return None

    def addresses(*modules: nn.Module) -> list[int]:
        pairs = [(module.weight, module.bias) for module in modules]
        return [0 if w is None else w.data_ptr() for pair in pairs for w in pair]

    c = model.config
    return core.GptStep(
        bfloat16=kind == torch.bfloat16, exact_gelu=c.activation == "gelu", eps=c.layer_norm_eps,
        vocab=len(model.wte.weight), context=c.context_length, heads=c.n_head, width=c.n_embd, hidden=4 * c.n_embd,
        outer=[model.wte.weight.data_ptr(), model.wpe.weight.data_ptr(), *addresses(model.ln_f, model.lm_head)[:3]],
        blocks=[addresses(b.ln_1, b.attn.c_attn, b.attn.c_proj, b.ln_2, b.mlp.c_fc, b.mlp.c_proj) for b in model.h],
        windows=[window or 0 for window in c.windows], threads=torch.get_num_threads(),
    )  # fmt: skip
