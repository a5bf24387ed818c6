"""Training throughput of gptfast against a plain PyTorch GPT-2 with nanoGPT's optimizer, interleaved in one process.

    python benchmarks/train_cpu.py [--size small|gpt2] [--rounds 5] [--json FILE]

Prints tokens/s of each way to train, its ratio to the plain fp32 and to the best plain one, and the share of the rate
that this machine reaches in a large matrix multiplication of the same type.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from train_steps import VOCAB, Step, gptfast_step, plain_step

import gptfast
from gptfast.doctor import devices, versions
from gptfast.machine import matmul_rate
from gptfast.precision import keep_memory

SIZES = {"small": (6, 6, 384, 16, 256), "gpt2": (12, 12, 768, 4, 256)}  # layers, heads, width, batch, context


@dataclass
class Options:
    size: str = "small"
    """small (6 layers, width 384, B=16) or gpt2 (12 layers, width 768, B=4); T=256."""
    rounds: int = 5
    """Timed steps of each; they take turns, and each has an untimed step first."""
    only: tuple[str, ...] = ()
    """Run only these rows."""
    json: Path | None = None
    """Also write the figures here."""


def default_memory() -> None:
    """Undo `keep_memory`: the plain model runs with the C library's allocator as users have it, and not in memory that
    gptfast's step has left there.
    """
    libc = ctypes.CDLL(None)
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc.mallopt(M_MMAP_MAX, 65536)
    libc.mallopt(M_TRIM_THRESHOLD, 128 << 10)
    libc.malloc_trim(0)


def main(options: Options) -> None:
    size = SIZES[options.size]
    layers, heads, width, batch, context = size
    shape = layers, heads, width, context
    rows: dict[str, Callable[[], Step]] = {
        "plain fp32": lambda: plain_step(shape, bf16=False, compiled=False),
        "plain bf16 autocast": lambda: plain_step(shape, bf16=True, compiled=False),
        "plain bf16 autocast + compile": lambda: plain_step(shape, bf16=True, compiled=True),
        "gptfast bf16": lambda: gptfast_step(shape, compiled=False),
        "gptfast bf16 + compile": lambda: gptfast_step(shape, compiled=True),
    }
    rows = {name: make for name, make in rows.items() if not options.only or name in options.only}
    console = Console()
    steps, times = {}, {name: [] for name in rows}

    def timed(name: str) -> float:
        """One step's seconds, after one untimed: the allocator is then as this way of training leaves it."""
        keep_memory() if name.startswith("gptfast") else default_memory()
        for _ in range(2):
            idx, targets = torch.randint(VOCAB, (2, batch, context)).unbind()
            start = time.perf_counter()
            loss = steps[name](idx, targets)
            seconds = time.perf_counter() - start
            assert 9 < loss.item() < 13, f"{name}: the loss of random tokens is {loss.item()}"
        return seconds

    with console.status("first steps"):
        for name, make in rows.items():
            torch.manual_seed(0)
            steps[name] = make()
            timed(name)
    with console.status("timing"):
        for _ in range(options.rounds):
            for name in rows:
                times[name].append(timed(name))
    model = gptfast.GPT(gptfast.GPTConfig(VOCAB, context, layers, heads, width))
    flops = model.flops_per_token() * batch * context
    rate = {"fp32": matmul_rate("cpu", torch.float32), "bf16": matmul_rate("cpu", torch.bfloat16)}
    best = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    table = Table(title=f"{options.size}: {layers} layers, width {width}, B={batch}, T={context}, V={VOCAB}")
    for column in ("", "s/step", "tokens/s", "x plain fp32", "x best plain", "of matmul"):
        table.add_column(column, justify="right" if column else "left")
    plain = [best[n] for n in best if n.startswith("plain")] or [float("nan")]
    results = {}
    for name, seconds in best.items():
        peak = rate["fp32" if "fp32" in name else "bf16"]
        results[name] = {
            "seconds": seconds,
            "tokens_per_second": batch * context / seconds,
            "times_plain_fp32": best.get("plain fp32", float("nan")) / seconds,
            "times_best_plain": min(plain) / seconds,
            "share_of_matmul": flops / seconds / peak,
        }
        r = results[name]
        table.add_row(
            name, f"{seconds:.2f}", f"{r['tokens_per_second']:,.0f}", f"{r['times_plain_fp32']:.2f}",
            f"{r['times_best_plain']:.2f}", f"{r['share_of_matmul']:.0%}",
        )  # fmt: skip
    console.print(table)
    console.print(", ".join(f"{k} matmul {v / 1e9:,.0f} GFLOP/s" for k, v in rate.items()))
    if options.json:
        record = {
            "machine": {finding.name: finding.value for finding in [*devices(), *versions()]},
            "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
            "date": time.strftime("%Y-%m-%d"),
            "size": options.size,
            "matmul_flops": rate,
            "rows": results,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
