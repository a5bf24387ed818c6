"""GPT.generate beside transformers' generate: the same weights, the same prompt, greedy, in one process, taking turns.

    python benchmarks/decode.py [--preset gpt2] [--dtype bf16 fp32] [--batch 1 8] [--new 64] [--json F]

Random weights, on a GPU if there is one. A step reads every weight once, so that the limit of batch 1 is the rate at
which this machine reads memory, measured first. In fp32 both must give the same tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import gptfast
from gptfast.machine import synchronize

console = Console(width=None if sys.stdout.isatty() else 120)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def read_rate(device: torch.device) -> float:
    """Bytes a second of summing 512 MB: the best of 10."""
    x, best = torch.ones(1 << 27, device=device), float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        x.sum()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return x.numel() * 4 / best


def peer(model: gptfast.GPT, dtype: torch.dtype) -> Any:
    """transformers' GPT-2 with the weights of `model`."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()
    theirs.generation_config.pad_token_id = theirs.generation_config.eos_token_id = None
    return theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--dtype", nargs="*", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens to add")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warnings.filterwarnings("ignore")
    rate = read_rate(device)
    rows: list[dict[str, Any]] = []
    for dtype, batch in itertools.product(options.dtype, options.batch):
        torch.manual_seed(0)
        model = gptfast.GPT(gptfast.GPTConfig.preset(options.preset)).to(device, DTYPES[dtype]).eval()
        theirs = peer(model, DTYPES[dtype]).to(device)
        idx = torch.randint(model.config.vocab_size, (batch, options.prompt), device=device)

        def ours(model: Any = model, idx: Any = idx) -> torch.Tensor:
            return model.generate(idx, options.new, temperature=0)

        def hugging_face(theirs: Any = theirs, idx: Any = idx) -> torch.Tensor:
            mask = torch.ones_like(idx)
            return theirs.generate(idx, max_new_tokens=options.new, do_sample=False, attention_mask=mask)

        times: dict[Any, list[float]] = {ours: [], hugging_face: []}
        equal = bool(torch.equal(ours(), hugging_face()))
        for _, (call, samples) in itertools.product(range(options.rounds), times.items()):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            samples.append(time.perf_counter() - start)
        ours_s, theirs_s = (statistics.median(samples) for samples in times.values())
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        tokens = batch * options.new
        rows.append({
            "dtype": dtype, "batch": batch, "tokens/s": tokens / ours_s, "transformers": tokens / theirs_s,
            "times": theirs_s / ours_s, "ms a step": 1e3 * ours_s / options.new,
            "share of read rate": options.new * size / ours_s / rate, "same tokens": equal,
        })  # fmt: skip
    table = Table(title=f"generate, {options.preset}, {device.type}; memory is read at {rate / 1e9:.1f} GB/s")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    console.print(table)
    if options.json:
        figures = {"preset": options.preset, "prompt": options.prompt, "new": options.new, "read_rate": rate,
                   "torch": torch.__version__, "device": device.type, "rows": rows}  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
