"""The kernels on rows: LayerNorm, GELU, embedding and cross entropy against PyTorch's, eager and compiled.

GB/s are of the bytes that each operation cannot do without (the heads of the kernels' files count them).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gptfast.kernels import reference
from torch import Tensor
from torch.nn import functional as F

from .attention import wider
from .suite import Case, Setup, backward, forward


def cases(setup: Setup) -> Iterator[Case]:
    wide = [(8192, 4096)] if setup.on_gpu and not setup.quick else []
    for N, C in [setup.size((32768, 768), (4096, 768), (16, 48)), *wide]:
        yield from norms(setup, N, C)
    yield from gelus(setup, *setup.size((32768, 3072), (4096, 3072), (16, 48)))
    yield from embeddings(setup, *setup.size((32, 1024, 768, 50304), (4, 1024, 768, 50304), (2, 8, 48, 64)))
    yield from losses(setup, *setup.size((4096, 50304), (512, 50304), (8, 64)))


def _cases(
    setup: Setup, name: str, shape: str, inputs: Callable[[], tuple[Any, ...]], forms: dict[str, Callable[..., Any]],
    exact: Callable[..., Any] | None, moved: tuple[float, float],
) -> Iterator[Case]:  # fmt: skip
    """Forward and backward; `moved` are their numbers of elements."""
    size = setup.dtype.itemsize
    forms = forms if setup.peers else {name: form for name, form in forms.items() if name in ("gptfast", "eager")}
    for direction, form, count in zip(("forward", "backward"), (forward, backward), moved, strict=True):
        yield Case(
            "kernels", f"{name} {direction}", shape, str(setup.dtype).removeprefix("torch."), inputs,
            {name: form(function) for name, function in forms.items()}, work=size * count, unit="GB/s", of="copy",
            need=size * count, yardstick="eager",
            reference=None if exact is None else wider(lambda *x, form=form: form(exact)(*x)()),
        )  # fmt: skip


def _randn(setup: Setup, *shape: int) -> Tensor:
    return torch.randn(*shape, device=setup.device, dtype=setup.dtype)


def _ours(setup: Setup) -> Any:
    from gptfast import kernels, ops

    return kernels if setup.triton else ops


def _compiled(setup: Setup, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {} if setup.dry or not setup.peers else {"compiled": torch.compile(function, dynamic=False)}


def norms(setup: Setup, N: int, C: int) -> Iterator[Case]:
    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (C,), w, b)

    def added(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        s = r + x
        return F.layer_norm(s, (C,), w, b), s

    def dropped(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return added(F.dropout(x, 0.1), r, w, b)

    ours, shape, size = _ours(setup), f"N={N} C={C}", N * C
    one = {"gptfast": ours.layer_norm, "eager": plain, **_compiled(setup, plain)}
    if setup.on_gpu and setup.peers and importlib.util.find_spec("liger_kernel"):
        one["Liger"] = _liger

    def x(count: int) -> tuple[Tensor, ...]:
        return tuple(_randn(setup, N, C) for _ in range(count))

    def wb() -> tuple[Tensor, Tensor]:
        return _randn(setup, C), _randn(setup, C)

    yield from _cases(
        setup, "layer_norm", shape, lambda: (*x(1), *wb(), *x(1)), one, reference.layer_norm, (2 * size, 3 * size)
    )
    two = {"gptfast": ours.add_layer_norm, "eager": added, **_compiled(setup, added)}
    yield from _cases(
        setup,
        "add_layer_norm",
        shape,
        lambda: (*x(2), *wb(), x(2)),
        two,
        reference.add_layer_norm,
        (4 * size, 4 * size),
    )
    three = {
        "gptfast": lambda *t: ours.add_layer_norm(*t, dropout_p=0.1), "eager": dropped, **_compiled(setup, dropped)
    }  # fmt: skip
    yield from _cases(
        setup, "add_layer_norm, dropout", shape, lambda: (*x(2), *wb(), x(2)), three, None, (4 * size, 5 * size)
    )


def _liger(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(x, w, b, 1e-5)


def gelus(setup: Setup, N: int, C: int) -> Iterator[Case]:
    def plain(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def biased(x: Tensor, b: Tensor) -> Tensor:
        return F.gelu(x + b, approximate="tanh")

    ours, shape, moved = _ours(setup), f"N={N} C={C}", (2.0 * N * C, 3.0 * N * C)

    def x() -> Tensor:
        return _randn(setup, N, C)

    one = {"gptfast": ours.gelu, "eager": plain}
    yield from _cases(setup, "gelu", shape, lambda: (x(), x()), one, reference.gelu, moved)
    two = {"gptfast": ours.bias_gelu, "eager": biased, **_compiled(setup, biased)}
    yield from _cases(setup, "bias_gelu", shape, lambda: (x(), _randn(setup, C), x()), two, reference.bias_gelu, moved)


def embeddings(setup: Setup, B: int, T: int, C: int, V: int) -> Iterator[Case]:
    ranks = torch.arange(1, V + 1, device=setup.device, dtype=torch.float64)

    def plain(idx: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
        return F.embedding(idx, wte) + wpe[:T]

    def inputs() -> tuple[Any, ...]:
        idx = torch.multinomial(1 / ranks, B * T, replacement=True).view(B, T)  # Zipf's law, as text has it
        return idx, _randn(setup, V, C), _randn(setup, T, C), _randn(setup, B, T, C)

    forms = {"gptfast": _ours(setup).embedding, "eager": plain, **_compiled(setup, plain)}
    size = B * T * C
    yield from _cases(
        setup, "embedding", f"B={B} T={T} C={C} V={V}", inputs, forms, reference.embedding, (2 * size, size + V * C)
    )


def losses(setup: Setup, N: int, V: int) -> Iterator[Case]:
    def plain(z: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(z.float(), targets)

    def inputs() -> tuple[Any, ...]:
        targets = torch.randint(V, (N,), device=setup.device)
        return _randn(setup, N, V), targets, torch.ones((), device=setup.device)

    forms = {"gptfast": _ours(setup).cross_entropy, "eager": plain, **_compiled(setup, plain)}
    size = N * V
    yield from _cases(setup, "cross_entropy", f"N={N} V={V}", inputs, forms, reference.cross_entropy, (size, 2 * size))
