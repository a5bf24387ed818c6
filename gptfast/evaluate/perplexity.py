"""Perplexity and bits per byte of text, by a sliding window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import ops
from ..errors import GptfastError
from ..model import GPT
from .loglikelihood import TOKENS, OnDone, evaluating
from .statistics import exp


@dataclass(frozen=True)
class TextScore:
    """nats: minus the log likelihood of all tokens; bytes: of the documents in UTF-8."""

    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Of a token: comparable only between models with the same tokenizer."""
        return exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between all models."""
        return self.nats / math.log(2) / self.bytes


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each window: it sees positions begin ... end - 1 and scores those from `first` on.

    Windows begin every `stride` positions and are `context` long, but for the last. Each position is scored once, and
    with at least context - stride positions before it, or all there are.
    """
    end = 0
    for begin in range(0, tokens, stride):
        first, end = end, min(begin + context, tokens)
        yield begin, first, end
        if end == tokens:
            return


def perplexity(
    model: GPT, encoding: Any, documents: Iterable[str], stride: int | None = None, on_done: OnDone = lambda n: None
) -> TextScore:
    """The score of `documents`, each by itself: its first token follows the end-of-text token, and every token counts.

    stride: how far the window moves, by default half the model's context; smaller is slower and gives tokens more to
    see. `on_done` is told bytes. Raises GptfastError for a stride that leaves tokens out, and where there is no text.
    """
    context = model.config.context_length
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise GptfastError(f"the stride is {stride}; it must be from 1 to the model's context of {context}")
    nats, tokens, n_bytes, count = 0.0, 0, 0, 0
    batch: list[tuple[np.ndarray, int]] = []
    with evaluating(model):
        for document in documents:
            ids = np.array([encoding.eot_token, *encoding.encode_ordinary(document)])
            size = len(document.encode())
            for begin, first, end in windows(len(ids) - 1, context, stride):
                batch.append((ids[begin : end + 1], end - first))
                if len(batch) * context >= TOKENS:
                    nats += _nats(model, batch)
                    batch = []
                on_done(size * (end - first) / (len(ids) - 1))
            tokens, n_bytes, count = tokens + len(ids) - 1, n_bytes + size, count + 1
        if batch:
            nats += _nats(model, batch)
    if not tokens:
        raise GptfastError("there is no text to score")
    return TextScore(nats, tokens, n_bytes, count)


def _nats(model: GPT, batch: list[tuple[np.ndarray, int]]) -> float:
    """Minus the log likelihood of the last n of each (ids, n), one id at least before them."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids, _ in batch], device=device)[:, None]
    n = torch.tensor([n for _, n in batch], device=device)[:, None]
    width = int(lengths.max())
    idx = torch.tensor(np.stack([np.pad(ids, (0, width - len(ids))) for ids, _ in batch]), device=device)
    t = torch.arange(1, width, device=device)
    scored = (t < lengths) & (t >= lengths - n)  # [B, T], by the place of the token that is scored
    x = model.hidden(idx[:, :-1])[scored]  # [N, C]
    losses = ops.linear_cross_entropy(x, model.lm_head.weight, idx[:, 1:][scored], reduction="none")
    return float(losses.double().sum())
