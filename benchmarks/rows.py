"""The kernels on rows on a GPU: LayerNorm, GELU, embedding and cross entropy against PyTorch's, eager and compiled.

    python benchmarks/rows.py [--quick] [--json FILE]

Forms get the same random bf16 inputs in one process and take turns; the median is printed for forward and backward:
GB/s by the bytes that each operation cannot do without (the heads of the kernels' files count them), its share of what
a copy moves on the same card, and the ratio to the best peer. Outputs are compared after the timing. Liger's LayerNorm
is a peer where liger_kernel is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from attention import ceilings, console, interleaved, show, write
from torch import Tensor
from torch.nn import functional as F

from gptfast import kernels

V = 50304


@dataclass
class Operation:
    name: str
    inputs: list[Tensor]  # those with a gradient
    forms: dict[str, Callable[..., Any]]  # "gptfast" and its peers, each of the inputs
    moved: tuple[float, float]  # bytes, forward and backward


def bf16(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16().requires_grad_()


def norms(N: int, C: int) -> list[Operation]:
    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (C,), w, b)

    def added(x: Tensor, r: Tensor, w: Tensor, b: Tensor, p: float = 0.0) -> tuple[Tensor, Tensor]:
        s = r + F.dropout(x, p) if p else r + x
        return F.layer_norm(s, (C,), w, b), s

    def dropped(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return added(x, r, w, b, 0.1)

    x, r, w, b = bf16(N, C), bf16(N, C), bf16(C), bf16(C)
    one = {"gptfast": kernels.layer_norm, "F.layer_norm": plain, "compiled": torch.compile(plain)}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        one["Liger"] = lambda x, w, b: LigerLayerNormFunction.apply(x, w, b, 1e-5)
    two = {"gptfast": kernels.add_layer_norm, "eager": added, "compiled": torch.compile(added)}
    three = {
        "gptfast": lambda *t: kernels.add_layer_norm(*t, dropout_p=0.1),
        "eager": dropped,
        "compiled": torch.compile(dropped),
    }
    size = 2.0 * N * C
    return [
        Operation("layer_norm", [x, w, b], one, (2 * size, 3 * size)),
        Operation("add_layer_norm", [x, r, w, b], two, (4 * size, 4 * size)),
        Operation("add_layer_norm, dropout", [x, r, w, b], three, (4 * size, 5 * size)),
    ]


def gelus(N: int, C: int) -> list[Operation]:
    def plain(x: Tensor, b: Tensor) -> Tensor:
        return F.gelu(x + b, approximate="tanh")

    x, b, size = bf16(N, C), bf16(C), 2.0 * N * C
    one = {"gptfast": kernels.gelu, "F.gelu": lambda x: F.gelu(x, approximate="tanh")}
    two = {"gptfast": kernels.bias_gelu, "eager": plain, "compiled": torch.compile(plain)}
    return [
        Operation("gelu", [x], one, (2 * size, 3 * size)),
        Operation("bias_gelu", [x, b], two, (2 * size, 3 * size)),
    ]


def embeddings(B: int, T: int, C: int) -> list[Operation]:
    ranks = torch.arange(1, V + 1, device="cuda", dtype=torch.float64)
    idx = torch.multinomial(1 / ranks, B * T, replacement=True).view(B, T)  # Zipf's law, as text has it

    def plain(wte: Tensor, wpe: Tensor) -> Tensor:
        return F.embedding(idx, wte) + wpe[:T]

    forms = {
        "gptfast": lambda wte, wpe: kernels.embedding(idx, wte, wpe), "eager": plain, "compiled": torch.compile(plain)
    }  # fmt: skip
    size = 2.0 * B * T * C
    return [Operation("embedding", [bf16(V, C), bf16(T, C)], forms, (2 * size, size + 2.0 * V * C))]


def losses(N: int) -> list[Operation]:
    targets = torch.randint(V, (N,), device="cuda")

    def plain(z: Tensor) -> Tensor:
        return F.cross_entropy(z.float(), targets)

    forms = {"gptfast": lambda z: kernels.cross_entropy(z, targets), "eager": plain, "compiled": torch.compile(plain)}
    size = 2.0 * N * V
    return [Operation("cross_entropy", [bf16(N, V)], forms, (size, 2 * size))]


def measure(operation: Operation, shape: str, copy: float, rounds: int, seconds: float) -> list[dict[str, Any]]:
    forward, backward, outputs, failed = {}, {}, {}, {}
    for name, form in operation.forms.items():
        leaves = [x.detach().requires_grad_() for x in operation.inputs]
        try:
            out = form(*leaves)
            out = out if isinstance(out, tuple) else (out,)
            upstream = [torch.randn_like(o) for o in out]
            torch.autograd.grad(out, leaves, upstream, retain_graph=True)
        except Exception as error:  # one that fails must not cost the others their figures
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        outputs[name] = out[0].detach().float()
        plain = [x.detach() for x in leaves]
        forward[name] = lambda form=form, plain=plain: form(*plain)
        backward[name] = lambda out=out, leaves=leaves, upstream=upstream: torch.autograd.grad(
            out, leaves, upstream, retain_graph=True
        )
    rows = []
    for direction, forms, moved in (
        ("forward", forward, operation.moved[0]),
        ("backward", backward, operation.moved[1]),
    ):
        times = interleaved(forms, rounds, seconds)
        best = min((t for name, t in times.items() if name != "gptfast"), default=None)
        for name, ms in times.items():
            off = (outputs[name] - outputs["gptfast"]).abs().max().item() if "gptfast" in outputs else None
            rows.append({
                "operation": operation.name, "shape": shape, "direction": direction, "name": name, "ms": ms,
                "gb_s": moved / ms / 1e6, "share": moved / ms / 1e6 / copy, "to_best_peer": best / ms if best else None,
                "to_ours": None if "dropout" in operation.name else off,
            })  # fmt: skip
    return rows + [{"operation": operation.name, "shape": shape, "name": n, "failed": why} for n, why in failed.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of GPT-2's shapes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU: speed is measured on one; `python -m gptfast.kernels.aot` says what can be said without")
    rounds, seconds = (1, 0.05) if options.quick else (5, 0.1)
    _, copy = ceilings()
    name = torch.cuda.get_device_name()
    console.print(f"{name}: {copy:.0f} GB/s in a copy")
    figures: dict[str, Any] = {"gpu": name, "torch": torch.__version__, "copy": copy, "rows": []}
    todo: list[tuple[str, Callable[[], list[Operation]]]] = [
        ("32768 x 768", lambda: norms(32768, 768)),
        ("8192 x 4096", lambda: norms(8192, 4096)),
        ("32768 x 3072", lambda: gelus(32768, 3072)),
        ("32 x 1024, 768", lambda: embeddings(32, 1024, 768)),
        (f"4096 x {V}", lambda: losses(4096)),
    ]
    for shape, make in todo:
        if options.quick and "4096" in shape:
            continue
        for operation in make():
            rows = measure(operation, shape, copy, rounds, seconds)
            figures["rows"] += rows
            show(f"{operation.name} {shape}", rows)
            write(options.json, figures)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
