"""Causal attention: gptfast's kernels against PyTorch's attention of every backend, FlexAttention and flash-attn.

TFLOP/s are of 4 B H T^2 D forward, halved as half of it is masked, and 2.5 times that backward (Dao 2023); with a
window or documents that count would flatter those that skip what is masked, so there tokens/s are given. Decoding is in
GB/s of the keys and values that it reads.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from gptfast.kernels import reference
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from .suite import Call, Case, Setup, backward, forward

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # of q, k, v [B, T, H, D]
TOKENS = 16384  # in a batch on a GPU: B = TOKENS / T
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION, "sdpa math": SDPBackend.MATH,
}  # fmt: skip


def shapes(setup: Setup) -> list[tuple[int, int, int, int]]:
    """B, T, H, D."""
    gpu = [(12, 64, T) for T in (1024, 2048, 4096, 16384)] + [(16, 128, T) for T in (1024, 4096, 8192, 16384)]
    if setup.on_gpu and setup.quick:
        gpu = [(12, 64, 1024), (12, 64, 4096), (16, 128, 4096)]
    cpu = [(12, 64, T) for T in ((256, 1024) if not setup.quick else (256,))]
    found = setup.size(gpu, cpu, [(2, 16, 32)])
    return [(max(1, setup.size(TOKENS, 1024, 64) // T), T, H, D) for H, D, T in found]


def cases(setup: Setup) -> Iterator[Case]:
    for shape in shapes(setup):
        yield from attention(setup, *shape, "")
    for cache in setup.size(
        [(1, 1024, 12, 12, 64), (8, 1024, 12, 12, 64), (64, 4096, 12, 12, 64), (64, 4096, 32, 8, 128)],
        [(8, 1024, 12, 12, 64)],
        [(2, 32, 4, 2, 16)],
    ):
        yield decoding(setup, *cache)


def features(setup: Setup) -> Iterator[Case]:
    """A window, documents and dropout: last, since each is compiled anew."""
    for B, T, H, D in shapes(setup):
        if not setup.dry and (T not in (1024, 4096) or (setup.quick and T > 1024)):
            continue
        yield from attention(setup, B, T, H, D, ", window", window=setup.size(256, 256, 8))
        yield from attention(setup, B, T, H, D, ", documents", documents=setup.size(512, 512, 8))
        if setup.dry or setup.on_gpu:
            yield from attention(setup, B, T, H, D, ", dropout 0.1", dropout_p=0.1)


def wider(function: Callable[..., Any]) -> Callable[..., Any]:
    """The reference of a forward and a backward: `function` of the same inputs in fp32; in fp64 where they are fp32."""

    def wide(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(wide, x))
        if isinstance(x, Tensor) and x.is_floating_point():
            return x.double() if x.dtype == torch.float32 else x.float()
        return x

    return lambda *inputs: function(*map(wide, inputs))


def attention(
    setup: Setup, B: int, T: int, H: int, D: int, suffix: str,
    window: int | None = None, documents: int | None = None, dropout_p: float = 0.0,
) -> Iterator[Case]:  # fmt: skip
    dtype = setup.dtype
    masked = bool(window or documents)
    bounds = mask = None
    if documents:
        cuts = torch.arange(0, B * T + 1, documents, dtype=torch.int32, device=setup.device)
        bounds = reference.document_bounds(cuts, B, T)
    if masked:
        i = torch.arange(T, device=setup.device)
        back, document = i[:, None] - i, i // (documents or T)
        mask = (back >= 0) & (back < (window or T)) & (document[:, None] == document)

    def inputs() -> tuple[Any, ...]:
        return tuple(torch.randn(B, T, H, D, device=setup.device, dtype=dtype) for _ in range(4))

    given: dict[str, Any] = {"window": window, "cu_seqlens": bounds, "dropout_p": dropout_p}
    ours, packed = _ours(setup)
    plain: dict[str, Attention] = {
        "gptfast": lambda q, k, v: ours(q, k, v, **given),
        "sdpa": lambda q, k, v: _sdpa(q, k, v, mask, dropout_p),
    }
    context: dict[str, Callable[[], AbstractContextManager[Any]]] = {}
    if setup.peers:
        plain |= _peers(setup, T, D, window, documents, dropout_p)
        if not masked:
            for name, backend in BACKENDS.items():
                if (setup.on_gpu or name.split()[1] in ("flash", "math")) and (T <= 4096 or name != "sdpa math"):
                    plain[name] = plain["sdpa"]
                    context[name] = functools.partial(sdpa_kernel, backend)
    if not dropout_p:

        def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if T <= 4096:
                return reference.causal_attention(q, k, v, **given)
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # scores of all pairs would not fit
                return _sdpa(q, k, v, None, 0.0)

    shape = f"B={B} T={T} H={H} D={D}"
    for direction, form, factor, passes in (("forward", forward, 1.0, 4), ("backward", backward, 2.5, 8)):
        forms = {name: _within(context.get(name, nullcontext), form(function)) for name, function in plain.items()}
        forms["gptfast packed"] = _packed(form, packed, given)
        if direction == "backward" and setup.on_gpu:
            forms["gptfast one pass"] = backward(lambda q, k, v: ours(q, k, v, **given, deterministic=False))
        flops = factor * 2 * B * H * T * T * D
        yield Case(
            "kernels", f"attention {direction}{suffix}", shape, str(dtype).removeprefix("torch."), inputs, forms,
            work=B * T if masked else flops, unit="tokens/s" if masked else "TFLOP/s", need=0.0 if masked else flops,
            of=None if masked else setup.matmul,
            intensity=None if masked else flops / (passes * B * T * H * D * dtype.itemsize),
            reference=None if dropout_p else wider(lambda *x, form=form: form(exact)(*x)()), yardstick="sdpa",
        )  # fmt: skip


def _ours(setup: Setup) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The kernels where they run (also in Triton's interpreter), elsewhere what gptfast.ops takes."""
    from gptfast import kernels, ops

    module: Any = kernels if setup.triton else ops
    return module.causal_attention, module.causal_attention_qkvpacked


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return sdpa(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout_p).transpose(1, 2)


