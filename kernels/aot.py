"""The ahead-of-time gate: every row of the launch table, compiled without a GPU, must still fit its architecture.

    python -m gptfast.kernels.aot [--arch sm_90] [--kernel forward] [--slow] [--write]

The kernels' own launch code is called on tensors without memory, with Triton stopped before it would load the result,
so what is compiled is what a call compiles. Printed are registers, spilled bytes, shared memory and which matrix and
copy instructions are used, for kernels on rows also whether they move 16 bytes at a time and need no barrier; the exit
status is 1 where a kernel spills, takes more shared memory than its architecture has, or loses what aot_bounds.json
records. --write records anew, after a change that is meant. Rows that the table says are slower than PyTorch (prefer
"torch") may spill, take minutes to compile, and are left out without --slow; windows and packed documents still run
there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

BOUNDS = Path(__file__).with_name("aot_bounds.json")
# Bytes of shared memory that a block may have
SHARED = {"sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
INSTRUCTIONS = {  # name in the report -> what the assembly holds
    "wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma": r"\bmma\.sync", "mfma": r"v_mfma",
    "tma": r"cp\.async\.bulk\.tensor", "cp.async": r"cp\.async\.c[ag]",
}  # fmt: skip
ROW_INSTRUCTIONS = {
    "16 bytes": r"ld\.global[.\w:]*\.(v4\.b32|v2\.b64)|cp\.async\.c[ag]\S* .*, 0x10|_load_(dwordx4|b128)",
    "barrier": r"bar\.sync|s_barrier",
}
TMA = ("sm_90", "sm_100")
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Case:
    """A row of the table, and whether a window and documents are used."""

    arch: str
    kernel: str
    dropout: bool
    D: int  # or the width of a row
    bytes: int
    T: int  # the longest sequence of the row; 0 for any
    bounds: bool
    slow: bool = False  # the dispatch prefers PyTorch's own to this row, which may spill
    pointers: bool = False  # tensors that TMA cannot read

    def __str__(self) -> str:
        words = [self.arch, self.kernel, f"D={self.D}", f"{self.bytes * 8} bit", f"T<={self.T}" if self.T else ""]
        words += [name for name in ("dropout", "bounds", "pointers") if getattr(self, name)]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Report:
    registers: int
    spills: int  # bytes
    shared: int  # bytes
    instructions: tuple[str, ...]
    threads: int = 32


def _target(arch: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)


class _Driver:
    """What Triton asks its driver before it compiles."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return _target(self.arch)


def compiled(arch: str, call: Callable[[], object], only: str | None = None) -> dict[str, Any]:
    """The kernels that `call` would launch on `arch` (all, or the one named), compiled and not launched."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from . import launch

    kernels: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if only not in (None, self.__name__):
            return None
        self.device_caches.clear()  # they go by device number, which is 0 on each architecture
        kernels[self.__name__] = kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        return kernel

    driver.set_active(_Driver(arch))
    hip = "6.0" if arch.startswith("gfx") else None  # the version of HIP that torch would have
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(launch, "architecture", lambda _: arch),
        mock.patch.object(torch.version, "hip", hip),
    ):
        call()
    return kernels


def report(arch: str, kernel: Any, rows: bool = False) -> Report:
    if arch.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers, spills = _number(r"\.vgpr_count:\s+(\d+)", text), _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    else:
        text = kernel.asm["ptx"]
        usage = _cubin_usage(kernel.asm["cubin"])
        registers, spills = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)  # spills go to the stack
    wanted = INSTRUCTIONS | (ROW_INSTRUCTIONS if rows else {})
    found = tuple(name for name, pattern in wanted.items() if re.search(pattern, text))
    if rows:
        found = tuple(name for name in found if name != "barrier") + (() if "barrier" in found else ("no barrier",))
    threads = kernel.metadata.num_warps * _target(arch).warp_size
    return Report(registers, spills, kernel.metadata.shared, found, threads)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's report does not hold {pattern!r}: {text[:200]!r}")
    return int(found[1])


def _cubin_usage(cubin: bytes) -> str:
    """What the disassembler that comes with Triton says of a kernel's resources."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout


