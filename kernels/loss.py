"""Cross entropy of rows of logits, its gradient, or both in one kernel with the gradient in the logits' place.

For a row z [V] with target t, and q_v = (1 - e) [v = t] + e / V for label smoothing e:

    L = log sum_v exp(z_v)        loss = L - sum_v q_v z_v + c L^2        (Szegedy 2016; z-loss c: Chowdhery 2022)
    dloss/dz_v = (1 + 2 c L) exp(z_v - L) - q_v

One program walks over a row: once with a running maximum and sum (Milakov & Gimelshein 2018), once more for the
gradient, when the row of 100 KB (V = 50,257 in 16 bits) is still in the L2 cache. Bytes an element moves, at 2 bytes
each: forward 2; backward 4; both in one, as linear_loss.py does with its chunks, 4.

A row whose target is ignored gives a loss and gradient of 0 and is not read; one whose target does not exist gives NaN.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_cross_entropy
from .chunked import reduced
from .launch import accumulator, check_device, on_device, options, rows_launch
from .operator import Operator
from .rows import as_rows, triton_accumulator


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    """-sum_v q_v log softmax(logits)_v + z_loss (log sum exp)^2, fused: logits [N, V], targets int64 [N] -> fp32.

    fp16, bf16 or fp32 logits, computed in fp32; a scalar, or [N] with reduction "none". "mean" is over the targets that
    are not `ignore_index`, and NaN where there are none (their gradient is 0), as torch's is. A target that is neither
    0 .. V - 1 nor ignored raises IndexError on a CPU and gives NaN on a GPU, which would have to be waited for. Raises
    ValueError or TypeError, naming the argument.
    """
    check_cross_entropy(logits, targets, ignore_index, reduction, label_smoothing, z_loss)
    check_device(logits, "logits")
    losses = _cross_entropy(logits, targets, ignore_index, float(label_smoothing), float(z_loss))[0]
    return reduced(losses, targets, ignore_index, reduction)


def launch(
    logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, z_loss: float, *,
    losses: Tensor | None, parts: Tensor | None, gradient: Tensor | None, upstream: Tensor | None, readable: int = 0,
) -> None:  # fmt: skip
    """Writes losses [N] if they are given, and parts [2, N] if they are, the largest logit of a row and log sum exp
    above it; else reads parts. Writes `gradient` [N, V] if that is given, which may be `logits`, scaled by `upstream`
    [N]. `readable` columns of a row of both may be touched (V).
    """
    N, V = logits.shape
    if not N:
        return
    how = rows_launch(logits, "cross_entropy", V)
    with on_device(logits):
        cross_entropy_rows[(N,)](
            logits, targets.contiguous(), losses, parts, gradient, upstream, logits.stride(0),
            0 if gradient is None else gradient.stride(0), 0 if upstream is None else upstream.stride(0),
            readable or V, V, ignore_index, smoothing, z_loss,
            SMOOTH=smoothing > 0, ACC=triton_accumulator(logits),
            BN=min(how.BN, triton.next_power_of_2(V)), **options(how),
        )  # fmt: skip


@triton.jit(do_not_specialize=["ignore_index"])
def cross_entropy_rows(
    logits, targets, losses, parts, gradient, upstream, stride, stride_g, stride_u, W, V, ignore_index,
    smoothing, z_loss, SMOOTH: tl.constexpr, ACC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One row. Loads and stores are masked by W, a multiple of 16 where 16 bytes are to move at once, and what lies
    beyond V is nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    used = target != ignore_index
    logits += row * stride
    lanes = tl.arange(0, BN)
    if losses is not None:
        # Loaded before the barriers of the first walk: the second may put the gradient in its place.
        exists = (target >= 0) & (target < V)
        chosen = tl.load(logits + target, mask=used & exists, other=0.0).to(ACC)
        m = tl.cast(-float("inf"), ACC)
        l = tl.cast(0.0, ACC)  # noqa: E741 - the field's name
        plain_sum = tl.cast(0.0, ACC)
        for start in tl.range(0, tl.where(used, V, 0), BN):
            columns = start + lanes
            z = tl.load(logits + columns, mask=columns < W, other=0.0).to(ACC)
            if SMOOTH:
                plain_sum += tl.sum(tl.where(columns < V, z, 0.0), 0)
            z = tl.where(columns < V, z, -float("inf"))
            m_new = tl.maximum(m, tl.max(z, 0))
            base = tl.where(m_new == -float("inf"), 0.0, m_new)
            l = l * tl.exp(m - base) + tl.sum(tl.exp(z - base), 0)  # noqa: E741
            m = m_new
        log_l = tl.log(l)
        total = m + log_l
        # Not total - chosen: m - chosen has all digits of large logits, and m + log l has not.
        loss = log_l + (1 - smoothing) * (m - chosen) + z_loss * total * total
        if SMOOTH:
            loss += smoothing * (m - plain_sum / V)
        loss = tl.where(exists, loss, float("nan"))
        tl.store(losses + row, tl.where(used, loss, 0.0))
        if parts is not None:
            tl.store(parts + row, tl.where(used, m, 0.0))
            tl.store(parts + tl.num_programs(0) + row, tl.where(used, log_l, 0.0))
    else:
        m = tl.load(parts + row)
        log_l = tl.load(parts + tl.num_programs(0) + row)
        total = m + log_l
    if gradient is not None:
        gradient += row * stride_g
        scale = tl.cast(1.0, ACC)
        if upstream is not None:
            scale = tl.load(upstream + row * stride_u).to(ACC)
        scale = tl.where((target >= 0) & (target < V), scale, float("nan"))
        weight = (1 + 2 * z_loss * total) * scale
        for start in tl.range(0, V, BN):
            columns = start + lanes
            # An ignored row may hold NaN, and is not read. (3.9's interpreter makes no mask of a tensor & a scalar.)
            z = tl.load(logits + columns, mask=tl.where(used, columns < W, False), other=0.0).to(ACC)
            out = tl.exp((z - m) - log_l) * weight
            out -= tl.where(columns == target, (1 - smoothing) * scale, 0.0)
            if SMOOTH:
                out -= smoothing / V * scale
            out = tl.where(tl.where(used, columns < V, False), out, 0.0)
            tl.store(gradient + columns, out.to(gradient.dtype.element_ty), mask=columns < W)


# The operators


def _run(logits: Tensor, targets: Tensor, ignore_index: int, smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
    """The loss of each row, 0 where it is ignored, and what its gradient is made from, fp32 [2, N]."""
    losses, parts = _fake(logits)
    launch(
        as_rows(logits), targets, ignore_index, smoothing, z_loss, losses=losses, parts=parts, gradient=None,
        upstream=None,
    )  # fmt: skip
    return losses, parts


def _run_backward(
    dlosses: Tensor, logits: Tensor, targets: Tensor, parts: Tensor, ignore_index: int, smoothing: float, z_loss: float
) -> Tensor:
    dlogits = logits.new_empty(logits.shape)
    launch(
        as_rows(logits), targets, ignore_index, smoothing, z_loss, losses=None, parts=parts, gradient=dlogits,
        upstream=dlosses,
    )  # fmt: skip
    return dlogits


def _fake(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    N, wide = logits.shape[0], accumulator(logits)
    return logits.new_empty(N, dtype=wide), logits.new_empty(2, N, dtype=wide)


def _fake_backward(dlosses: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


_cross_entropy_backward = Operator("cross_entropy_backward", _run_backward, _fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, *ctx.rest = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dlosses: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dlosses is None:
        return None, None, None, None, None
    return _cross_entropy_backward(dlosses, *ctx.saved_tensors, *ctx.rest), None, None, None, None


_cross_entropy = Operator("cross_entropy", _run, _fake, _save, _gradients)
