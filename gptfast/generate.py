"""Sampling from a model, token by token, and `gptfast generate`."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
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


def stream_text(model: GPT, encoding: Any, prompt: str, max_new_tokens: int, **sampling: Any) -> Iterator[str]:
    """Yield the continuation of `prompt` as text, whole characters at a time; ends before the end-of-text token."""
    ids = encoding.encode_ordinary(prompt) or [encoding.eot_token]
    device = next(model.parameters()).device
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    idx = torch.tensor([ids], device=device)
    for token in stream(model, idx, max_new_tokens, eos_id=encoding.eot_token, **sampling):
        if int(token) >= encoding.n_vocab:  # a padded vocabulary has ids that are no token
            continue
        if int(token) == encoding.eot_token:
            break
        yield decoder.decode(encoding.decode_bytes([int(token)]))
    yield decoder.decode(b"", final=True)


@dataclass(frozen=True)
class GenerateConfig:
    """Continue a prompt with a trained model."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder, one of its checkpoints, or any weights that gptfast.load_weights reads: a folder, a file, gpt2."""
    prompt: tuple[str, ...] = ("\n",)
    """One or more texts to continue."""
    max_new_tokens: int = 200
    """Tokens to add to each."""
    temperature: float = 0.8
    """Below 1 keeps to likely tokens; 0 always takes the likeliest."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probabilities reach p."""
    seed: int = 0
    """The same seed gives the same text."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), last, or a step."""
    encoding: str | None = None
    """The tokenizer (a name or a path), if the folder does not name it (GPT-2's for a vocabulary of 50,257)."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def load_for_generation(config: GenerateConfig) -> tuple[GPT, Any]:
    from .checkpoint import find_checkpoint, read_state
    from .data.tokens import VOCABULARY
    from .machine import choose_device
    from .tokenizer import get_encoding

    folder = find_checkpoint(config.run, config.checkpoint)
    model = GPT.from_pretrained(folder.as_posix()).to(choose_device(config.device)).eval()  # or a name on the hub
    state = read_state(folder)
    name = config.encoding or (state["encoding"] if state else None)
    if name is None:
        if model.config.vocab_size not in (50257, 50304):
            raise GptfastError(f"{folder} does not name its tokenizer; pass --encoding")
        name = "gpt2"
    if name == VOCABULARY and config.encoding is None:  # a vocabulary that is not published lies in the run's folder
        found = [parent / VOCABULARY for parent in (folder, *folder.absolute().parents[:3])]
        name = str(next((path for path in found if path.is_file()), found[0]))
    encoding = get_encoding(name)
    if encoding.n_vocab > model.config.vocab_size:
        raise GptfastError(
            f"the encoding {name!r} has {encoding.n_vocab:,} tokens, the model {model.config.vocab_size:,}; "
            "pass its own --encoding"
        )
    return model, encoding


def _batches(ids: Sequence[list[int]]) -> Iterator[list[int]]:
    """Indices of the prompts, those of equal length together: a batch needs no padding."""
    for length in sorted({len(i) for i in ids}):
        yield [n for n, i in enumerate(ids) if len(i) == length]


def main(argv: list[str]) -> None:
    config = tyro.cli(GenerateConfig, args=argv, prog="gptfast generate")
    if not config.prompt:
        raise GptfastError("--prompt names no text; give at least one, or leave it out")
    if not 0 <= config.seed < 2**63:
        raise GptfastError(f"--seed is {config.seed}; it must be at least 0 and below 2**63")
    model, encoding = load_for_generation(config)
    sampling: dict[str, Any] = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    ids = [encoding.encode_ordinary(p) or [encoding.eot_token] for p in config.prompt]
    longest, context = max(map(len, ids)), model.config.context_length
    if longest + config.max_new_tokens > context:
        print(
            f"note: {longest} + {config.max_new_tokens} tokens pass the context of {context}; from there on the window "
            f"slides over the last {context} tokens, without the cache",
            file=sys.stderr,
        )
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    if len(ids) == 1:
        print(config.prompt[0], end="", flush=True)
        for piece in stream_text(
            model, encoding, config.prompt[0], config.max_new_tokens, generator=generator, **sampling
        ):
            print(piece, end="", flush=True)
        print()
        return
    texts = [""] * len(ids)
    for batch in _batches(ids):
        idx = torch.tensor([ids[n] for n in batch], device=device)
        out = model.generate(idx, config.max_new_tokens, eos_id=encoding.eot_token, generator=generator, **sampling)
        for n, row in zip(batch, out[:, idx.shape[1] :].tolist(), strict=True):
            kept = row[: row.index(encoding.eot_token)] if encoding.eot_token in row else row
            texts[n] = encoding.decode_bytes([t for t in kept if t < encoding.n_vocab]).decode(
                "utf-8", errors="replace"
            )
    for number, (prompt, text) in enumerate(zip(config.prompt, texts, strict=True), 1):
        print(f"--- {number}\n{prompt}{text}")
