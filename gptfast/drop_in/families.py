"""Which models are known, by their structure, and which of their modules get a fast forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..modules import untouched
from .fast import Fast, FastAttention, FastBlock, FastGPT2Block, FastHead, FastMLP
from .parts import (
    LONGEST,
    computes_the_same,
    fingerprint,
    gelu_kind,
    is_conv1d,
    is_linear,
    masks_are_causal,
    norm_parts,
)


@dataclass
class Part:
    """One module, and what is to be done with it: a fast forward, another attention, or nothing, and why."""

    name: str
    module: nn.Module
    told: str
    fast: Fast | None = None
    attention: bool = False


def plan(model: nn.Module) -> list[Part]:
    """The parts of every GPT-2 within `model`; none if there is no such model."""
    parts: list[Part] = []
    for name, module in model.named_modules():
        if _is_transformers(module, "GPT2Model"):
            parts += _hugging_face(name, module)
        elif _is_nanogpt(module):
            parts += _nanogpt(name, module)
        elif _is_book(module):
            parts += _book(name, module)
    if parts:
        parts += [_head(name, module) for name, module in model.named_modules() if name.split(".")[-1] in HEADS]
    return parts


HEADS = ("lm_head", "out_head")


def _kind(module: nn.Module) -> str:
    """Its class; with the package where its name alone may be taken for another's, as of PEFT's Linear."""
    cls = type(module)
    return cls.__name__ if cls.__module__.startswith("torch.") else f"{cls.__module__.split('.')[0]}'s {cls.__name__}"


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _is_transformers(module: nn.Module, cls: str) -> bool:
    """Whether it is transformers' class, or one derived from it that left its forward alone."""
    for ancestor in type(module).__mro__:
        if ancestor.__name__ == cls and ancestor.__module__.startswith("transformers."):
            return type(module).forward is ancestor.forward  # type: ignore[attr-defined]
    return False


def _known(part: Part, same: dict[Any, bool], *known: str | None) -> Part:
    """The part, if its module has nothing but the children named, and computes what its fast forward does.

    `same` keeps what was found of modules that are alike, layer by layer.
    """
    if part.fast is None:
        return part
    extra = {name for name, _ in part.module.named_children()} - {name for name in known if name}
    extra |= {name for name, _ in part.module.named_parameters(recurse=False)}
    if extra:
        return Part(part.name, part.module, f"own forward: it has {', '.join(sorted(extra))} besides what is known")
    key = fingerprint(part.module)
    if key not in same or not masks_are_causal(part.module):
        fast: Any = part.fast
        positions = LONGEST if isinstance(fast, FastAttention) else 8
        same[key] = computes_the_same(part.module, getattr(fast, "fused", fast), positions)
    if not same[key]:
        return Part(part.name, part.module, "own forward: it computes something else than the fast one")
    return part


def _head(name: str, module: nn.Module) -> Part:
    if not is_linear(module) or module.bias is not None:
        return Part(name, module, f"own forward: it is {_kind(module)}, not a Linear without bias")
    if not untouched(module):
        return Part(name, module, "own forward: it has hooks or a forward of its own")
    return Part(name, module, "fast: no logits for the loss", FastHead(module))


def _mlp(name: str, module: nn.Module, names: tuple[str, str, str, str | None]) -> Part:
    fc, activation = module.get_submodule(names[0]), module.get_submodule(names[1])
    if not (is_linear(fc) or is_conv1d(fc)):
        return Part(name, module, f"own forward: {names[0]} is {_kind(fc)}")
    if not untouched(module) or not untouched(fc) or not untouched(activation):
        return Part(name, module, "own forward: it has hooks inside, or a forward of its own")
    kind = gelu_kind(activation)
    if kind is None:
        return Part(name, module, f"own forward: {names[1]} ({_kind(activation)}) is no GELU")
    return Part(name, module, "fast: bias and GELU in one", FastMLP(module, names, kind))


def _block(
    name: str, module: nn.Module, names: tuple[str, str, str, str, str | None], cls: type[FastBlock] = FastBlock
) -> Part:
    norm = norm_parts(module.get_submodule(names[2]))
    if norm is None:
        return Part(name, module, f"own forward: {names[2]} is no LayerNorm, or has hooks")
    if not untouched(module):
        return Part(name, module, "own forward: it has hooks, or a forward of its own")
    return Part(name, module, "fast: residual and LayerNorm in one, on a GPU", cls(module, names, norm))


def _hugging_face(name: str, model: nn.Module) -> list[Part]:
    config: Any = model.config
    parts = []
    reason = ""
    if config.reorder_and_upcast_attn:
        reason = "the configuration asks for reorder_and_upcast_attn"
    elif getattr(config, "output_attentions", False) or config._attn_implementation == "eager":
        reason = 'output_attentions may be asked of a model with attn_implementation="eager"'
    told = f"own attention: {reason}" if reason else 'fast: attention "gptfast", q, k and v in place'
    parts.append(Part(name, model, told, attention=not reason))
    for i, block in enumerate(model.h):  # type: ignore[arg-type]
        where = _joined(name, f"h.{i}")
        names = ("ln_1", "attn", "ln_2", "mlp", None)
        if hasattr(block, "crossattention"):
            parts.append(Part(where, block, "own forward: it has cross attention"))
        elif not _is_transformers(block, "GPT2Block"):
            parts.append(Part(where, block, "own forward: it is no GPT2Block of transformers"))
        else:
            parts.append(_block(where, block, names, FastGPT2Block))
        if not reason and (not _is_transformers(block.attn, "GPT2Attention") or "forward" in block.attn.__dict__):
            parts.append(
                Part(_joined(where, "attn"), block.attn, "own forward: it is no GPT2Attention of transformers")
            )
        if _is_transformers(block.mlp, "GPT2MLP"):
            parts.append(_mlp(_joined(where, "mlp"), block.mlp, ("c_fc", "act", "c_proj", "dropout")))
        else:
            parts.append(Part(_joined(where, "mlp"), block.mlp, "own forward: it is no GPT2MLP of transformers"))
    return parts


