"""`gptfast.accelerate(model)`: a Hugging Face, nanoGPT or book GPT-2 on the fused operations, in place."""

from __future__ import annotations

from torch import nn

from ..errors import GptfastError
from .families import Part, plan
from .fast import Fast

_ATTENTION = "_gptfast_attention"  # on a model: the attention implementation that it had


def accelerate(model: nn.Module) -> nn.Module:
    """Let `model` run on gptfast's operations: transformers' GPT-2 models, nanoGPT's GPT, the book's GPTModel.

    Returns the same object. Its class, parameters, names and state dict stay as they are, so an optimizer made before
    still holds, and what was saved still loads. Where something asks for what the fast path cannot do (hooks, wrapped
    layers, cross attention), the model's own code runs for that part; `explain` says where. Logits of a training step
    are computed when somebody looks at them, and not at all for a loss that is F.cross_entropy of them. A second call
    does no harm. Raises GptfastError for a model that is none of these.
    """
    restore(model)
    parts = plan(model)
    if not parts:
        raise GptfastError(
            f"{type(model).__name__} is no GPT-2 that gptfast knows: transformers' GPT2 models, nanoGPT's GPT "
            "(transformer.h[i].attn.c_attn ...) or the book's GPTModel (trf_blocks[i].att ...)"
        )
    for part in parts:
        if part.fast is not None:
            part.module.__dict__["forward"] = part.fast
        if part.attention:
            before = part.module.config._attn_implementation  # type: ignore[union-attr]
            if before != "gptfast":  # a configuration that another model shares, or the user's own wish
                part.module.__dict__[_ATTENTION] = before
            part.module.set_attn_implementation("gptfast")  # type: ignore[operator]
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`. Returns the same object; a model that is not accelerated is left alone."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), Fast):
            del module.__dict__["forward"]
        if _ATTENTION in module.__dict__:
            module.set_attn_implementation(module.__dict__.pop(_ATTENTION))  # type: ignore[operator]
    return model


def explain(model: nn.Module) -> str:
    """Print, and return, which modules of `model` run fast once accelerated, and which do not and why."""
    restored = [module for module in model.modules() if isinstance(module.__dict__.get("forward"), Fast)]
    parts = _plan_of(model, restored)
    lines = [f"{type(model).__name__}: " + ("accelerated" if restored else "not accelerated yet")]
    if not parts:
        lines.append("  no GPT-2 that gptfast knows")
    width = max((len(part.name) for part in parts), default=0)
    lines += [f"  {part.name or '(model)':<{width}}  {part.told}" for part in parts]
    text = "\n".join(lines)
    print(text)
    return text


def _plan_of(model: nn.Module, accelerated: list[nn.Module]) -> list[Part]:
    """The plan as it would be made now, with what `accelerate` set out of the way meanwhile."""
    forwards = [(module, module.__dict__.pop("forward")) for module in accelerated]
    try:
        return plan(model)
    finally:
        for module, forward in forwards:
            module.__dict__["forward"] = forward


__all__ = ["accelerate", "explain", "restore"]
