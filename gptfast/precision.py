"""Which arithmetic a device does well, and the copy of the model that runs in it."""

from __future__ import annotations

import copy
import ctypes
import sys
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .errors import GptfastError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def choose(device: torch.device | str = "cpu", wanted: str = "auto") -> Precision:
    """bf16 where the hardware multiplies matrices in it, else fp32. `wanted` "bf16" or "fp32" overrules."""
    if wanted in ("bf16", "fp32"):
        return Precision(torch.bfloat16 if wanted == "bf16" else torch.float32, "as asked")
    if wanted != "auto":
        raise GptfastError(f'unknown precision {wanted!r}; choose "auto", "bf16" or "fp32"')
    device = torch.device(device)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, f"{torch.cuda.get_device_name(device)} multiplies bf16 matrices")
        return Precision(torch.float32, f"{torch.cuda.get_device_name(device)} has no bf16 matrix units")
    if device.type == "cpu":
        for unit, supported in (("AMX", "_is_amx_tile_supported"), ("AVX512-BF16", "_is_avx512_bf16_supported")):
            if getattr(torch.cpu, supported, lambda: False)():
                return Precision(torch.bfloat16, f"this CPU has {unit}")
        return Precision(torch.float32, "this CPU has neither AMX nor AVX512-BF16")
    return Precision(torch.float32, f"bf16 is not tried on {device.type!r} devices")


class ComputeCopy(Generic[Model]):
    """A copy of an fp32 model in bf16 for the forward and backward; the fp32 parameters stay the truth.

    Autocast casts every fp32 weight at every step and every gradient back, page by fresh page. Here the optimizer
    updates the fp32 master weights and `refresh` rounds them into the copy, once a step into memory that is already
    there; gradients are bf16 and widened once. (Micikevicius et al. 2018, section 3.1.) In fp32 the copy is the model
    itself. Parameters that do not require gradients are rounded once, when the copy is made.
    """

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self.master = model
        self.model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self._masters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._copies: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self._first = True

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy parameters := master parameters, rounded."""
        if self.model is not self.master:
            torch._foreach_copy_(self._copies, self._masters)

    def clear_gradients(self) -> None:
        for parameter in self._copies:
            parameter.grad = None
        self._first = True

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the copy's gradients to the master's in fp32, after each backward; the first since `clear_gradients`
        overwrites.
        """
        if self.model is self.master:
            return
        for master, copied in zip(self._masters, self._copies, strict=True):
            if copied.grad is None:
                continue
            if master.grad is None:
                master.grad = copied.grad.float()
            elif self._first:
                master.grad.copy_(copied.grad)
            else:
                master.grad.add_(copied.grad)
            copied.grad = None
        self._first = False


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step instead of giving it back to the kernel page by page.

    A training step frees and allocates the same gigabytes each time; by default blocks over 32 MB are unmapped at once
    and every page of the next one is faulted in again. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
