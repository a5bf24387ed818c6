"""Cross entropy of x W^T without the logits in memory: the chunks of chunked.py, their rows by the kernel of loss.py.

At 2 bytes each, an element of the [N, V] logits is written once by its matrix product, read and overwritten by its
gradient once by the kernel, and read twice by the products that use it; the plain way also holds an fp32 copy, the
softmax and both their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_linear_cross_entropy
from .chunked import ChunkedCrossEntropy
from .launch import check_device
from .loss import launch
from .operator import autocast


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, z_loss: float = 0.0, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """`cross_entropy(x @ weight.T, targets, ...)` in chunks: x [N, C], weight [V, C], targets int64 [N] -> fp32.

    x and weight of one dtype: fp16, bf16 or fp32. The loss and the gradients by x and weight are made together, dW
    summed in fp32; logits are rounded to x's dtype, as x @ weight.T is. `recompute` holds nothing for the backward but
    the inputs, and makes the logits again there; so does reduction "none". Nothing waits for the device. Targets,
    reductions and errors are as in `cross_entropy`.
    """
    x, weight = autocast(x, weight)
    check_linear_cross_entropy(x, weight, targets, ignore_index, reduction, label_smoothing, z_loss)
    check_device(x, "x")
    return _chunked(x, weight, targets, ignore_index, reduction, label_smoothing, z_loss, recompute)


def _step(
    logits: Tensor, targets: Tensor, *options: Any, losses: Tensor | None, gradients: bool, upstream: Tensor | None
) -> None:
    if losses is None:  # the kernel leaves them out only where it is given what its gradient is made from
        losses = torch.empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    launch(
        logits, targets, *options, losses=losses, parts=None, gradient=logits if gradients else None,
        upstream=upstream, readable=logits.stride(0),
    )  # fmt: skip


_chunked = ChunkedCrossEntropy("linear_cross_entropy", _step)
