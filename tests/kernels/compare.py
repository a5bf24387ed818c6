"""What the tests of kernels on rows share: outputs and every gradient of an operation, by the error rule."""

from __future__ import annotations

import math

import torch
from gptfast.kernels import reference
from rule import assert_as_good_as_torch, upstream

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA


def numbers(*shape, dtype=torch.float32, seed=0):
    """A leaf of normal numbers."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype).requires_grad_()


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def leaf(x):
    """A view as a leaf, strides and offset as they are."""
    return x.detach().requires_grad_()


def results(function, inputs):
    """The outputs, and the gradient of each input that wants one; always the same dropout."""
    torch.manual_seed(3)
    out = function(*inputs)
    outputs = out if isinstance(out, tuple) else (out,)
    given = [upstream(o).flip(*range(o.dim())) if i else upstream(o) for i, o in enumerate(outputs)]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, wanted, given)]


def check(function, peer, twin, inputs, extra=None):
    """`function` of the inputs against `twin` in fp64, with the error of `peer` in the inputs' dtypes allowed twice.

    Four roundings of fp32 of the largest number are allowed beside, 2^-24 each: PyTorch fuses some, and the largest of
    its errors on a few numbers can be lucky. `extra` holds more, which the caller derives, by name ("gradient 0").
    """
    ours = results(function, inputs)
    theirs = results(peer, [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs])
    ref = results(twin, [x.detach().double().requires_grad_(x.requires_grad) for x in inputs])
    outputs = len(ref) - sum(x.requires_grad for x in inputs)
    for i, triple in enumerate(zip(ours, theirs, ref, strict=True)):
        what = f"output {i}" if i < outputs else f"gradient {i - outputs}"
        roundings = 2**-22 * triple[2].abs().max().item() if triple[2].numel() else 0.0
        assert_as_good_as_torch(*triple, what, roundings + (extra or {}).get(what, 0.0))
    return ours


def dropped(x, p):
    """Dropout in x's dtype, by the reference's mask, of the next seed."""
    if not p:
        return x
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=x.device)
    kept = reference.row_dropout_mask(seed, math.prod(x.shape[:-1]), x.shape[-1], p).view(x.shape)
    return x * kept * (65536 / (65536 - reference.dropout_threshold(p)))


def layouts(*shape, dtype=torch.float32):
    """The same shape with strides of its own: name -> leaf [..., C]."""
    *rest, C = shape
    torch.manual_seed(0)

    def make(*shape):
        return torch.randn(shape, device=DEVICE).to(dtype)

    views = {
        "padded rows": make(*rest, C + 5)[..., :C],
        "odd start": make(math.prod(shape) + 1)[1:].view(shape),
        "transposed": make(*reversed(shape)).permute(*reversed(range(len(shape)))),
        "every other": make(*rest, 2 * C)[..., ::2],
        "every third row": make(*rest[:-1], 3 * rest[-1], C)[..., ::3, :],
        "one row for all": make(*rest[:-1], 1, C).expand(shape),
        "one number for all": make(1).expand(shape),
    }
    return {name: leaf(view) for name, view in views.items()}


LAYOUTS = list(layouts(1, 1))
