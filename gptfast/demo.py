"""`gptfast demo`: one command from text to a small model that has learned from it, in about three minutes."""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import GptfastError
from .settings import parse
from .tokenizer import Encoding, get_encoding


@dataclass(frozen=True)
class DemoConfig:
    """Prepare a text, train a small GPT on its tokens, and show what it writes before, during and after."""

    data: Path | None = None
    """A .txt file (also .gz, .xz, .zst); by default Python's own documentation, which every Python carries."""
    out: Path = Path("runs")
    """Where the run folder is made."""
    minutes: float = 3.0
    """About how long to train."""


OWN_TOKENS = 4096
# 1.8M parameters beside the embedding, to be worth watching for three minutes on two cores; a GPU has time for 11M.
CPU_MODEL = {"n_layer": 4, "n_head": 6, "n_embd": 192, "context_length": 128, "batch_size": 16}
GPU_MODEL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256, "batch_size": 64}


def python_documentation() -> str:
    """The help texts of the Python language: about 700 KB of English prose."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise GptfastError("this Python comes without pydoc_data; pass a text of your own: --data FILE.txt") from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def learn_encoding(source: Path, folder: Path) -> Encoding:
    """A vocabulary learned from the text, saved in `folder`.

    It needs no network, and on GPT-2's 50,257 logits a model this small would spend most of its three minutes: 625
    tokens/s were measured, against 4,000.
    """
    print(f"Learning a vocabulary of {OWN_TOKENS:,} tokens from the text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short text has fewer
        encoding = Encoding.train([source], OWN_TOKENS)
    encoding.save(folder / "tokenizer.json")
    return get_encoding(folder / "tokenizer.json")


def seconds_per_step(model: dict[str, Any], n_vocab: int) -> float:
    """The time of one training step of this shape here: the fastest of a short run of a throw-away model.

    The fastest, because what slows a step here (first use, other programs) is seldom there for three minutes.
    """
    import torch

    from .config import GPTConfig
    from .machine import choose_device, synchronize
    from .model import GPT
    from .optim import adamw
    from .precision import ComputeCopy, choose, keep_memory

    device = choose_device()
    if device.type == "cpu":
        keep_memory()
    config = GPTConfig(n_vocab, model["context_length"], model["n_layer"], model["n_head"], model["n_embd"])
    copy = ComputeCopy(GPT(config).to(device), choose(device).dtype)
    optimizer = adamw(copy.master, 1e-4)
    idx = torch.randint(n_vocab, (model["batch_size"], config.context_length), device=device)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        copy.clear_gradients()
        copy.model(idx, idx).backward()
        copy.collect_gradients()
        optimizer.step()
        copy.refresh()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def main(argv: list[str]) -> None:
    config = parse(DemoConfig, argv, "gptfast demo")
    from . import pretrain
    from .data.prepare import PrepareConfig, prepare
    from .machine import choose_device

    run = config.out / time.strftime("demo-%Y%m%d-%H%M%S")
    tokens = run.with_name(run.name + "-tokens")
    source = config.data
    if source is None:
        source = run.with_name(run.name + "-text") / "python-documentation.txt"
        source.parent.mkdir(parents=True)
        source.write_text(python_documentation(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        encoding = learn_encoding(source, Path(folder))
        prepare(PrepareConfig((str(source),), str(tokens), encoding=encoding.name))
    model: dict[str, Any] = dict(GPU_MODEL if choose_device().type == "cuda" else CPU_MODEL)
    steps = max(60, min(20_000, int(config.minutes * 60 / seconds_per_step(model, encoding.n_vocab))))
    pretrain.run(
        pretrain.PretrainConfig(
            (tokens,),
            run,
            preset="tiny",
            **model,
            steps=steps,
            lr=2e-3,
            warmup_steps=steps // 20,
            beta2=0.99,
            eval_every=max(1, steps // 12),
            sample_every=max(1, steps // 3),
            checkpoint_every=steps,
            sample_tokens=300,
            eval_batches=5,
        )
    )
    print(f"\nThe model is in {run}; its losses are drawn in {run / 'loss.png'}. Let it write:")
    print(f'  gptfast generate {run} --prompt "The value of "')