def _has(module: nn.Module, *names: str) -> bool:
    children = dict(module.named_children())
    return all(name in children for name in names)


def _is_nanogpt(module: nn.Module) -> bool:
    if not _has(module, "transformer") or not isinstance(module.transformer, nn.ModuleDict):
        return False
    stem = module.transformer
    if not _has(stem, "wte", "wpe", "h", "ln_f") or not len(stem["h"]):  # type: ignore[arg-type]
        return False
    block = stem["h"][0]  # type: ignore[index]
    return (
        _has(block, "ln_1", "attn", "ln_2", "mlp")
        and _has(block.attn, "c_attn", "c_proj")
        and _has(block.mlp, "c_fc", "c_proj")
        and isinstance(getattr(block.attn, "n_head", None), int)
    )


def _nanogpt(name: str, model: nn.Module) -> list[Part]:
    parts: list[Part] = []
    same: dict[Any, bool] = {}
    for i, block in enumerate(model.transformer["h"]):  # type: ignore[index]
        where = _joined(name, f"transformer.h.{i}")
        names = ("ln_1", "attn", "ln_2", "mlp", None)
        parts.append(_known(_block(where, block, names), same, *names))
        attention = block.attn
        after = "resid_dropout" if _has(attention, "resid_dropout") else None
        dropout = _dropout(attention, "dropout", "attn_dropout")
        fast = FastAttention(attention, ("c_attn",), "c_proj", attention.n_head, dropout, after)
        part = _attention(_joined(where, "attn"), attention, fast)
        parts.append(_known(part, same, "c_attn", "c_proj", "attn_dropout", after))
        activations = [n for n, child in block.mlp.named_children() if gelu_kind(child) is not None]
        after = "dropout" if _has(block.mlp, "dropout") else None
        if len(activations) == 1:
            mlp = ("c_fc", activations[0], "c_proj", after)
            parts.append(_known(_mlp(_joined(where, "mlp"), block.mlp, mlp), same, *mlp))
        else:
            parts.append(Part(_joined(where, "mlp"), block.mlp, "own forward: no module of it is a GELU"))
    return parts


def _is_book(module: nn.Module) -> bool:
    if not _has(module, "tok_emb", "pos_emb", "trf_blocks", "final_norm", "out_head"):
        return False
    blocks = list(module.trf_blocks.children())  # type: ignore[union-attr]
    return bool(blocks) and _has(blocks[0], "att", "ff", "norm1", "norm2")


def _book(name: str, model: nn.Module) -> list[Part]:
    parts: list[Part] = []
    same: dict[Any, bool] = {}
    for i, block in enumerate(model.trf_blocks.children()):  # type: ignore[union-attr]
        where = _joined(name, f"trf_blocks.{i}")
        drop = next((n for n in ("drop_shortcut", "drop_resid") if _has(block, n)), None)
        names = ("norm1", "att", "norm2", "ff", drop)
        parts.append(_known(_block(where, block, names), same, *names))
        parts.append(_book_attention(_joined(where, "att"), block.att, same))
        layers = getattr(block.ff, "layers", None)
        if isinstance(layers, nn.Sequential) and len(layers) == 3:
            mlp = _mlp(_joined(where, "ff"), block.ff, ("layers.0", "layers.1", "layers.2", None))
            parts.append(_known(mlp, same, "layers"))
        else:
            parts.append(Part(_joined(where, "ff"), block.ff, "own forward: layers are not Linear, GELU, Linear"))
    return parts


def _book_attention(name: str, module: nn.Module, same: dict[Any, bool]) -> Part:
    heads = getattr(module, "num_heads", None)
    dropout = _dropout(module, "dropout")
    for qkv, out in ((("W_query", "W_key", "W_value"), "out_proj"), (("qkv",), "proj"), (("qkv",), "out_proj")):
        if isinstance(heads, int) and _has(module, *qkv, out):
            part = _attention(name, module, FastAttention(module, qkv, out, heads, dropout, None))
            return _known(part, same, *qkv, out, "dropout")
    return Part(name, module, "own forward: its projections are not W_query, W_key, W_value or qkv, and out_proj")


def _dropout(module: nn.Module, *names: str) -> str | None:
    """Which of these the attention has, a number or a child, for the dropout of its probabilities."""
    numbers = (name for name in names if isinstance(module.__dict__.get(name), (int, float)))
    return next(numbers, next((name for name in names if name in module._modules), None))


def _attention(name: str, module: nn.Module, fast: FastAttention) -> Part:
    if not untouched(module):
        return Part(name, module, "own forward: it has hooks, or a forward of its own")
    return Part(name, module, "fast: causal attention, q, k and v in place", fast)
