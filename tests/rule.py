"""The rule of correctness: at most twice the error that PyTorch makes in the same dtype, and a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def tolerance(ref: Tensor) -> float:
    return 2 * (ref + 0.3 - 0.3 - ref).abs().max().item()


def assert_as_good_as_torch(ours: Tensor, torchs: Tensor, ref: Tensor, what: str = "", extra: float = 0.0) -> None:
    """err(ours, reference) <= 2 err(PyTorch in the same dtype, reference) + tolerance, for an fp64 reference.

    `extra` is added where the caller derives an error that PyTorch's way of computing does not have.
    """
    assert ours.shape == ref.shape, f"{what} has shape {list(ours.shape)}, not {list(ref.shape)}"
    if not ref.numel():
        return
    error, allowed = (ours.double() - ref).abs().max(), (torchs.double() - ref).abs().max()
    bound = 2 * allowed + tolerance(ref.to(torchs.dtype) if torchs.dtype != torch.float64 else ref.float()) + extra
    assert error <= bound, f"{what}: {error:.3e} > {bound:.3e}, twice PyTorch's {allowed:.3e} and a tolerance"


def upstream(out: Tensor) -> Tensor:
    """The gradient of an output: the same in all dtypes, and exact in each."""
    numbers = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).bfloat16()
    return numbers.to(out.device, out.dtype)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output and the gradient of each input."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    return outputs_and_gradients(function, inputs)


def outputs_and_gradients(function: Callable[..., Tensor], inputs: Iterable[Tensor]) -> list[Tensor]:
    """As `gradients`, on leaf tensors as they are, strides and offsets included."""
    inputs = list(inputs)
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream(out))]
