"""The ahead-of-time gate: every row of the launch table, compiled without a GPU, must still fit its architecture.

    python -m gptfast.kernels.aot [--arch sm_90] [--slow] [--write]

The kernels' own launch code is called on tensors without memory, with Triton stopped before it would load the result,
so what is compiled is what a call compiles. Printed are registers, spilled bytes, shared memory and which matrix and
copy instructions are used; the exit status is 1 where a kernel spills, takes more shared memory than its architecture
has, or loses an instruction that aot_bounds.json records. --write records anew, after a change that is meant. Rows
that the table says are slower than PyTorch (prefer "sdpa") may spill, take minutes to compile, and are left out without
--slow; windows and packed documents still run there.
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
TMA = ("sm_90", "sm_100")
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Case:
    """A row of the table, and whether a window and documents are used."""

    arch: str
    kernel: str
    dropout: bool
    D: int
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


def report(arch: str, kernel: Any) -> Report:
    if arch.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers, spills = _number(r"\.vgpr_count:\s+(\d+)", text), _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    else:
        text = kernel.asm["ptx"]
        usage = _cubin_usage(kernel.asm["cubin"])
        registers, spills = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)  # spills go to the stack
    found = tuple(name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, text))
    return Report(registers, spills, kernel.metadata.shared, found)


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


# Kernel in the table -> the function that launches it, and the name it is compiled under.
KERNELS: dict[str, tuple[Callable[[Case], None], str]] = {
    "forward": (_attention, "attention_forward"),
    "backward_kv": (_attention, "attention_backward_kv"),
    "backward_q": (_attention, "attention_backward_q"),
    "backward_atomic": (_attention, "attention_backward_kv"),
    "decode": (_decode, "decode_split"),
}


def cases(archs: list[str], slow: bool) -> Iterator[Case]:
    from .launch import TABLE

    for row in json.loads(TABLE.read_text(encoding="utf-8"))["rows"]:
        for bounds in (True,) if row["dropout"] else (False, True):
            if row["arch"] in archs and (slow or row["prefer"] != "sdpa" or row["measured"]):
                shape = {name: row[name] for name in ("arch", "kernel", "dropout", "D", "bytes")}
                slow, pointers = row["prefer"] == "sdpa", not row["tma"] and row["arch"] in TMA and row["bytes"] == 2
                pointers = pointers and row["kernel"] != "decode"
                yield Case(**shape, T=row["T"] or 0, bounds=bounds, slow=slow, pointers=pointers)


def examine(case: Case) -> Report:
    call, name = KERNELS[case.kernel]
    return report(case.arch, compiled(case.arch, lambda: call(case), name)[name])


def complaints(case: Case, got: Report, recorded: list[str] | None) -> Iterator[str]:
    if got.spills and not case.slow:
        yield f"spills {got.spills} bytes"
    if got.shared > SHARED[case.arch]:
        yield f"takes {got.shared} bytes of shared memory of {SHARED[case.arch]}"
    if not {"wgmma", "tcgen05", "mma", "mfma"} & set(got.instructions) and case.bytes == 2:
        yield "uses no matrix instruction"
    if recorded is None and not case.slow:
        yield f"is not in {BOUNDS.name}; record it with --write"
    for name in recorded or ():
        if name not in got.instructions:
            yield f"no longer uses {name}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gptfast.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=list(SHARED), choices=list(SHARED), help="architectures (all)")
    parser.add_argument("--slow", action="store_true", help="also the rows that are left to PyTorch")
    parser.add_argument("--write", action="store_true", help=f"record the instructions used in {BOUNDS.name}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, under which nothing is compiled; unset it")
    bounds = json.loads(BOUNDS.read_text(encoding="utf-8")) if BOUNDS.exists() else {}
    if arguments.write:
        bounds = {name: found for name, found in bounds.items() if name.split()[0] not in arguments.arch}
    todo = list(cases(arguments.arch, arguments.slow))
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
