"""What a result is worth only with: the machine, the versions, the commit, and what the machine reaches at best."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import gc
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptfast import __version__
from gptfast.doctor import cpu
from gptfast.machine import synchronize

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "numpy", "transformers", "tiktoken", "tokenizers", "safetensors", "gigatoken", "fastokens",
    "tuetoken", "flash-attn", "flash-attn-4", "liger-kernel",
)  # fmt: skip
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, its state, the versions of all that is compared, and the commit (GPTFAST_COMMIT where git cannot
    tell).
    """
    name, units = cpu()
    found: dict[str, Any] = {
        "cpu": name, "cores": os.cpu_count(), "units": units, "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("GPTFAST_COMMIT") or _git("rev-parse", "--short", "HEAD"),
        "changed": None if (said := _git("status", "--porcelain", "-uno")) is None else bool(said),
        "versions": {"gptfast": __version__, "python": platform.python_version()},
    }  # fmt: skip
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["versions"][package] = importlib.metadata.version(package)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_gb": gpu.total_memory / 1e9, "multiprocessors": gpu.multi_processor_count}
        found |= {"cuda": torch.version.cuda} | _nvidia_smi(device)
    where = found.get("gpu") or f"{name} {os.cpu_count()} cores"
    found["slug"] = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((?:R|TM)\)", "", where).lower()).strip("-")
    return found


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this file lies in; None outside one."""
    if not (ROOT / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    return None


def _nvidia_smi(device: torch.device) -> dict[str, str]:
    """Driver and clocks as they are found; nothing is changed."""
    names = ("driver_version", *CLOCKS.split(","))
    with contextlib.suppress(OSError, subprocess.SubprocessError, AttributeError):
        which = (
            f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"  # its own numbers know no CUDA_VISIBLE_DEVICES
        )
        query = ["nvidia-smi", which, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        values = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split(",")
        return dict(zip(names, map(str.strip, values), strict=False))
    return {}


def ceilings(device: torch.device, dry: bool = False) -> dict[str, float]:
    """What this machine reaches, the median of 10: "copy" (bytes read and written) and "read" in B/s of the device's
    memory, "host copy" in B/s (of main memory; into a GPU from pinned memory), "matmul bf16" and "matmul fp32" in
    FLOP/s, "launch" in seconds (of one small operation, called one after the other).
    """
    on_gpu = device.type == "cuda"
    n, count = (64, 1 << 16) if dry else (8192, 1 << 29) if on_gpu else (2048, 1 << 26)
    x = torch.randn(count, device=device)
    y = torch.empty_like(x)
    size = x.numel() * x.element_size()
    found = {"copy": 2 * size / _seconds(lambda: y.copy_(x), device), "read": size / _seconds(x.sum, device)}
    host = torch.ones(count, pin_memory=on_gpu)  # pages that were never written would all be one
    found["host copy"] = (size if on_gpu else 2 * size) / _seconds(lambda: y.copy_(host), device)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        found[f"matmul {name}"] = 2 * n**3 / _seconds(functools.partial(torch.mm, a, b), device)
    one = torch.ones(1, device=device)

    def launches() -> None:
        for _ in range(100):
            one.add_(1)

    return found | {"launch": _seconds(launches, device) / 100}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(11):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class Peak:
    """The most memory in use within the block, above what was in use at its start: `bytes`; None where the system does
    not tell. On a CPU the kernel's count of resident pages (Linux), which does not see memory that a process has kept.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: float | None = None
        self.before: int | None = None

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif os.path.exists("/proc/self/clear_refs"):
            with contextlib.suppress(AttributeError):  # glibc: give back what is free, so that it counts when used
                ctypes.CDLL(None).malloc_trim(0)
            with contextlib.suppress(OSError):  # a container may refuse
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
                self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda" and self.before is not None:
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        elif self.before is not None:
            self.bytes = max(0, _status("VmHWM") - self.before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
