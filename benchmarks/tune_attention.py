"""Measure the launch table of attention on this GPU and write its rows (gptfast/kernels/launch_table.json).

    python -m gptfast.benchmarks.tune_attention [--D 64 128] [--T 1024 4096 16384] [--table FILE]

For each kernel, head dimension and length all tiles of CANDIDATES are timed that compile, the best is kept with
`measured` (with TMA, and through pointers for tensors that TMA cannot read), and `prefer` says whether it or PyTorch's
own attention was faster there. Rows of other architectures stay as they are. Run the ahead-of-time gate afterwards: a
row that spills can still be the fastest, but should be looked at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gptfast.kernels import attention_launch as run
from gptfast.kernels import causal_attention
from gptfast.kernels.launch import TABLE, Launch, architecture
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gptfast.files import atomic_path

from .attention import TOKENS

CANDIDATES = {
    "forward": list(itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))),
    "backward_kv": list(itertools.product((32, 64, 128), (64, 128), (4, 8), (1, 2, 3))),
    "backward_q": list(itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3))),
}
CANDIDATES["backward_atomic"] = CANDIDATES["backward_kv"]


def once(function: Callable[[], object], seconds: float) -> float:
    """The median time of a call in ms, the L2 cache cleared before each."""
    from triton.testing import do_bench

    return do_bench(function, warmup=int(seconds * 200), rep=int(seconds * 1000), return_mode="median")


def called(function: Callable[[], object]) -> float:
    function()
    return 0.0


def interleaved(variants: Mapping[str, Callable[..., object]], rounds: int, seconds: float) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in variants.items():
            samples[name].append(once(function, seconds))
    return {name: statistics.median(times) for name, times in samples.items()}


def inputs(D: int, T: int) -> list[torch.Tensor]:
    B = max(2, TOKENS // T)  # 1 would be compiled anew
    return [torch.randn(B, T, 768 // D if D <= 64 else 16, D, device="cuda", dtype=torch.bfloat16) for _ in range(4)]


def best(
    kernel: str,
    dropout: bool,
    tensors: list[torch.Tensor],
    tma: bool,
    share: slice = slice(None),
    compiling: bool = False,
) -> tuple[float, Launch] | None:
    """The fastest launch of one kernel among a share of its candidates, and its time in ms; the other kernels of a
    backward are left out meanwhile. `compiling` calls each once.
    """
    q, k, v, do = tensors
    D = q.shape[-1]
    seed = torch.ones(1, dtype=torch.int64, device=q.device) if dropout else None
    rest = (None, seed, D**-0.5, 0.1 if dropout else 0.0, None)
    o, lse = run.forward(q, k, v, *rest)
    chosen = run.launch_for
    found: tuple[float, Launch] | None = None
    name = {"backward_atomic": "backward_kv"}.get(kernel, kernel)
    others = {"attention_delta", "attention_backward_kv", "attention_backward_q"} - {f"attention_{name}"}

    class Nothing:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: None

    left_out: dict[str, Any] = {other: Nothing() for other in others}
    for BM, BN, warps, stages in CANDIDATES[kernel][share]:
        launch = Launch(BM, BN, warps, stages, tma)

        def pick(x: Any, kind: str, *rest: Any, launch: Launch = launch) -> Launch:
            return launch if kind == kernel else chosen(x, kind, *rest)

        def call() -> None:
            if kernel == "forward":
                run.forward(q, k, v, *rest)
            else:
                run.backward(do, q, k, v, o, lse, None, *rest, kernel != "backward_atomic")

        with mock.patch.object(run, "launch_for", pick):
            try:
                with mock.patch.multiple(run, **left_out):
                    ms = called(call) if compiling else once(call, 0.02)
            except Exception as error:  # does not compile or does not fit: Triton has a class for each reason
                if not compiling:
                    what = f"{kernel} {BM}x{BN} {warps} warps {stages} stages"
                    print(f"  {what}: {type(error).__name__}", file=sys.stderr)
                continue
        if found is None or ms < found[0]:
            found = ms, launch
    return found


def uses_tma() -> tuple[bool, ...]:
    return (True, False) if torch.cuda.get_device_capability()[0] >= 9 and not torch.version.hip else (False,)


def compile_all(flags: list[str]) -> None:
    """All candidates into Triton's cache by a process a core: some 1,100 of them, at a second or two each."""
    cores = os.cpu_count() or 1
    command = [sys.executable, "-m", "gptfast.benchmarks.tune_attention", *flags]
    running = [subprocess.Popen([*command, "--compile", str(i), str(cores)]) for i in range(cores)]
    for process in running:
        process.wait()


