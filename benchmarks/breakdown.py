"""Where the time of a training step of gptfast's goes: torch's profiler, by kind of kernel.

    gptfast bench breakdown [--size gpt2|gpt2-medium|tiny] [--batch B] [--json FILE] [--dry]

On a GPU the kernels of some steps, by name; gaps are what is left of a step's time on the device, measured without the
profiler. On a CPU the operators' own time; gaps are what the profiled step spends outside of them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import gptfast
from gptfast.errors import GptfastError
from gptfast.files import write_json
from gptfast.machine import choose_device, matmul_rate, synchronize
from gptfast.precision import keep_memory

from . import machine, models, train

# The first rule that a name matches, regardless of case. Triton kernels have the names of their functions in kernels/.
RULES = {
    "optimizer": r"multi_tensor|foreach|adam|optimizer|linalg_vector_norm|lpnorm|normtwo|clip_grad",
    # cuDNN's attention has sdpa and flash in its name, PyTorch's own flash and fmha (and cutlass: before matmul).
    # On a CPU only attention multiplies batches of matrices.
    "attention": r"attention|flash|fmha|sdpa|\bdecode_(split|combine)|aten::(bmm|baddbmm)",
    "norm": r"layer_?norm|\bnorm_(forward|backward)|gammabeta",
    "loss": r"cross_?entropy|cunn_softmax|log_softmax|nll_loss",  # a softmax alone may be attention's
    # token_sums takes sorted tokens, which nothing else of a step needs.
    "embedding": r"embedding|token_sums|position_sums|sort|indexselect|index_select|aten::index|gather_kernel",
    "matmul": r"gemm|gemv|cutlass|nvjet|xmma|splitk|cublas|aten::(mm|addmm)|mkldnn_linear|linear_pointwise",
}
OTHER = "other elementwise"
CATEGORIES = ("matmul", "attention", "norm", "loss", "embedding", "optimizer", OTHER)
GAPS = "gaps"
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the profiler's trace
PROFILED, TIMED = 3, 10  # steps
Used = tuple[str, str, float]  # name, category, seconds


def category(name: str) -> str:
    """Of a kernel or an operator, by its name."""
    return next((kind for kind, rule in RULES.items() if re.search(rule, name, re.IGNORECASE)), OTHER)


def kernels(trace: dict[str, Any]) -> list[Used]:
    """What ran on the GPU, from a trace in Chrome's format."""
    events = (event for event in trace["traceEvents"] if event.get("cat") in ON_DEVICE and "dur" in event)
    return [(event["name"], category(event["name"]), event["dur"] / 1e6) for event in events]


def operators(events: Iterable[Any]) -> list[Used]:
    """Own time of the operators that ran on the CPU. One that no rule knows is part of the one that called it: a copy
    in the loss is the loss's.
    """

    def kind(event: Any) -> str:
        while event is not None:
            if (found := category(event.name)) != OTHER:
                return found
            event = event.cpu_parent
        return OTHER

    return [(event.name, kind(event), event.self_cpu_time_total / 1e6) for event in events]


def totals(used: list[Used], step_seconds: float, steps: int) -> list[dict[str, Any]]:
    """ms, share and count of each category in one step; gaps make them up to the whole step. Gaps are below 0 where
    kernels overlap.
    """
    rows: list[dict[str, Any]] = []
    for kind in CATEGORIES:
        seconds = [s for _, k, s in used if k == kind]
        rows.append({"category": kind, "ms": 1e3 * sum(seconds) / steps, "count": len(seconds) / steps})
    gaps = 1e3 * step_seconds - sum(row["ms"] for row in rows)
    rows.append({"category": GAPS, "ms": gaps, "count": 0})
    return [row | {"share": row["ms"] / (1e3 * step_seconds)} for row in rows]


