"""Linear cross entropy in chunks of rows, so that [N, V] logits are never held: what its Triton and ATen forms share.

    z = x W^T      loss_n = f(z_n)      dz = df/dz      dx = dz W      dW = sum over chunks of dz^T x, in fp32

A chunk of logits is made, turned into its gradient where it lies, and used; the next takes its place. Three matrix
products, as with all logits at once. Gradients are of the sum of the losses, made in the forward, and scaled when the
backward knows by what, so that 16 bits lose nothing to a division by N. Where each row has a scale of its own
(reduction "none"), or to hold no gradients meanwhile (recompute), the backward makes the logits again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .operator import Operator, no_autocast
from .reference import check_reduction

# Logits held at once. On a GPU 2,560 rows of 50,304 in 16 bits: with dW in fp32 and dx, 0.46 GB at B = 32, T = 1,024.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 256 << 20}
FP16_SCALE = 1024.0  # of a chunk's gradient in fp16: probabilities of 1 / V are below its normal numbers
BLOCK = 4096  # rows of W whose gradient a CPU makes at once: its temporary copies are 12 MB at C = 768

# logits [n, V], targets [n], ignore_index, label_smoothing, z_loss -> losses [n] are written where they are given; with
# `gradients` logits become theirs, scaled by upstream [n] where that is given.
Step = Callable[..., None]


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Of losses [N], 0 where ignored, or their sum: themselves, their sum, or their mean over the targets that count,
    which is NaN with a gradient of 0 if none does.
    """
    if reduction == "none":
        return losses
    total = losses.sum() if losses.dim() else losses
    if reduction == "sum":
        return total
    count = (targets != ignore_index).sum()
    return (total / count.clamp(min=1)).where(count > 0, torch.nan)


