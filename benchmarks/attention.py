"""Causal attention on a GPU: gptfast's kernels against PyTorch's flash and cuDNN attention and FlexAttention.

    python benchmarks/attention.py [--quick] [--json FILE]

Every variant gets the same random inputs in one process; they take turns, and the median is printed: TFLOP/s (half of
4 B H T^2 D forward, 2.5 times that backward, for causal), its share of what a large matrix multiplication of the same
type reaches on the same card, and the ratio to the best peer. Outputs are checked after the timing. Decoding is in
GB/s of keys and values read, with its share of what a copy moves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from gptfast.kernels import causal_attention, causal_attention_qkvpacked, decode_attention, document_bounds
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

console = Console(width=None if sys.stdout.isatty() else 150)
TOKENS = 16384  # in a batch: B = TOKENS / T
SHAPES = [(64, 12, T) for T in (1024, 2048, 4096, 16384)] + [(128, 16, T) for T in (1024, 4096, 8192, 16384)]  # D, H, T
CACHES = [
    (64, 4096, 12, 12, 64),
    (1, 1024, 12, 12, 64),
    (8, 1024, 12, 12, 64),
    (64, 4096, 32, 8, 128),
]  # B, S, H, Hkv, D
FEATURES: dict[str, dict[str, Any]] = {
    "": {},
    "dropout 0.1": {"dropout_p": 0.1},
    "window 256": {"window": 256},
    "documents of 512": {},
}


def once(function: Callable[[], object], seconds: float) -> float:
    """The median time of a call in ms, the L2 cache cleared before each."""
    from triton.testing import do_bench

    return do_bench(function, warmup=int(seconds * 200), rep=int(seconds * 1000), return_mode="median")


def interleaved(variants: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in variants.items():
            samples[name].append(once(function, seconds))
    return {name: statistics.median(times) for name, times in samples.items()}


def ceilings() -> tuple[float, float]:
    """What this card reaches: TFLOP/s of a bf16 matrix multiplication, and GB/s of a copy, read and written."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 2 * 8192**3 / once(lambda: a @ b, 0.3) / 1e9, 4 * x.numel() / once(lambda: y.copy_(x), 0.3) / 1e6


def peers(D: int, dropout: bool, masked: bool) -> dict[str, Any]:
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return {} if masked else {name: backend for name, backend in backends.items() if not (dropout and name == "cudnn")}


