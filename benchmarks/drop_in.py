"""Models before and after gptfast.accelerate: a training step, prefill and memory, in one process, taking turns.

    gptfast bench drop-in [--models hf nanogpt book] [--batch 4] [--context 256] [--dtype bf16 fp32]
        [--json F]

GPT-2 124M with random weights, on a GPU if there is one. The median of each is printed with the ratio to the model's
own code. nanoGPT and the book stand for models of their interface (tests/other_models.py). Peak memory of a training
step is measured once each, before the timing.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import gptfast
from gptfast.errors import GptfastError
from gptfast.files import write_json
from gptfast.machine import synchronize

from .breakdown import aligned
from .machine import Peak

TESTS = Path(__file__).resolve().parents[1] / "tests"  # of a checkout
VOCAB, CONTEXT, LAYERS, HEADS, WIDTH = 50257, 1024, 12, 12, 768


def make(name: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """A model, and its loss of idx and targets as its users take it."""
    if name == "hf":
        import transformers

        config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        return transformers.GPT2LMHeadModel(config), lambda m, idx, t: m(idx, labels=idx, use_cache=False).loss
    if not (TESTS / "other_models.py").is_file():
        raise GptfastError(f"the {name} model is in tests/other_models.py of a checkout; leave it out, or run there")
    sys.path.insert(0, str(TESTS))
    models = importlib.import_module("other_models")

    if name == "nanogpt":
        nano = models.NanoConfig(CONTEXT, VOCAB, LAYERS, HEADS, WIDTH)
        return models.NanoGPT(nano), lambda m, idx, t: m(idx, t)[1]
    cfg = models.BOOK | {
        "vocab_size": VOCAB, "context_length": CONTEXT, "emb_dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS
    }  # fmt: skip
    return models.BookGPT(cfg), lambda m, idx, t: F.cross_entropy(m(idx).flatten(0, 1), t.flatten())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gptfast bench drop-in", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["hf", "nanogpt", "book"], choices=["hf", "nanogpt", "book"])
    parser.add_argument("--dtype", nargs="*", default=["bf16"], choices=["bf16", "fp32"])
    parser.add_argument("--batch", nargs="*", type=int, default=[4])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
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
            memory[change] = peak.bytes
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
            fast_bytes, own_bytes = memory[gptfast.accelerate], memory[gptfast.restore]
            ratio = fast_bytes / own_bytes if fast_bytes and own_bytes else None
            rows.append({
                "model": name, "dtype": dtype, "batch": batch, "what": what, "own ms": 1e3 * own, "fast ms": 1e3 * fast,
                "times": own / fast, "memory of own": ratio if what == "training step" else None,
            })  # fmt: skip
    print(f"accelerate, 124M, T={options.context}, {device.type}")
    lines = [tuple(rows[0])] if rows else []
    for row in rows:
        lines.append(tuple("" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    print(aligned(lines))
    if options.json:
        figures = {"context": options.context, "torch": torch.__version__, "device": device.type, "rows": rows}
        write_json(options.json, figures)
    return 0