def chunk_rows(N: int, V: int, x: Tensor) -> int:
    """Rows of logits held at once, N in equal parts; on a GPU a multiple of 128, a tile of its matrix products."""
    bytes_held = CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cuda"])
    parts = max(1, -(-N * V * x.element_size() // bytes_held))
    rows = max(1, -(-N // parts))
    return rows if x.device.type == "cpu" else -(-rows // 128) * 128


class ChunkedCrossEntropy:
    """The three operators of one `step`: the summed loss with its gradients, the losses alone, and their backward."""

    def __init__(self, name: str, step: Step) -> None:
        def chunks(
            x: Tensor, weight: Tensor, targets: Tensor, options: tuple[Any, ...], upstream: Tensor | None,
            losses: Tensor | None, needs_x: bool, needs_w: bool,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            """Fills losses [N]; returns dx in x's dtype and dW in fp32, scaled by upstream [N]; of no elements what is
            not needed.
            """
            (N, C), V = x.shape, weight.shape[0]
            dx = x.new_empty((N, C) if needs_x else 0)
            dw = x.new_zeros((V, C) if needs_w else 0, dtype=torch.promote_types(x.dtype, torch.float32))
            rows = chunk_rows(N, V, x)
            # Rows that start at multiples of 128 bytes are read 16 bytes at a time, whatever V is.
            width = V if x.device.type == "cpu" else -(-V // 64) * 64
            buffer = x.new_empty(min(rows, N), width)[:, :V]
            with no_autocast(x.device):  # the backward may be called inside one
                for start in range(0, N, rows):
                    part = slice(start, min(start + rows, N))
                    logits = buffer[: part.stop - start]
                    torch.mm(x[part], weight.T, out=logits)
                    step(
                        logits, targets[part], *options, losses=None if losses is None else losses[part],
                        gradients=needs_x or needs_w, upstream=None if upstream is None else upstream[part],
                    )  # fmt: skip
                    if needs_x:
                        torch.mm(logits, weight, out=dx[part])
                    if needs_w:
                        _accumulate(dw, logits, x[part])
            return dx, dw

        def run(
            x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, smoothing: float, z_loss: float,
            needs_x: bool, needs_w: bool,
        ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
            losses = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
            upstream = losses.new_full((1,), FP16_SCALE).expand(len(x)) if x.dtype == torch.float16 else None
            options = (ignore_index, smoothing, z_loss)
            dx, dw = chunks(x, weight, targets, options, upstream, losses, needs_x, needs_w)
            return losses.sum(), dx, dw

        def run_losses(
            x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, smoothing: float, z_loss: float
        ) -> Tensor:
            losses = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
            chunks(x, weight, targets, (ignore_index, smoothing, z_loss), None, losses, False, False)
            return losses

        def run_backward(
            dlosses: Tensor, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, smoothing: float,
            z_loss: float, needs_x: bool, needs_w: bool,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            options = (ignore_index, smoothing, z_loss)
            dx, dw = chunks(x, weight, targets, options, dlosses, None, needs_x, needs_w)
            return dx, dw.to(weight.dtype)

        self.backward = Operator(f"{name}_losses_backward", run_backward, _fake_backward)
        self.losses = Operator(f"{name}_losses", run_losses, _fake_losses, _save, self._recompute)
        self.sum = Operator(name, run, _fake_sum, _save_gradients, _scale_gradients)

    def __call__(
        self, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, reduction: str, smoothing: float,
        z_loss: float, recompute: bool,
    ) -> Tensor:  # fmt: skip
        check_reduction(reduction)
        options = (ignore_index, float(smoothing), float(z_loss))
        gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if gradients and not recompute and reduction != "none":
            total = self.sum(x, weight, targets, *options, x.requires_grad, weight.requires_grad)[0]
        else:
            total = self.losses(x, weight, targets, *options)
        return reduced(total, targets, ignore_index, reduction)

    def _recompute(self, ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_w, *_ = ctx.needs_input_grad
        dx, dw = self.backward(dlosses, *ctx.saved_tensors, *ctx.options, needs_x, needs_w)
        return dx if needs_x else None, dw if needs_w else None, None, None, None, None


def _accumulate(dw: Tensor, dz: Tensor, x: Tensor) -> None:
    """dw += dz^T x, in fp32."""
    if dw.dtype == x.dtype:
        dw.addmm_(dz.T, x)
    elif x.device.type == "cuda" and not torch.version.hip:  # nothing else multiplies 16 bits into fp32
        torch.addmm(dw, dz.T, x, out_dtype=dw.dtype, out=dw)
    else:
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype  # a sum over rows may be beyond fp16
        for start in range(0, dw.shape[0], BLOCK):
            dw[start : start + BLOCK] += dz[:, start : start + BLOCK].T.to(wide) @ x.to(wide)


def _scaled(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x * scale, a scalar in fp32, rounded once; a CPU makes no wider copy of all of it."""
    scale = scale.view(1, 1)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.mul(x, scale, out=torch.empty_like(x, dtype=dtype))  # cast as it is stored
    out = torch.empty_like(x, dtype=dtype)
    for source, target in zip(x.split(BLOCK), out.split(BLOCK), strict=True):
        target.copy_(source * scale)
    return out


def _fake_sum(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw = _fake_backward(x, x, weight, *rest)
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((), dtype=wide), dx, dw.to(wide)


def _fake_losses(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_backward(dlosses: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, needs_x, needs_w = rest
    return x.new_empty(x.shape if needs_x else 0), weight.new_empty(weight.shape if needs_w else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.options = *inputs[:3], inputs[3:]
    ctx.save_for_backward(*tensors)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.dtype = inputs[1].dtype
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 8
    if grad is not None:
        dx, dw = ctx.saved_tensors
        grad = grad / FP16_SCALE if dx.dtype == torch.float16 else grad
        for i, (gradient, dtype) in enumerate(((dx, dx.dtype), (dw, ctx.dtype))):
            if ctx.needs_input_grad[i]:
                gradients[i] = _scaled(gradient, grad, dtype)
    return tuple(gradients)
