"""The device that work runs on, and the speed it can reach."""

from __future__ import annotations

import time

import torch

from .errors import GptfastError


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first of CUDA, MPS and CPU that is there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise GptfastError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise GptfastError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise GptfastError(
            f"device {name!r} is not on this machine ({torch.cuda.device_count()} CUDA devices); use cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise GptfastError(f"device {name!r} is not on this machine; use cpu")
    return device


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOP/s this machine reaches in a square matrix multiplication of random numbers: the best of 5 runs."""
    device = torch.device(device)
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
