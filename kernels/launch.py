"""How kernels are launched: which device a tensor is on, and the checked-in table of tile sizes.

No kernel is tuned when it is called. `launch_table.json` is written by gptfast.benchmarks.tune_* on a GPU; a row
that no GPU has measured holds what the ahead-of-time report shows to fit (gptfast.kernels.aot), and says so.
"""

from __future__ import annotations

import functools
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRET: bool = triton.knobs.runtime.interpret
TABLE = Path(__file__).with_name("launch_table.json")
# Without rows of its own, an architecture uses those of the first of these that it has: its own generation, then older.
NEAREST = {
    "sm_80": ("sm_80",), "sm_86": ("sm_89", "sm_80"), "sm_89": ("sm_89",), "sm_90": ("sm_90",), "sm_100": ("sm_100",),
    "sm_103": ("sm_100",), "sm_120": ("sm_89",), "gfx942": ("gfx942",), "gfx950": ("gfx942",),
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One row: tiles of BM queries (or rows) and BN keys (or columns), warps, pipeline stages, and whether by TMA."""

    BM: int
    BN: int
    warps: int
    stages: int
    tma: bool = False
    measured: bool = False  # on a GPU
    prefer: str = ""  # "torch" where PyTorch's own is faster (measured, or the row spills), "triton" where it was not


# Small tiles make small tests cross many of them.
INTERPRETED = {False: Launch(32, 32, 4, 1), True: Launch(32, 32, 4, 1, tma=True)}
INTERPRETED_ROWS = Launch(4, 64, 4, 1)


@functools.cache
def architecture(device: torch.device) -> str:
    """sm_90, gfx942, ...: the name of a device in the table."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; an H100's number in the interpreter and the ahead-of-time report, which have none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def accumulator(x: Tensor) -> torch.dtype:
    """Of sums and statistics: fp32, and fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)


@functools.cache
def table() -> dict[tuple[str, str, bool, int, int], list[tuple[int, Launch]]]:
    """(architecture, kernel, dropout, D, bytes an element) -> [(longest T, launch)], TMA first.

    D is the largest head dimension of attention, or the largest width of a kernel on rows, which knows no T.
    """
    rows: dict[tuple[str, str, bool, int, int], list[tuple[int, Launch]]] = {}
    for row in json.loads(TABLE.read_text(encoding="utf-8"))["rows"]:
        row["D"] = row["D"] or 1 << 62
        key = tuple(row.pop(name) for name in ("arch", "kernel", "dropout", "D", "bytes"))
        rows.setdefault(key, []).append((row.pop("T") or 1 << 62, Launch(**row)))
    for row in rows.values():
        row.sort(key=lambda x: (x[0], not x[1].tma))
    return rows


@functools.cache
def choose(arch: str, kernel: str, dropout: bool, D: int, size: int, T: int, aligned: bool = True) -> Launch:
    """The row for D (as in `table`), elements of `size` bytes and T keys; without `aligned`, one that needs no TMA."""
    names = NEAREST.get(arch) or (("gfx942",) if arch.startswith("gfx") else ("sm_80",))
    for name in names:
        for drop in (True, False) if dropout else (False,):
            for width in sorted(key[3] for key in table() if key == (name, kernel, drop, key[3], size)):
                for longest, launch in table()[name, kernel, drop, width, size]:
                    if D <= width and T <= longest and (aligned or not launch.tma):
                        return launch
    raise NotImplementedError(f"{TABLE.name} has no row for {arch}, {kernel}, width {D}, {size} bytes")


def launch_for(x: Tensor, kernel: str, D: int, T: int, dropout: bool = False, aligned: bool = True) -> Launch:
    """The launch for tensors like x; in the interpreter, small tiles. `aligned`: TMA can read them."""
    if INTERPRET:
        return INTERPRETED[x.dtype == torch.float16 and aligned]
    return choose(architecture(x.device), kernel, dropout, D, x.element_size(), T, aligned)


def rows_launch(x: Tensor, kernel: str, width: int) -> Launch:
    """The launch of a kernel on rows of `width`, for tensors like x."""
    return INTERPRETED_ROWS if INTERPRET else choose(architecture(x.device), kernel, False, width, x.element_size(), 0)


def options(launch: Launch) -> dict[str, Any]:
    """What Triton is told beside the tiles. A multiply and an add become one FMA by our word, not by its default, which
    Triton 3.10 turns off.
    """
    return {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}


def check_device(x: Tensor, name: str) -> None:
    """Raise where no Triton kernel can run on x."""
    if INTERPRET:
        if x.dtype == torch.bfloat16:
            raise TypeError(
                f"{name} is bfloat16, which Triton's interpreter computes wrongly (tl.dot gives garbage); "
                "use float16 or float32 under TRITON_INTERPRET=1"
            )
    elif x.device.type == "cuda" and x.dtype == torch.float64:
        raise TypeError(f"{name} is float64, which runs in Triton's interpreter only; use float32, or gptfast.ops")
    elif x.device.type != "cuda":
        raise ValueError(
            f"{name} is on {x.device}, where Triton does not run; move it to a GPU, set TRITON_INTERPRET=1 before "
            "Python starts to run the kernel in the interpreter, or call gptfast.ops, which picks what runs there"
        )


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Where x is not on the current GPU, makes its own the current one: Triton launches there."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def tma_fits(*tensors: Tensor) -> bool:
    """Whether the tensor memory accelerator can read them: 16-byte aligned start and strides, none of them zero."""
    return all(
        x.data_ptr() % 16 == 0 and all(stride > 0 and stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1])
        for x in tensors
    )
