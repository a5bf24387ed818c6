"""Rows of text that grow by a token at a time: what `GPT.generate`, the chat and the server run on.

A step is the same few hundred small operations each time, and reads every weight once: it costs memory bandwidth and
the way from one operation to the next. On a CPU csrc/gpt/step.cpp does all of them in one call; on a GPU they are
recorded once in a CUDA graph. What either does not know (a hook, an adapter, another dtype) runs as `GPT.step`.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
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

# Without a processor's wide vectors the C++ step is right for one row only: at four it takes longer than PyTorch's.
VECTORS = platform.machine() in ("x86_64", "AMD64")
PLAIN = {GPT, Block, Attention, MLP, LayerNorm, nn.Embedding, nn.Linear, nn.ModuleList}


class Decoder:
    """`rows` texts on one cache of keys and values; each is begun by `prefill` and grown by `step`.

    The model must be in eval mode; its weights must stay where they are, and its modules what they are, as long as this
    lives. One thread at a time.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        if model.training:
            raise GptfastError("the model is in training mode; call model.eval() first")
        self.model, self.context = model, model.config.context_length
        self.weights = list(model.parameters())  # kept, so that no address outlives its memory
        self.places = [w.data_ptr() for w in self.weights]
        self.lengths = [0] * rows  # tokens that each row holds
        self.stale = True  # cache.position does not follow from the last step
        with torch.inference_mode(False):  # a decoder that is kept serves in any mode
            cache = KVCache.empty(model, rows)
            self.device = cache.k.device
            self.cache = RowCache(cache.k, cache.v, torch.zeros(rows, dtype=torch.int64, device=self.device))
        self.cpu_step = _cpu_step(model)
        self.records = self.device.type == "cuda" and _plain(model)
        self.graph: _Graph | None = None  # recorded by the first step: a text of one token needs none

    @torch.no_grad()
    def prefill(self, idx: Tensor, row: int = 0, start: int = 0) -> Tensor:
        """Begin rows `row`, `row` + 1 ... anew with idx int64 [n, T]; logits [n, V] of what follows. A long text can be
        read in parts: idx then follows the first `start` tokens, which stay.
        """
        n, T = idx.shape
        if not 0 <= row <= len(self.lengths) - n:
            raise GptfastError(f"rows {row} to {row + n - 1} are not all among the {len(self.lengths)} of this decoder")
        rows = slice(row, row + n)
        if any(length < start for length in self.lengths[rows]):
            raise GptfastError(f"rows {row} to {row + n - 1} do not all hold {start} tokens to follow")
        x = self.model.hidden(idx, cache=KVCache(self.cache.k[:, rows], self.cache.v[:, rows], start))
        self.lengths[rows] = [start + T] * n
        self.stale = True
        return self.model.lm_head(x[:, -1])

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Logits [n, V] after one more token int64 [n] of each of `rows`, by default all. On a GPU the tensor is
        written anew by the next step.
        """
        chosen = range(len(self.lengths)) if rows is None else rows
        if len(set(chosen)) != len(tokens) or len(chosen) != len(tokens):
            raise GptfastError(f"{len(tokens)} tokens for rows {list(chosen)}; give each row one, and each once")
        full = [row for row in chosen if self.lengths[row] >= self.context]
        if full:
            raise GptfastError(f"row {full[0]} is full: it holds the model's whole context of {self.context} tokens")
        if [w.data_ptr() for w in self.weights] != self.places:
            raise GptfastError("the model's weights were moved or replaced; begin its texts anew, with a new Decoder")
        if self.cpu_step and (VECTORS or len(chosen) == 1):
            self.stale = True
            logits = torch.empty(len(tokens), len(self.model.lm_head.weight), dtype=torch.float32, device="cpu")
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
        if self.records and self.graph is None:
            self._place()
            self.graph = _Graph(self.model, self.cache)  # which moves cache.position
            self.stale = True
        if self.stale:
            self._place()
        self.stale = True  # also if this step fails
        run = self.graph.step if self.graph else lambda every: self.model.step(every, self.cache)
        if rows is None:
            logits = run(tokens)
            self.stale = False
            return logits
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return run(tokens.new_zeros(len(self.lengths)).index_copy(0, chosen, tokens))[chosen]

    def _place(self) -> None:
        """cache.position from the lengths; a full row, which no step asks for, stays inside the cache."""
        self.cache.position.copy_(torch.tensor([min(n, self.context - 1) for n in self.lengths], dtype=torch.int64))


_recording = threading.Lock()  # a process records one graph at a time


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One a device: each stream that a graph is recorded on keeps a workspace of cuBLAS."""
    return torch.cuda.Stream(device)


class _Graph:
    """`GPT.step` on these rows as a CUDA graph. To record it writes into the place of each row's next token, and moves
    cache.position.
    """

    def __init__(self, model: GPT, cache: RowCache) -> None:
        device = cache.position.device
        with _recording, torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
            self.tokens = torch.zeros(len(cache.position), dtype=torch.int64, device=device)
            side = _side_stream(device)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                model.step(self.tokens, cache)  # compiles and allocates what the recording must not
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile: a server's, a data loader's.
            with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
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
    try:
        yield decoder
    finally:  # also when the text is left half-made
        if decoder.graph:
            decoder.model = cast(GPT, weakref.proxy(model))  # what the dictionary holds must not hold its key
            _kept[model] = what, decoder


def _cores() -> int:
    """That this process may use: more threads would wait for each other at every layer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plain(model: GPT) -> bool:
    """Whether the model computes what its class says, in its weights' dtype, and nothing else."""
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return False
    return all(type(m) in PLAIN and untouched(m) for m in model.modules()) and _as_configured(model)


def _as_configured(model: GPT) -> bool:
    """Whether shapes and settings are still those of model.config: no layer was dropped, no matrix was pruned."""
    c, C, V = model.config, model.config.n_embd, len(model.wte.weight)
    if len(model.h) != c.n_layer:
        return False
    approximate = "none" if c.activation == "gelu" else "tanh"
    shapes: dict[Any, tuple[int, ...]] = {
        model.wte: (V, C),
        model.lm_head: (V, C),
        model.wpe: (c.context_length, C),
        model.ln_f: (C,),
    }
    blocks: Any = model.h
    for layer, b in enumerate(blocks):
        settings = (b.attn.layer, b.attn.heads, b.attn.window, b.mlp.approximate)
        if settings != (layer, c.n_head, c.windows[layer], approximate):
            return False
        shapes |= {b.ln_1: (C,), b.ln_2: (C,), b.attn.c_attn: (3 * C, C), b.attn.c_proj: (C, C)}
        shapes |= {b.mlp.c_fc: (4 * C, C), b.mlp.c_proj: (C, 4 * C)}
    same = all(tuple(m.weight.shape) == shape for m, shape in shapes.items())
    return same and all(m.eps == c.layer_norm_eps for m in shapes if type(m) is LayerNorm)


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
        windows=[window or 0 for window in c.windows], threads=min(torch.get_num_threads(), _cores()),
    )  # fmt: skip