def largest(used: list[Used], steps: int, most: int = 15) -> list[dict[str, Any]]:
    """The names that take most time in one step."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, kind, seconds in used:
        found.setdefault((name, kind), []).append(seconds)
    rows: list[dict[str, Any]] = [
        {"name": name, "category": kind, "ms": 1e3 * sum(seconds) / steps, "count": len(seconds) / steps}
        for (name, kind), seconds in found.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:most]


def profiled(step: Callable[[], object], device: torch.device, steps: int) -> tuple[list[Used], float]:
    """What `steps` steps use, and the seconds that one of them takes under the profiler."""
    on_gpu = device.type == "cuda"
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as prof:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        seconds = (time.perf_counter() - start) / steps
    if not on_gpu:
        return operators(prof.events()), seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(path))
        used = kernels(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    if not used:
        raise GptfastError("the profiler saw no kernel; CUPTI may be missing here, or kept for administrators")
    return used, seconds


def timed(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Seconds of a step: on a GPU between two events around all of them, on a CPU the median."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / steps
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def breakdown(config: gptfast.GPTConfig, B: int, device: torch.device, dry: bool = False) -> dict[str, Any]:
    """The figures of a step of B rows of context_length tokens, as they are written to JSON."""
    bf16 = device.type == "cuda" or not dry
    training = models.ours(config, device, torch.bfloat16 if bf16 else torch.float32, train.LR)
    assert training.copy is not None
    run = models.our_step(training, training.copy.model)
    idx, targets = torch.randint(config.vocab_size, (2, B, config.context_length), device=device).unbind()

    def step() -> object:
        return run(idx, targets)

    if device.type == "cpu":
        keep_memory()
    few = dry or device.type == "cpu"
    for _ in range(1 if few else 3):
        step()
    seconds = timed(step, device, 1 if dry else 3 if few else TIMED)
    steps = 1 if few else PROFILED
    used, seconds_profiled = profiled(step, device, steps)
    if device.type == "cpu":
        train.default_memory(device)
    tokens_per_second = idx.numel() / seconds
    measured = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    described = machine.describe(device)
    peaks = {"measured matmul": measured}
    if described.get("gpu") in train.NOMINAL:
        peaks["data sheet"] = train.NOMINAL[described["gpu"]]
    utilisation = {name: train.mfu(config, tokens_per_second, peak) for name, peak in peaks.items()}
    whole = seconds if device.type == "cuda" else seconds_profiled
    return {
        "machine": described, "model": config.to_dict(), "batch": B, "dtype": "bfloat16" if bf16 else "float32",
        "step_ms": 1e3 * seconds, "profiled_step_ms": 1e3 * seconds_profiled, "tokens_per_second": tokens_per_second,
        "peaks": peaks, "mfu": utilisation, "categories": totals(used, whole, steps), "largest": largest(used, steps),
    }  # fmt: skip


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Lines of cells as columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells)).rstrip()
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )


def show(found: dict[str, Any]) -> str:
    c = found["model"]
    machine_name = found["machine"].get("gpu") or found["machine"]["cpu"]
    title = (
        f"a training step on {machine_name}: B={found['batch']} T={c['context_length']} L={c['n_layer']} "
        f"C={c['n_embd']} V={c['vocab_size']} {found['dtype']}\n{found['step_ms']:.4g} ms "
        f"({found['profiled_step_ms']:.4g} under the profiler), {found['tokens_per_second']:,.0f} tokens/s"
    )
    lines = [("", "ms", "share", "a step")]
    for row in found["categories"]:
        lines.append((row["category"], f"{row['ms']:.3f}", f"{row['share']:.1%}", f"{row['count']:.0f}"))
    top = [("largest", "ms", "a step", "category")]
    for row in found["largest"]:
        top.append((row["name"][:90], f"{row['ms']:.3f}", f"{row['count']:.0f}", row["category"]))
    share = [("MFU of", "peak, TFLOP/s", "6N + 12LCT", "attention halved")]
    for name, (full, half) in found["mfu"].items():
        share.append((name, f"{found['peaks'][name] / 1e12:.4g}", f"{full:.1%}", f"{half:.1%}"))
    return "\n\n".join((title, aligned(lines), aligned(top), aligned(share)))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gptfast bench breakdown", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("gpt2", "gpt2-medium", "tiny"), default="gpt2")
    parser.add_argument("--batch", type=int, help="rows a step (on a GPU 32, 16 of gpt2-medium; on a CPU 4)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--dry", action="store_true", help="a model so small that this only shows whether it runs")
    options = parser.parse_args(argv)
    if options.batch is not None and options.batch < 1:
        raise GptfastError(f"--batch is {options.batch}; it must be at least 1")
    device = choose_device(options.device)
    torch.manual_seed(0)
    if options.dry:
        config = gptfast.GPTConfig(64, 16, 2, 2, 32)
    else:
        config = gptfast.GPTConfig.preset(options.size, vocab_size=models.VOCAB)
        if device.type == "cpu" and options.size != "tiny":
            config = gptfast.GPTConfig.preset(options.size, vocab_size=models.VOCAB, context_length=256)
    usual = 4 if device.type == "cpu" else 16 if options.size == "gpt2-medium" else 32
    found = breakdown(config, options.batch or usual, device, options.dry)
    print(show(found))
    if options.json:
        write_json(options.json, found)
    return 0
