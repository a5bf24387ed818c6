"""Measure the launch table of the kernels on rows on this GPU and write its rows (gptfast/kernels/launch_table.json).

    python -m gptfast.benchmarks.tune_rows [--table FILE]

For each kernel and width the tiles, warps and stages of CANDIDATES are timed in bf16, and the fastest is kept with
`measured`. `prefer` says how it stands to PyTorch: "triton" where the operation that PyTorch has a kernel for is faster
in ours, "torch" where even the fused one is slower than PyTorch's several, nothing between. Run the ahead-of-time gate
afterwards: a row that spills can still be the fastest, but should be looked at.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gptfast.kernels import activation, embed, loss, norm
from gptfast.kernels.launch import TABLE, Launch, architecture, choose

from .rows import embeddings, gelus, losses, norms
from .suite import Call, Case, Setup
from .tune_attention import interleaved, once, write

MODULES = (norm, activation, embed, loss)
CANDIDATES: dict[str, list[tuple[int, int, int, int]]] = {  # BM, BN (0: the width), warps, stages
    "norm_forward": list(itertools.product((1, 2, 4), (0,), (1, 2, 4, 8, 16, 32), (1,))),
    "norm_backward": list(itertools.product((1, 2), (0,), (1, 2, 4, 8, 16, 32), (1, 2, 3))),
    "gelu_forward": list(itertools.product((2, 4, 8), (256, 512, 1024), (4, 8), (1,))),
    "gelu_backward": list(itertools.product((4, 8, 16), (128, 256, 512), (4, 8), (1,))),
    "embedding_forward": list(itertools.product((1, 2, 4, 8), (256, 512, 1024), (2, 4, 8), (1,))),
    "embedding_backward": list(itertools.product((8, 16, 32), (64, 128, 256), (2, 4, 8), (1,))),
    "cross_entropy": list(itertools.product((1,), (2048, 4096, 8192, 16384), (4, 8, 16, 32), (1, 2))),
}
# Kernel -> the width of a row of the table (None: any), and the operations that it is measured in: one that PyTorch has
# a kernel for, if there is one, and the fused one.
PLANS: list[tuple[str, str, int | None, Callable[[Setup], Iterator[Case]]]] = [
    *(("norm", "layer_norm", width, lambda setup, n=rows, c=C: itertools.islice(norms(setup, n, c), 4))
      for width, rows, C in ((1024, 32768, 768), (2048, 16384, 1600), (4096, 8192, 4096), (8192, 4096, 8192))),
    ("gelu", "gelu", None, lambda setup: gelus(setup, 32768, 3072)),
    ("embedding", "", None, lambda setup: embeddings(setup, 32, 1024, 768, 50304)),
    ("cross_entropy", "", None, lambda setup: losses(setup, 4096, 50304)),
]  # fmt: skip


def with_launch(kernel: str, launch: Launch | None, call: Callable[[], Any]) -> Any:
    """`call` with this launch for the kernel; None leaves what the table says."""

    def pick(x: torch.Tensor, name: str, width: int) -> Launch:
        if launch is not None and name == kernel:
            return launch
        return choose(architecture(x.device), name, False, width, x.element_size(), 0)

    patches = [mock.patch.object(module, "rows_launch", pick) for module in MODULES]
    try:
        for patch in patches:
            patch.start()
        return call()
    finally:
        for patch in patches:
            patch.stop()


def prepared(case: Case, name: str) -> Call:
    return case.forms[name](*case.inputs())


def tune(arch: str, kernel: str, width: int | None, cases: list[Case], single: str) -> dict[str, Any]:
    """A row of the table; `cases` are all of the kernel's direction, the last one the fused one."""
    call = prepared(cases[-1], "gptfast")
    best: tuple[float, Launch] | None = None
    for BM, BN, warps, stages in CANDIDATES[kernel]:
        launch = Launch(BM, BN or width or 0, warps, stages)
        try:
            ms = with_launch(kernel, launch, lambda: once(call, 0.02))
        except Exception:  # does not compile, or takes more than there is
            continue
        if best is None or ms < best[0]:
            best = ms, launch
    if best is None:
        raise RuntimeError(f"{kernel}: no candidate runs")
    launch = best[1]
    prefer, told = "torch", []
    for case in cases:
        forms = {name: prepared(case, name) for name in case.forms}
        times = with_launch(kernel, launch, functools.partial(interleaved, forms, 3, 0.03))
        faster = times["gptfast"] <= times["eager"]
        told.append(f"{case.name} {'faster' if faster else 'slower'} than PyTorch")
        if faster and prefer != "triton":
            prefer = "triton" if case.name.split()[0] == single else ""
    print(f"{arch} {kernel} {width or ''} {best[0]:.3f} ms {launch}; {', '.join(told)}", flush=True)
    return {
        "arch": arch, "kernel": kernel, "dropout": False, "D": width, "bytes": 2, "T": None, "BM": launch.BM,
        "BN": launch.BN, "warps": launch.warps, "stages": launch.stages, "tma": False, "measured": True,
        "prefer": prefer,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to rewrite")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU: the table is measured on one")
    setup = Setup(torch.device("cuda", 0))
    arch = architecture(setup.device)
    for name, single, width, make in PLANS:
        cases = list(make(setup))
        kernels = {"cross_entropy": {"cross_entropy": "forward"}}.get(
            name, {f"{name}_forward": "forward", f"{name}_backward": "backward"}
        )
        new = [
            tune(arch, kernel, width, [case for case in cases if case.name.endswith(direction)], single)
            for kernel, direction in kernels.items()
        ]
        write(options.table, new)  # after each, so that a run that is cut off keeps what it has
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