def _attention(case: Case) -> None:
    from . import attention_launch as run

    T = case.T or 4096
    q, k, v, do = torch.empty(4, 2, T, 12, case.D + case.pointers, dtype=DTYPES[case.bytes], device="meta")
    q, k, v, do = (x[..., : case.D] for x in (q, k, v, do))
    bounds = seed = window = None
    if case.bounds:
        bounds, window = torch.empty(2, 2, T, dtype=torch.int32, device="meta"), 256
    if case.dropout:
        seed = torch.empty(1, dtype=torch.int64, device="meta")
    rest = (bounds, seed, 0.125, 0.1 if case.dropout else 0.0, window)
    if case.kernel == "forward":
        run.forward(q, k, v, *rest)
    else:
        lse = torch.empty(2, 12, T, device="meta")
        run.backward(do, q, k, v, do, lse, None, *rest, case.kernel != "backward_atomic")


def _decode(case: Case) -> None:
    from .decode import forward

    S = case.T or 4096
    q, k, v = (torch.empty(2, T, 12, case.D, dtype=DTYPES[case.bytes], device="meta") for T in (1, S, S))
    lengths = torch.empty(2, dtype=torch.int32, device="meta")
    forward(q, k, v, lengths, 0.125, 256 if case.bounds else None)


def _tensors(case: Case, rows: int) -> list[Any]:
    """x, dy, residual and its gradient [N, C]; a weight and a bias [C]; and the seed of dropout."""
    matrices = torch.empty(4, rows, case.D, dtype=DTYPES[case.bytes], device="meta").unbind(0)
    vectors = torch.empty(2, case.D, dtype=DTYPES[case.bytes], device="meta").unbind(0)
    return [*matrices, *vectors, torch.empty(1, dtype=torch.int64, device="meta")]


def _norm(case: Case) -> None:
    """With the residual, dropout and all gradients: what holds the most in registers."""
    from . import norm

    x, dy, residual, ds, weight, bias, seed = _tensors(case, 8192)
    statistics = torch.empty(8192, device="meta")
    if case.kernel == "norm_forward":
        norm._forward(x, residual, weight, bias, seed, 1e-5, 0.1)
    else:
        norm._backward(dy, ds, x, weight, statistics, statistics, seed, 0.1, x.dtype, True)


def _gelu(case: Case) -> None:
    from . import activation

    x, dy, _, _, _, bias, _ = _tensors(case, 8192)
    if case.kernel == "gelu_forward":
        activation._forward(x, bias, True)
    else:
        activation._backward(dy, x, bias, True, True)


def _embedding(case: Case) -> None:
    from . import embed

    wte, _, wpe, _, _, _, seed = _tensors(case, 1024)
    idx = torch.empty(8, 1024, dtype=torch.int64, device="meta")
    if case.kernel == "embedding_forward":
        embed._forward(idx, wte, wpe, seed, 0.1, 0)
    else:
        dx = torch.empty(8, 1024, case.D, dtype=wte.dtype, device="meta")
        embed._backward(dx, idx, seed, 0.1, 0, 1024, 1024)


def _cross_entropy(case: Case) -> None:
    from . import loss

    logits, targets = _tensors(case, 64)[0], torch.empty(64, dtype=torch.int64, device="meta")
    losses, upstream = torch.empty(2, 64, device="meta")
    outputs = {"losses": losses, "parts": torch.empty(2, 64, device="meta"), "gradient": logits}
    loss.launch(logits, targets, -100, 0.1, 1e-4, **outputs, upstream=upstream, readable=case.D)


# Kernel in the table -> the function that launches it, and the name it is compiled under.
KERNELS: dict[str, tuple[Callable[[Case], None], str]] = {
    "forward": (_attention, "attention_forward"),
    "backward_kv": (_attention, "attention_backward_kv"),
    "backward_q": (_attention, "attention_backward_q"),
    "backward_atomic": (_attention, "attention_backward_kv"),
    "decode": (_decode, "decode_split"),
    "norm_forward": (_norm, "norm_forward"),
    "norm_backward": (_norm, "norm_backward"),
    "gelu_forward": (_gelu, "gelu_forward"),
    "gelu_backward": (_gelu, "gelu_backward"),
    "embedding_forward": (_embedding, "embedding_forward"),
    "embedding_backward": (_embedding, "token_sums"),
    "cross_entropy": (_cross_entropy, "cross_entropy_rows"),
}
# The width of GPT-2's rows where the table says no other: of the kernels on rows, which have one case each.
ROWS = {"norm": 768, "gelu": 3072, "embedding": 768, "cross": 50304}


