"""Models before and after gptfast.accelerate: a training step, prefill and memory, in one process, taking turns.

    python benchmarks/drop_in.py [--models hf nanogpt book] [--batch 4] [--context 256] [--dtype bf16 fp32] [--json F]

GPT-2 124M with random weights, on a GPU if there is one. The median of each is printed with the ratio to the model's
own code. nanoGPT and the book stand for models of their interface (tests/other_models.py). Peak memory of a training
step is measured once each, before the timing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from linear_cross_entropy import Peak
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import gptfast
from gptfast.machine import synchronize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
console = Console(width=None if sys.stdout.isatty() else 120)
VOCAB, CONTEXT, LAYERS, HEADS, WIDTH = 50257, 1024, 12, 12, 768


def make(name: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """A model, and its loss of idx and targets as its users take it."""
    if name == "hf":
        import transformers

        config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        return transformers.GPT2LMHeadModel(config), lambda m, idx, t: m(idx, labels=idx, use_cache=False).loss
    import other_models as models

    if name == "nanogpt":
        nano = models.NanoConfig(CONTEXT, VOCAB, LAYERS, HEADS, WIDTH)
        return models.NanoGPT(nano), lambda m, idx, t: m(idx, t)[1]
    cfg = models.BOOK | {
        "vocab_size": VOCAB, "context_length": CONTEXT, "emb_dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS
    }  # fmt: skip
    return models.BookGPT(cfg), lambda m, idx, t: F.cross_entropy(m(idx).flatten(0, 1), t.flatten())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["hf", "nanogpt", "book"], choices=["hf", "nanogpt", "book"])
    parser.add_argument("--dtype", nargs="*", default=["bf16"], choices=["bf16", "fp32"])
    parser.add_argument("--batch", nargs="*", type=int, default=[4])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for name, dtype, batch in itertools.product(options.models, options.dtype, options.batch):
        model, loss_of = make(name)
        model.to(device, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
        idx, targets = torch.randint(VOCAB, (2, batch, options.context), device=device)

        def train(model: Any = model, loss_of: Any = loss_of, idx: Any = idx, targets: Any = targets) -> None:
            loss_of(model, idx, targets).backward()
            model.zero_grad(set_to_none=True)

        def prefill(model: Any = model, idx: Any = idx) -> None:
            with torch.no_grad():
                model(idx)

        memory = {}
        for change in (gptfast.restore, gptfast.accelerate):
            change(model)
            train()
            with Peak(device) as peak:
                train()
            memory[change] = peak.gb
        for what, call in (("training step", train), ("prefill", prefill)):
            times: dict[Any, list[float]] = {gptfast.restore: [], gptfast.accelerate: []}
            for _ in range(options.rounds + 1):
                for change, samples in times.items():
                    change(model)
                    synchronize(device)
                    start = time.perf_counter()
                    call()
                    synchronize(device)
                    samples.append(time.perf_counter() - start)
            own, fast = (statistics.median(samples[1:]) for samples in times.values())
            ratio = memory[gptfast.accelerate] / memory[gptfast.restore]
            rows.append({
                "model": name, "dtype": dtype, "batch": batch, "what": what, "own ms": 1e3 * own, "fast ms": 1e3 * fast,
                "times": own / fast, "memory of own": ratio if what == "training step" else None,
            })  # fmt: skip
    table = Table(title=f"accelerate, 124M, T={options.context}, {device.type}")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*("" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    console.print(table)
    if options.json:
        figures = {"context": options.context, "torch": torch.__version__, "device": device.type, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
