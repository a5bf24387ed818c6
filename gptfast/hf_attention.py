"""gptfast's attention in Hugging Face models: `attn_implementation="gptfast"`.

transformers calls a mask function once per forward and hands its result to the attention function of every layer.
`causal_mask` returns one of

    None                       nothing is hidden but what comes later
    uint32 [B or 1, 1, R, n]   the queries are the last of the first n keys. Rows: the two of `document_bounds`, where a
                               query sees its own document only (left padding is one), then the window, where it hides
                               keys; R is 0 to 3
    bool [B, 1, Tq, Tk]        any other mask, as transformers makes it for "sdpa"

and `attention` runs `ops.causal_attention` for the first two, transformers' "sdpa" for the last. A tensor of four
dimensions is what transformers hands on untouched, and nobody makes masks of uint32; the numbers are int32's.

Queries that are padding give finite numbers without meaning: with padding on the right they see the padding before
them, which costs nothing and which no other position sees.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "gptfast"
REFUSED = ("block_indices", "head_mask", "indices", "s_aux", "softcap")  # what "sdpa" too would leave out


def register() -> None:
    """Makes the name known to transformers. `import gptfast` does it; once more does no harm."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention)
    masking_utils.AttentionMaskInterface.register(NAME, causal_mask)


def causal_mask(**arguments: Any) -> Tensor | None:
    """transformers' mask function, with the arguments of its `sdpa_mask`; see the top of this file."""
    config = type(arguments.get("config"))
    if not _leaves_attention_to_us(config):
        raise ValueError(
            f"the model of {config.__name__} computes attention itself, not by transformers' AttentionInterface; "
            f'attn_implementation="{NAME}" cannot reach it: use "eager"'
        )
    layout = _layout(arguments)
    if layout is None:
        return masking_utils.sdpa_mask(**arguments)
    q_length, n, segments, window = layout
    if segments is None and window is None and n == arguments["kv_length"] and q_length in (1, n):
        return None
    if segments is None:
        rows = torch.empty(0, 1, n, dtype=torch.int32)  # on the CPU: nothing but its shape and the window are read
    else:
        segments = segments.contiguous()
        rows = torch.stack([torch.searchsorted(segments, segments, right=x, out_int32=True) for x in (False, True)])
    if window is not None:
        rows = torch.cat((rows, rows.new_full((1, *rows.shape[1:]), window)))
    return rows.transpose(0, 1)[:, None].view(torch.uint32)


@torch.compiler.assume_constant_result
def _leaves_attention_to_us(config: type) -> bool:
    """Whether models of this configuration use the AttentionInterface, as far as their module shows it.

    transformers gives any model any name that is registered; one that adds the mask to its own scores (BLOOM, CodeGen,
    XGLM in 5.20) would not see that None means causal.
    """
    return _uses_interface(config)


@functools.cache
def _uses_interface(config: type) -> bool:
    for ancestor in config.__mro__:
        beside = ancestor.__module__.rpartition(".")[0] + ".modeling_"
        modules = [module for name, module in list(sys.modules.items()) if name.startswith(beside)]
        if modules:
            attends = any("Attention" in name for module in modules for name in _layers(module))
            return not attends or any(hasattr(module, "ALL_ATTENTION_FUNCTIONS") for module in modules)
    return True


def _layers(module: ModuleType) -> list[str]:
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, nn.Module)]
    return [value.__name__ for value in classes if value.__module__ == module.__name__]


def _layout(arguments: dict[str, Any]) -> tuple[int, int, Tensor | None, int | None] | None:
    """How many queries, how many keys, the rising document numbers [B, n] and the window; None for any other mask."""
    pattern = _pattern(arguments["mask_function"])
    if pattern is None:
        return None
    window, segments = pattern
    padding = arguments.get("attention_mask")
    if not arguments.get("allow_is_causal_skip", True) and segments is None:  # with documents it always says so
        return None  # a caller who wants to see the mask
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # no look at the numbers
        if padding is not None or not isinstance(arguments.get("q_offset"), int | torch.SymInt):
            return None
    if "cache_position" in arguments:  # before transformers 5
        q_length, q_offset = len(arguments["cache_position"]), int(arguments["cache_position"][0])
    else:
        q_length, q_offset = arguments["q_length"], arguments.get("q_offset", 0)
        q_offset = int(q_offset) if isinstance(q_offset, Tensor) else q_offset
    kv_offset = arguments.get("kv_offset", 0)
    n = q_offset + q_length - kv_offset  # a static cache goes on after the last query's own key
    if not q_length <= n <= arguments["kv_length"]:
        return None
    if padding is not None:
        if segments is not None or padding.dim() != 2:
            return None
        padding = padding[:, kv_offset : kv_offset + n].bool()
        padding = torch.nn.functional.pad(padding, (0, n - padding.shape[1]))
        begun = padding.cumsum(1) > 0
        holes = (padding[:, 1:] & ~padding[:, :-1] & begun[:, :-1]).any()
        on_the_left = (begun[:, -1] & ~padding[:, 0]).any()
        has_holes, is_left = torch.stack((holes, on_the_left)).tolist()
        if has_holes:
            return None
        segments = begun.int() if is_left else None
    if segments is not None and not q_length == n == segments.shape[1]:
        return None
    return q_length, n, segments, window if window is not None and window < n else None


