"""A training step of GPT-2 124M and generation on a GPU, gptfast against a plain PyTorch GPT-2, in one process.

    python benchmarks/train_gpu.py [--batch 32] [--rounds 5] [--json FILE]

B=32, T=1024, bf16. Rows take turns; the median step is printed with tokens/s, the share of a large matrix
multiplication's rate that (6 N + 12 L C T) per token comes to, peak memory and the loss of the last step. "Triton" rows
take the kernels wherever they can run, "ATen" rows nowhere, "gptfast" as gptfast.ops decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attention import ceilings, show
from train_steps import VOCAB, Step, gptfast_step, plain_step

import gptfast
from gptfast import ops

SIZE = LAYERS, HEADS, WIDTH, CONTEXT = 12, 12, 768, 1024


def ours(compiled: bool, prefer: str) -> Step:
    run = gptfast_step(SIZE, compiled, "cuda")

    def step(idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        use(prefer)
        return run(idx, targets)

    return step


def use(prefer: str) -> None:
    """Make every row of the launch table say `prefer`; "" leaves it as it is."""
    from gptfast.kernels import launch

    ops.TRITON_DEVICES = set() if prefer == "torch" else {"cuda"}
    launch.table.cache_clear()
    launch.choose.cache_clear()
    if prefer == "triton":
        for rows in launch.table().values():
            rows[:] = [(T, dataclasses.replace(row, prefer=prefer)) for T, row in rows]


def generation(batch: int, tokens: int) -> list[dict[str, Any]]:
    model = gptfast.GPT(gptfast.GPTConfig(VOCAB, CONTEXT, LAYERS, HEADS, WIDTH)).cuda().bfloat16().eval()
    idx = torch.randint(VOCAB, (batch, 16), device="cuda")
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(idx, tokens, top_k=50)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return [{"batch": batch, "new": tokens, "tokens_s": batch * tokens / statistics.median(times[1:])}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="sequences of 1,024 tokens a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each row")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU; benchmarks/train_cpu.py measures a step on a CPU")
    flops, _ = ceilings()
    rows: dict[str, Callable[[], Step]] = {
        "plain": lambda: plain_step(SIZE, True, False, "cuda"),
        "plain + compile": lambda: plain_step(SIZE, True, True, "cuda"),
        "gptfast": lambda: ours(False, ""),
        "gptfast Triton": lambda: ours(False, "triton"),
        "gptfast ATen": lambda: ours(False, "torch"),
        "gptfast Triton + compile": lambda: ours(True, "triton"),
    }
    idx, targets = torch.randint(VOCAB, (2, options.batch, CONTEXT), device="cuda")
    per_token = gptfast.GPT(gptfast.GPTConfig(VOCAB, CONTEXT, LAYERS, HEADS, WIDTH)).flops_per_token()
    steps, samples, losses, memory, failed = {}, {}, {}, {}, {}
    for name, make in rows.items():
        try:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            steps[name] = make()
            for _ in range(3):
                steps[name](idx, targets)
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
            samples[name] = []
        except Exception as error:  # one row that fails must not cost the others their figures
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    for _ in range(options.rounds):
        for name in samples:
            torch.cuda.synchronize()
            start = time.perf_counter()
            losses[name] = steps[name](idx, targets).item()
            samples[name].append(time.perf_counter() - start)
    table = []
    for name, times in samples.items():
        seconds = statistics.median(times)
        rate = options.batch * CONTEXT / seconds
        table.append({
            "name": name, "ms": 1e3 * seconds, "tokens_s": rate, "of_matmul": rate * per_token / flops / 1e12,
            "memory_gb": memory[name], "loss": losses[name],
        })  # fmt: skip
    table += [{"name": name, "failed": why} for name, why in failed.items()]
    show(f"training step, B={options.batch} T={CONTEXT}", table)
    use("")
    generated = [row for batch in (1, 8, 64) for row in generation(batch, 256)]
    show("generation", generated)
    if options.json:
        text = json.dumps({"gpu": torch.cuda.get_device_name(), "training": table, "generation": generated}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
