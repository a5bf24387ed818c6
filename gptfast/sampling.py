"""Sampling from a model, token by token, and the text that the tokens are."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .decode import decoder_for
from .errors import GptfastError
from .model import GPT


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The distribution fp32 [B, V] that a token is drawn from, given logits [B, V]; temperature above 0."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    p = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = p.topk(min(256, p.shape[-1]))  # enough as a rule, and a tenth of the time of sorting all
        if bool((ordered.sum(-1) < top_p).any()):
            ordered, order = p.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the mass before this token already reaches p
        beyond[:, 0] = False  # also for a top_p that fp32 rounds to 0
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(beyond, 0))
        p /= p.sum(-1, keepdim=True)
    return p


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token id int64 [B] from logits [B, V]; see `GPT.generate`."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(probabilities(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0]


@torch.no_grad()
def stream(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield one new token int64 [B] a step; arguments as in `GPT.generate`.

    Inside the context each step feeds one token to the KV cache. Past it every position changes with the window, so
    each step runs the last context_length tokens anew: exact, and that much slower.
    """
    if idx.dim() != 2 or idx.shape[1] == 0:
        raise GptfastError(
            f"the prompt has shape {list(idx.shape)}; give token ids [B, T] with at least one token a row"
        )
    limits = {
        "max_new_tokens": (max_new_tokens, max_new_tokens >= 0, "at least 0"),
        "temperature": (temperature, temperature >= 0, "at least 0"),
        "top_k": (top_k, top_k is None or top_k >= 1, "at least 1"),
        "top_p": (top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
    }
    for name, (value, good, limit) in limits.items():
        if not good:
            raise GptfastError(f"cannot sample with {name} = {value}; it must be {limit}")
    context = model.config.context_length
    was_training = model.training
    model.eval()
    try:
        with decoder_for(model, idx.shape[0]) as decoder:
            tokens = [idx]
            ended = torch.zeros(idx.shape[0], dtype=torch.bool, device=idx.device)
            for length in range(idx.shape[1], idx.shape[1] + max_new_tokens):
                if length > context:
                    tokens = [torch.cat(tokens, dim=1)[:, -context:]]
                    logits = model.lm_head(model.hidden(tokens[0])[:, -1])
                elif length == idx.shape[1]:
                    logits = decoder.prefill(idx)
                else:
                    logits = decoder.step(tokens[-1][:, 0])
                token = sample(logits, temperature, top_k, top_p, generator)
                if eos_id is not None:
                    token = token.masked_fill(ended, eos_id)
                    ended |= token == eos_id
                yield token
                tokens.append(token[:, None])
                if eos_id is not None and bool(ended.all()):
                    return
    finally:
        model.train(was_training)


class TextStream:
    """Bytes of tokens to text that may be shown: whole characters, and nothing that may become a stop string.

    It ends before the first of `stops` that is complete: what it gives does not depend on how the text falls into
    tokens.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = stops
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the beginning of a stop string, perhaps

    def push(self, data: bytes, final: bool = False) -> str:
        """The text that is certain after `data`; with `final` all that was held back."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        ends = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        held = 0 if final else max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def stream_text(
    model: GPT,
    encoding: Any,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    stops: Sequence[str] = (),
    **sampling: Any,
) -> Iterator[str]:
    """Yield the continuation of a text, or of its tokens, whole characters at a time; ends before the end-of-text token
    and before the first of `stops`.
    """
    ids = encoding.encode_ordinary(prompt) if isinstance(prompt, str) else prompt
    idx = torch.tensor([ids or [encoding.eot_token]], device=next(model.parameters()).device)
    written = TextStream(stops)
    for token in stream(model, idx, max_new_tokens, eos_id=encoding.eot_token, **sampling):
        if int(token) == encoding.eot_token:
            break
        if int(token) < encoding.n_vocab:  # a padded vocabulary has ids that are no token
            yield written.push(encoding.decode_bytes([int(token)]))
            if written.stopped:
                return
    yield written.push(b"", final=True)