def _within(context: Callable[[], AbstractContextManager[Any]], form: Callable[..., Call]) -> Callable[..., Call]:
    """`form` with its preparation and its calls inside a context."""

    def prepare(*inputs: Any) -> Call:
        with context():
            call = form(*inputs)

        def within() -> Any:
            with context():
                return call()

        return within

    return prepare


def _packed(form: Callable[..., Any], function: Callable[..., Tensor], given: dict[str, Any]) -> Callable[..., Call]:
    """q, k and v as slices of one tensor [B, T, 3, H, D], whose gradient is one tensor too."""

    def prepare(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Call:
        call = form(lambda qkv: function(qkv, **given))(torch.stack((q, k, v), dim=2), do)

        def parts() -> Any:
            out = call()
            return out[0].unbind(2) if isinstance(out, tuple) else out

        return parts

    return prepare


def _peers(
    setup: Setup, T: int, D: int, window: int | None, documents: int | None, dropout_p: float
) -> dict[str, Attention]:
    found: dict[str, Attention] = {}
    if not setup.on_gpu:
        return found
    # It takes 10 s or more to compile, anew for each length, head dimension, mask and direction.
    if not dropout_p and T == 4096 and (D == 64 or not setup.quick):
        found["flex"] = _flex(T, window, documents)
    if not documents and importlib.util.find_spec("flash_attn"):
        found["flash-attn"] = _flash_attention(window, dropout_p)
        if not window and not dropout_p:
            found["flash-attn-4"] = _flash_attention_4
    return found


def _flash_attention(window: int | None, dropout_p: float) -> Attention:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_func

        size = (window - 1 if window else -1, 0)
        return flash_attn_func(q, k, v, dropout_p=dropout_p, causal=True, window_size=size)

    return call


def _flash_attention_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.cute import flash_attn_func

    return flash_attn_func(q, k, v, causal=True)[0]


def _flex(T: int, window: int | None, documents: int | None) -> Attention:
    """FlexAttention, compiled, with the same mask."""

    @functools.cache
    def compiled() -> tuple[Callable[..., Tensor], Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
            seen = j <= i
            if window:
                seen = seen & (i - j < window)
            return seen & (i // documents == j // documents) if documents else seen

        torch._dynamo.reset()  # past eight masks it would run uncompiled
        return torch.compile(flex_attention, dynamic=False), create_block_mask(mask, None, None, T, T, device="cuda")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        function, block_mask = compiled()
        return function(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block_mask).transpose(1, 2)

    return call


def decoding(setup: Setup, B: int, S: int, H: int, Hkv: int, D: int) -> Case:
    """One token a row against a cache of S keys."""
    from gptfast import kernels, ops

    dtype = setup.dtype
    lengths = torch.full((B,), S, dtype=torch.int32, device=setup.device)
    ours: Any = kernels if setup.triton else ops

    def inputs() -> tuple[Any, ...]:
        q = torch.randn(B, 1, H, D, device=setup.device, dtype=dtype)
        return q, *torch.randn(2, B, S, Hkv, D, device=setup.device, dtype=dtype), None

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return sdpa(q, k, v, enable_gqa=H != Hkv).transpose(1, 2)

    size = 2 * B * S * Hkv * D * dtype.itemsize
    return Case(
        "kernels", "attention decode", f"B={B} S={S} H={H} Hkv={Hkv} D={D}", str(dtype).removeprefix("torch."), inputs,
        {"gptfast": forward(lambda q, k, v: ours.decode_attention(q, k, v, lengths)), "sdpa": forward(plain)},
        work=size, unit="GB/s", of="read", need=size, intensity=2 * H / (Hkv * dtype.itemsize),
        reference=wider(lambda q, k, v, _: reference.decode_attention(q, k, v, lengths)),
        yardstick="sdpa",
    )  # fmt: skip
