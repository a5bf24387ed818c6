"""`gptfast.accelerate(model)`: a Hugging Face, nanoGPT or book GPT-2 on the fused operations, in place."""

from __future__ import annotations

from torch import nn

from ..errors import GptfastError
from .families import Part, plan
from .fast import Restored

_ATTENTION = "_gptfast_attention"  # on a model: the attention implementation that it had
_FORWARD = "_gptfast_forward"  # on a module: its Fast, which a wrapper of the user's may lie over


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
            part.module.__dict__["forward"] = part.module.__dict__[_FORWARD] = part.fast
        if part.attention:
            before = part.module.config._attn_implementation  # type: ignore[union-attr]
            if before != "gptfast":  # a configuration that another model shares, or the user's own wish
                part.module.__dict__[_ATTENTION] = before
            part.module.set_attn_implementation("gptfast")  # type: ignore[operator]
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`. Returns the same object; a model that is not accelerated is left alone.

    A forward that was put over a fast one since, as in `head.forward = watched(head.forward)`, stays where it is, and
    what it calls is the module's own forward again.
    """
    for module in model.modules():
        fast = module.__dict__.pop(_FORWARD, None)
        if fast is not None and module.__dict__.get("forward") is fast:
            del module.__dict__["forward"]
        elif fast is not None:
            fast.__class__ = Restored
        if _ATTENTION in module.__dict__:
            module.set_attn_implementation(module.__dict__.pop(_ATTENTION))  # type: ignore[operator]
    return model


def explain(model: nn.Module) -> str:
    """Print, and return, which modules of `model` run fast once accelerated, and which do not and why.

    Of an accelerated model it says what runs now, after all that was done to the model since.
    """
    forwards = {module: module.__dict__.get("forward") for module in model.modules() if _FORWARD in module.__dict__}
    for module in forwards:  # out of the way meanwhile: the plan as it would be made now
        module.__dict__.pop("forward", None)
    try:
        parts = plan(model)
    finally:
        for module, forward in forwards.items():
            if forward is not None:
                module.__dict__["forward"] = forward
    accelerated = bool(forwards) or any(_ATTENTION in module.__dict__ for module in model.modules())
    lines = [f"{type(model).__name__}: " + ("accelerated" if accelerated else "not accelerated yet")]
    if not parts:
        lines.append("  no GPT-2 that gptfast knows")
    width = max((len(part.name) for part in parts), default=0)
    lines += [f"  {part.name or '(model)':<{width}}  {_told(part) if accelerated else part.told}" for part in parts]
    text = "\n".join(lines)
    print(text)
    return text


def _told(part: Part) -> str:
    """What a part of an accelerated model runs: what was planned for it, if that is what it has."""
    again = "; call gptfast.accelerate(model) again"
    if part.attention:
        now = part.module.config._attn_implementation  # type: ignore[union-attr]
        return part.told if now == "gptfast" else f"own attention: it was set to {now!r} since{again}"
    if part.fast is None:
        return part.told
    fast = part.module.__dict__.get(_FORWARD)
    forward = part.module.__dict__.get("forward")
    if fast is None:
        return f"own forward: it came into the model since{again}"
    if forward is None:
        return f"own forward: the fast one was taken off{again}"
    if type(fast) is not type(part.fast) or vars(fast) != vars(part.fast):
        return f"own forward: something in it was replaced since{again}"
    if forward is not fast:
        return f"{part.told}, if the forward that was put over it since calls it"
    return part.told


__all__ = ["accelerate", "explain", "restore"]