def _pattern(mask_function: Callable[..., Any]) -> tuple[int | None, Tensor | None] | None:
    """The window and the documents that a causal mask function of transformers was made of; None for any other.

    It is known by the names that transformers gave its parts, from 4.57 to 5.23. One that is not known costs a dense
    mask, not a wrong one.
    """
    window: int | None = None
    documents: Tensor | None = None
    causal = renumbered = False
    functions = [mask_function]
    while functions:
        function = functions.pop()
        if function is masking_utils.causal_mask_function:
            causal = True
            continue
        if torch.compiler.is_compiling() or not inspect.isfunction(function):
            return None
        if function.__module__ != masking_utils.__name__:
            return None
        match function.__qualname__.split(".")[0], inspect.getclosurevars(function).nonlocals:
            case "and_masks", {"mask_functions": parts}:
                functions.extend(parts)
            case "sliding_window_overlay", {"sliding_window": int(found)} if window is None:
                window = found
            case "packed_sequence_mask_function", {"packed_sequence_mask": Tensor() as found} if documents is None:
                documents = found
            case "remap_positions_for_packed_sequence", {"mask_function": inner} if not renumbered:
                within = _pattern(inner)  # of positions that count from each document's start, to the same effect
                if within is None or within[1] is not None or window is not None:
                    return None
                window, causal, renumbered = within[0], True, True
            case _:
                return None
    return (window, documents) if causal and (documents is not None or not renumbered) else None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, H, Tq, D], key and value [B, Hkv, Tk, D] -> [B, Tq, H, D].

    Without a mask, one query sees every key, and as many queries as keys are causal where `is_causal` or the module's
    attribute says so; anything else without a mask, and every mask that `causal_mask` did not make, is for "sdpa".
    """
    from . import ops
    from .kernels import reference

    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise ValueError(f'{name} is not supported by attn_implementation="{NAME}"; use "eager"')
    if query.shape[2] == 1 and attention_mask is None and query.device.type not in ops.TRITON_DEVICES:
        # A token against its cache, many times a second: the same as below, with fewer steps between.
        return sdpa_attention_forward(module, query, key, value, None, dropout, scaling, is_causal=False, **kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    (B, _, Tq, _), n = query.shape, key.shape[2]
    described = attention_mask is not None and attention_mask.dtype == torch.uint32
    bounds, window = None, sliding_window if causal or described else None
    if attention_mask is not None and described:
        rows = attention_mask.view(torch.int32)[:, 0].transpose(0, 1)  # [R, B or 1, n]
        n = rows.shape[2]
        key, value = key[:, :, :n], value[:, :, :n]
        if len(rows) > 1:
            bounds = rows[:2].contiguous()
        if len(rows) % 2 and window is None:  # a module that leaves its window to the mask
            window = int(rows[-1, 0, 0])
    elif attention_mask is None and causal and Tq == n:
        bounds = kwargs.get("cu_seq_lens_q")  # boundaries over the flattened [B * T], as FlashAttention takes them
    window = None if window is None or window >= n else window

    ours = described or (attention_mask is None and (Tq == 1 or (causal and Tq == n)))
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache"))
    if not ours or special or value.shape != key.shape or kwargs.get("output_attentions"):
        if described:
            seen = reference.attention_mask(Tq, n, window=window, cu_seqlens=bounds, B=B, device=query.device)
            attention_mask, is_causal = (seen if bounds is None else seen[:, None]).expand(B, 1, Tq, n), False
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:  # rotary embeddings leave q and k in fp32
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    y = ops.causal_attention(q, k, v, scale=scaling, dropout_p=dropout, window=window, cu_seqlens=bounds)
    return y.contiguous(), None
