"""`gptfast generate`: a prompt continued by a trained model."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from .errors import GptfastError
from .model import GPT
from .sampling import stream_text


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


def load_for_generation(
    source: Path, checkpoint: str = "best", encoding: str | None = None, device: str = "auto"
) -> tuple[GPT, Any]:
    """The model in eval mode and its tokenizer; the arguments are those of GenerateConfig."""
    from .checkpoint import find_checkpoint, read_state
    from .data.tokens import VOCABULARY
    from .machine import choose_device
    from .tokenizer import get_encoding

    folder = find_checkpoint(source, checkpoint)
    model = GPT.from_pretrained(folder.as_posix()).to(choose_device(device)).eval()  # or a name on the hub
    state = read_state(folder)
    name = encoding or (state["encoding"] if state else None)
    if name is None:
        if model.config.vocab_size not in (50257, 50304):
            raise GptfastError(f"{folder} does not name its tokenizer; pass --encoding")
        name = "gpt2"
    if name == VOCABULARY and encoding is None:  # a vocabulary that is not published lies in the run's folder
        found = [parent / VOCABULARY for parent in (folder, *folder.absolute().parents[:3])]
        name = str(next((path for path in found if path.is_file()), found[0]))
    tokenizer = get_encoding(name)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise GptfastError(
            f"the encoding {name!r} has {tokenizer.n_vocab:,} tokens, the model {model.config.vocab_size:,}; "
            "pass its own --encoding"
        )
    return model, tokenizer


def show_any_text() -> None:
    """Write what the encoding of standard output lacks as \\u escapes: a model may say any character."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


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
    show_any_text()
    model, encoding = load_for_generation(config.run, config.checkpoint, config.encoding, config.device)
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