def _on_rows(kernel: str) -> bool:
    return kernel.split("_")[0] in ROWS


def cases(archs: list[str], kernels: list[str], slow: bool) -> Iterator[Case]:
    from .launch import TABLE

    for row in json.loads(TABLE.read_text(encoding="utf-8"))["rows"]:
        if row["arch"] not in archs or row["kernel"] not in kernels:
            continue
        left = row["prefer"] == "torch"
        if left and not slow and not row["measured"]:
            continue
        shape = {name: row[name] for name in ("arch", "kernel", "dropout", "D", "bytes")}
        if _on_rows(row["kernel"]):
            shape["D"] = row["D"] or ROWS[row["kernel"].split("_")[0]]
            yield Case(**shape, T=0, bounds=False, slow=left)
            continue
        pointers = not row["tma"] and row["arch"] in TMA and row["bytes"] == 2 and row["kernel"] != "decode"
        for bounds in (True,) if row["dropout"] else (False, True):
            yield Case(**shape, T=row["T"] or 0, bounds=bounds, slow=left, pointers=pointers)


def examine(case: Case) -> Report:
    call, name = KERNELS[case.kernel]
    return report(case.arch, compiled(case.arch, lambda: call(case), name)[name], _on_rows(case.kernel))


def complaints(case: Case, got: Report, recorded: list[str] | None) -> Iterator[str]:
    if got.spills and not case.slow:
        yield f"spills {got.spills} bytes"
    if got.threads > 1024:
        yield f"has {got.threads} threads, and a block 1,024 at most"
    if got.shared > SHARED[case.arch]:
        yield f"takes {got.shared} bytes of shared memory of {SHARED[case.arch]}"
    if _on_rows(case.kernel):
        if "16 bytes" not in got.instructions:
            yield "does not load 16 bytes at a time"
    elif not {"wgmma", "tcgen05", "mma", "mfma"} & set(got.instructions) and case.bytes == 2:
        yield "uses no matrix instruction"
    if recorded is None and not case.slow:
        yield f"is not in {BOUNDS.name}; record it with --write"
    for name in recorded or ():
        if name not in got.instructions:
            yield f"no longer uses {name}" if name != "no barrier" else "meets at a barrier, as it did not"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gptfast.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=list(SHARED), choices=list(SHARED), help="architectures (all)")
    parser.add_argument("--kernel", nargs="*", default=list(KERNELS), choices=list(KERNELS), help="kernels (all)")
    parser.add_argument("--slow", action="store_true", help="also the rows that are left to PyTorch")
    parser.add_argument("--write", action="store_true", help=f"record the instructions used in {BOUNDS.name}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, under which nothing is compiled; unset it")
    bounds = json.loads(BOUNDS.read_text(encoding="utf-8")) if BOUNDS.exists() else {}
    if arguments.write:
        again = {(arch, kernel) for arch in arguments.arch for kernel in arguments.kernel}
        bounds = {name: found for name, found in bounds.items() if tuple(name.split()[:2]) not in again}
    todo = list(cases(arguments.arch, arguments.kernel, arguments.slow))
    print(f"{'':44} {'registers':>9} {'spills':>6} {'shared':>7}  instructions")
    bad = 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for case, got in zip(todo, pool.map(examine, todo), strict=True):
            if arguments.write:
                bounds[str(case)] = list(got.instructions)
            wrong = list(complaints(case, got, bounds.get(str(case))))
            bad += bool(wrong)
            line = f"{case!s:44} {got.registers:9} {got.spills:6} {got.shared:7}  {' '.join(got.instructions)}"
            print(line + "".join(f"\n    error: {case} {text}" for text in wrong), flush=True)
    if arguments.write:
        BOUNDS.write_text(json.dumps(bounds, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(todo)} configurations, {bad} with an error")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