def flex(window: int | None, documents: int | None, T: int) -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled, with the same mask, on q, k, v [B, T, H, D]."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        seen = j <= i
        if window:
            seen = seen & (i - j < window)
        return seen & (i // documents == j // documents) if documents else seen

    torch._dynamo.reset()  # past eight masks it would run uncompiled
    block_mask = create_block_mask(mask, None, None, T, T, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block_mask).transpose(1, 2)


def measure(D: int, H: int, T: int, feature: str, limit: float, rounds: int, seconds: float) -> list[dict[str, Any]]:
    B = max(1, TOKENS // T)
    qkv = torch.randn(B, T, 3, H, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(2))
    do = torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16)
    features = dict(FEATURES[feature])
    documents = 512 if feature.startswith("documents") else None
    if documents:
        cuts = torch.arange(0, B * T + 1, documents, dtype=torch.int32, device="cuda")
        features["cu_seqlens"] = document_bounds(cuts, B, T)
    masked = bool(documents or "window" in features)

    def ours(**more: Any) -> torch.Tensor:
        return causal_attention(q, k, v, **features, **more)

    def theirs() -> torch.Tensor:
        dropout = features.get("dropout_p", 0.0)
        return sdpa(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, dropout_p=dropout).transpose(1, 2)

    forms: dict[str, tuple[Callable[[], torch.Tensor], Any, tuple[torch.Tensor, ...]]] = {
        "gptfast": (ours, nullcontext, (q, k, v)),
        "gptfast packed": (lambda: causal_attention_qkvpacked(qkv, **features), nullcontext, (qkv,)),
        "gptfast one pass": (lambda: ours(deterministic=False), nullcontext, (q, k, v)),
    }
    for name, backend in peers(D, "dropout_p" in features, masked).items():
        forms[name] = (theirs, lambda backend=backend: sdpa_kernel(backend), (q, k, v))
    if "dropout_p" not in features:
        fused = flex(features.get("window"), documents, T)
        forms["flex"] = (lambda: fused(q, k, v), nullcontext, (q, k, v))

    forward: dict[str, Callable[[], object]] = {}
    backward: dict[str, Callable[[], object]] = {}
    outputs, memory, failed = {}, {}, {}
    for name, (function, context, leaves) in forms.items():
        try:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with context():
                out = function()
            torch.autograd.grad(out, leaves, do, retain_graph=True)
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
        except RuntimeError as error:
            failed[name] = str(error).splitlines()[0]
            continue
        outputs[name] = out

        def run(function: Any = function, context: Any = context) -> object:
            with context(), torch.no_grad():
                return function()

        forward[name] = run
        backward[name] = lambda out=out, leaves=leaves: torch.autograd.grad(out, leaves, do, retain_graph=True)
    times = {"forward": interleaved(forward, rounds, seconds), "backward": interleaved(backward, rounds, seconds)}
    flops = 2 * B * H * T * T * D
    rows = []
    for direction, factor in (("forward", 1.0), ("backward", 2.5)):
        best = min((t for name, t in times[direction].items() if not name.startswith("gptfast")), default=None)
        for name, ms in times[direction].items():
            error = None
            if "dropout_p" not in features and "gptfast" in outputs:
                error = (outputs[name] - outputs["gptfast"]).abs().max().item()
            rows.append({
                "D": D, "H": H, "B": B, "T": T, "feature": feature, "direction": direction, "name": name, "ms": ms,
                "tflops": None if masked else factor * flops / ms / 1e9, "memory_mb": memory[name], "to_ours": error,
                "share": None if masked else factor * flops / ms / 1e9 / limit,
                "to_best_peer": best / ms if best else None,
            })  # fmt: skip
    return rows + [{"D": D, "T": T, "feature": feature, "name": name, "failed": why} for name, why in failed.items()]


def decoding(
    B: int, S: int, H: int, Hkv: int, D: int, copy: float, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """One token a row against a cache of S."""
    q = torch.randn(B, 1, H, D, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, B, S, Hkv, D, device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((B,), S, dtype=torch.int32, device="cuda")
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    forms = {
        "gptfast": lambda: decode_attention(q, k, v, lengths),
        "sdpa": lambda: sdpa(*heads_first, enable_gqa=H != Hkv),
    }
    times = interleaved(forms, rounds, seconds)
    rows = []
    for name, ms in times.items():
        rate = 4 * k.numel() / ms / 1e6  # GB/s: both caches, two bytes an element
        row = {"B": B, "S": S, "H": H, "Hkv": Hkv, "D": D, "name": name, "ms": ms, "gb_s": rate, "share": rate / copy}
        rows.append(row | {"to_best_peer": times["sdpa"] / ms})
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(name)
    for row in rows:
        cells = (row.get(name) for name in columns)
        table.add_row(*("" if c is None else f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells))
    console.print(table)


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """After each shape, so that a run that is cut off keeps what it has."""
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of two shapes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU: speed is measured on one; `python -m gptfast.kernels.aot` says what can be said without")
    rounds, seconds = (1, 0.05) if options.quick else (5, 0.1)
    flops, copy = ceilings()
    properties = torch.cuda.get_device_properties(0)
    console.print(f"{properties.name}: {flops:.0f} TFLOP/s in a bf16 matrix multiplication, {copy:.0f} GB/s in a copy")
    figures: dict[str, Any] = {"gpu": properties.name, "torch": torch.__version__, "matmul": flops, "copy": copy}
    shapes = SHAPES[1:7:5] if options.quick else SHAPES
    figures["attention"] = []
    for D, H, T in shapes:
        for feature in FEATURES:
            if feature and T not in (1024, 4096):
                continue
            rows = measure(D, H, T, feature, flops, rounds, seconds)
            figures["attention"] += rows
            show(f"D={D} T={T} {feature}", rows)
            write(options.json, figures)
            torch.cuda.empty_cache()
    figures["decoding"] = [row for shape in CACHES for row in decoding(*shape, copy, rounds, seconds)]
    show("decoding", figures["decoding"])
    write(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