def sdpa_times(tensors: list[torch.Tensor], dropout: bool) -> tuple[float, float]:
    """The faster of PyTorch's fused backends, forward and backward, in ms."""
    q, k, v, do = (x.detach().transpose(1, 2) for x in tensors)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    forward, backward = {}, {}
    backends = {"flash": SDPBackend.FLASH_ATTENTION} | ({} if dropout else {"cudnn": SDPBackend.CUDNN_ATTENTION})
    for name, backend in backends.items():
        with sdpa_kernel(backend):
            out = sdpa(q, k, v, is_causal=True, dropout_p=0.1 * dropout)

        def call(backend: Any = backend) -> None:
            with sdpa_kernel(backend), torch.no_grad():
                sdpa(q, k, v, is_causal=True, dropout_p=0.1 * dropout)

        forward[name] = call
        backward[name] = lambda out=out: torch.autograd.grad(out, (q, k, v), do, retain_graph=True)
    return min(interleaved(forward, 3, 0.03).values()), min(interleaved(backward, 3, 0.03).values())


def ours_times(tensors: list[torch.Tensor], dropout: bool, rows: dict[str, Launch]) -> tuple[float, float]:
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    chosen = run.launch_for
    with mock.patch.object(run, "launch_for", lambda x, kind, *rest: rows.get(kind) or chosen(x, kind, *rest)):
        out = causal_attention(q, k, v, dropout_p=0.1 * dropout)
        forward = interleaved(
            {"": lambda: causal_attention(q.detach(), k.detach(), v.detach(), dropout_p=0.1 * dropout)}, 3, 0.03
        )
        backward = interleaved(
            {"": lambda: torch.autograd.grad(out, (q, k, v), tensors[3], retain_graph=True)}, 3, 0.03
        )
    return forward[""], backward[""]


def tune(arch: str, D: int, dropout: bool, T: int, last: bool) -> Iterator[dict[str, Any]]:
    tensors = inputs(D, T)
    found: dict[str, list[tuple[float, Launch]]] = {}
    for kernel in CANDIDATES if not dropout else list(CANDIDATES)[:3]:
        both = (best(kernel, dropout, tensors, use_tma) for use_tma in uses_tma())
        found[kernel] = sorted((x for x in both if x), key=lambda x: x[0])
    ours = ours_times(tensors, dropout, {kernel: options[0][1] for kernel, options in found.items() if options})
    theirs = sdpa_times(tensors, dropout)
    for kernel, options in found.items():
        i = 0 if kernel == "forward" else 1
        prefer = "triton" if ours[i] <= theirs[i] else "torch"
        if options and not options[0][1].tma:
            options = options[:1]  # pointers are faster: they serve all tensors
        for ms, launch in options:
            print(f"{arch} {kernel} D={D} T={T} {ms:.3f} ms {launch}; all {ours[i]:.3f} ms, PyTorch {theirs[i]:.3f} ms")
            yield {
                "arch": arch, "kernel": kernel, "dropout": dropout, "D": D, "bytes": 2, "T": None if last else T,
                "BM": launch.BM, "BN": launch.BN, "warps": launch.warps, "stages": launch.stages, "tma": launch.tma,
                "measured": True, "prefer": prefer,
            }  # fmt: skip


def write(path: Path, new: list[dict[str, Any]]) -> None:
    """Replace the rows of the same architecture, kernel, dropout, head dimension and element size."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("arch", "kernel", "dropout", "D", "bytes"))

    replaced = {key(row) for row in new}
    rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if key(row) not in replaced] + new
    rows.sort(
        key=lambda row: (
            row["arch"],
            row["kernel"],
            row["bytes"],
            row["dropout"],
            row["D"] or 1 << 60,
            row["T"] or 1 << 60,
            not row["tma"],
        )
    )
    with atomic_path(path) as temporary:  # whatever is interrupted here, the kernels find a table
        temporary.write_text('{"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--D", type=int, nargs="*", default=[64, 128], help="head dimensions")
    parser.add_argument(
        "--T", type=int, nargs="*", default=[1024, 4096, 16384], help="lengths; the last row has no end"
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to rewrite")
    parser.add_argument("--compile", type=int, nargs=2, metavar=("I", "N"), help="only compile: each Nth from the Ith")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU: the table is measured on one")
    arch = architecture(torch.device("cuda", 0))
    if options.compile:
        share = slice(options.compile[0], None, options.compile[1])
        for D, dropout, tma in itertools.product(options.D, (False, True), uses_tma()):
            for kernel in CANDIDATES if not dropout else list(CANDIDATES)[:3]:
                best(kernel, dropout, inputs(D, options.T[0]), tma, share, compiling=True)
        return 0
    compile_all(["--D", *map(str, options.D), "--T", str(options.T[0])])
    for D in options.D:
        for dropout in (False, True):
            new = [row for T in options.T for row in tune(arch, D, dropout, T, T == options.T[-1])]
            write(options.table, new)  # after each, so that a run that is cut off keeps what it has
    return 0


if __name__ == "__main__":
    sys.exit(main())
