"""The linear cross entropy, forward and backward: gptfast's chunks against the logits in memory; on a GPU or a CPU.

    python benchmarks/linear_cross_entropy.py [--rows 4096] [--vocabulary 50257] [--width 768] [--json FILE]

All forms get the same random bf16 inputs in one process and take turns; the median time is printed with the ratio to
plain PyTorch, the share of a matrix multiplication's rate that three products N x V x C come to, and the peak of memory
above the inputs. The loss and gradients are compared with plain PyTorch's after the timing. On a CPU the peak is the
kernel's count of resident pages (Linux only). Liger's kernel is a peer where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from gptfast import ops
from gptfast.machine import matmul_rate
from gptfast.precision import keep_memory

console = Console(width=None if sys.stdout.isatty() else 120)


def forms(device: torch.device) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    found: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "gptfast": ops.linear_cross_entropy,
        "gptfast recompute": lambda x, w, t: ops.linear_cross_entropy(x, w, t, recompute=True),
        "F.cross_entropy": lambda x, w, t: F.cross_entropy(x @ w.T, t),
        "F.cross_entropy fp32": lambda x, w, t: F.cross_entropy((x @ w.T).float(), t),
    }
    if device.type == "cuda":
        found["compiled"] = torch.compile(lambda x, w, t: F.cross_entropy((x @ w.T).float(), t))
        if importlib.util.find_spec("liger_kernel"):
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

            liger = LigerFusedLinearCrossEntropyLoss()
            found["Liger"] = lambda x, w, t: liger(w, x, t)
    return found


class Peak:
    """The most memory in use within the block, above what was in use at its start, in GB."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.gb = device, float("nan")

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif os.path.exists("/proc/self/clear_refs"):
            with contextlib.suppress(
                AttributeError
            ):  # glibc: give back what is free, so that it counts when it is used
                ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.gb = (torch.cuda.max_memory_allocated() - self.before) / 1e9
        elif os.path.exists("/proc/self/clear_refs"):
            self.gb = (_status("VmHWM") - self.before) / 1e9


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="N (4,096; 32,768 on a GPU)")
    parser.add_argument("--vocabulary", type=int, help="V (50,257; 50,304 on a GPU)")
    parser.add_argument("--width", type=int, default=768, help="C")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    N, C = options.rows or (32768 if on_gpu else 4096), options.width
    V = options.vocabulary or (50304 if on_gpu else 50257)
    torch.manual_seed(0)
    x = torch.randn(N, C, device=device).bfloat16().requires_grad_()
    w = (torch.randn(V, C, device=device) * 0.02).bfloat16().requires_grad_()
    t = torch.randint(V, (N,), device=device)
    memory, times, outputs = {}, {}, {}

    def run(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        loss = form(x, w, t)
        result = loss.detach(), *torch.autograd.grad(loss, (x, w))
        if on_gpu:
            torch.cuda.synchronize()
        return result

    variants = forms(device)
    for name, form in variants.items():  # before keep_memory, which makes what was once used look used
        run(form)  # compiled, and its libraries' own memory allocated
        with Peak(device) as peak:
            run(form)
        memory[name], times[name] = peak.gb, []
    if not on_gpu:
        keep_memory()
    for _ in range(options.rounds + 1):
        for name, form in variants.items():
            start = time.perf_counter()
            outputs[name] = run(form)
            times[name].append(time.perf_counter() - start)
    peak_flops = matmul_rate(device, torch.bfloat16)
    plain = statistics.median(times["F.cross_entropy"][1:])
    rows: list[dict[str, Any]] = []
    for name, samples in times.items():
        seconds = statistics.median(samples[1:])
        error = max((a.float() - b.float()).norm().item() / b.float().norm().item() for a, b in zip(
            outputs[name][1:], outputs["F.cross_entropy fp32"][1:], strict=True))  # fmt: skip
        rows.append({
            "name": name, "ms": 1e3 * seconds, "times plain": plain / seconds,
            "of matmul": 6 * N * V * C / seconds / peak_flops, "peak GB": memory[name],
            "of plain": memory[name] / memory["F.cross_entropy"], "loss": outputs[name][0].item(),
            "gradients off": error,
        })  # fmt: skip
    table = Table(title=f"linear cross entropy, forward + backward, N={N} V={V} C={C} bf16, {device.type}")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row.values()))
    console.print(table)
    if options.json:
        shape = {"rows": N, "vocabulary": V, "width": C, "torch": torch.__version__, "device": device.type}
        if on_gpu:
            shape["gpu"] = torch.cuda.get_device_name()
        options.json.write_text(json.dumps(shape | {"forms": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
