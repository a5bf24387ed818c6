"""How a family of files calls a GPT's tensors and lays them out, and both directions of the translation."""

from __future__ import annotations

import functools
import re
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import GPTConfig
from ..errors import GptfastError
from ..model import GPT
from .tensors import Stored, Tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_LISTED = 10  # names in a message
_LARGEST = 1 << 24  # of a size in a configuration; beyond it a file is damaged or means harm


class Layout(NamedTuple):
    """parts: the names that a parameter of gptfast.GPT has in the file; where there are several, they are stacked in
    that order. transposed: matrices are [in, out], where gptfast has [out, in]. ignored: names that are no weights.
    activation: the GELU of its models, which leaves no trace in the tensors.
    """

    name: str
    parts: Callable[[str], tuple[str, ...]]
    transposed: bool = False
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    activation: Literal["gelu_new", "gelu"] = "gelu_new"


def checked_config(where: str, /, **values: Any) -> GPTConfig:
    """A configuration out of a file, which may say anything. Raises GptfastError that names the file."""
    for name in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd"):
        if type(values[name]) is not int or not 1 <= values[name] <= _LARGEST:
            raise GptfastError(f"{where} says {name} = {reprlib.repr(values[name])}, which no model has; restore it")
    try:
        return GPTConfig(**values)
    except (GptfastError, TypeError) as error:
        raise GptfastError(f"{where} describes no model: {error}") from None


class _NoInit(TorchFunctionMode):
    """Leaves out torch.nn.init. On a model without memory it would do nothing, but import the compiler first: 1.5
    seconds and 250 MB.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_model(config: GPTConfig) -> GPT:
    """A model whose parameters have shapes but no memory."""
    with torch.device("meta"), _NoInit():
        return GPT(config)


def parameters(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, a tied head's among them."""
    return {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}


def infer_config(tensors: Tensors, layout: Layout, where: str, n_head: int | None = None) -> GPTConfig:
    """The configuration that the tensors' shapes imply. The number of heads leaves no trace in them: where it is not
    given, n_embd // 64, as in every published GPT-2 size.
    """

    def first(name: str) -> Stored | None:
        return tensors.get(layout.parts(name)[0])

    wte, wpe = first("wte.weight"), first("wpe.weight")
    if wte is None or wpe is None or len(wte.shape) != 2 or len(wpe.shape) != 2:
        raise GptfastError(f"{where} holds no GPT-2: it has no embeddings; its tensors are {_some(tensors)}")
    n_embd = wte.shape[1]
    n_layer = 0
    while first(f"h.{n_layer}.ln_1.weight") is not None:
        n_layer += 1
    if n_embd % 64 and n_head is None:
        raise GptfastError(
            f"{where} does not say how many heads the model has, and its width of {n_embd} is no multiple of 64, the "
            "usual head; pass config=GPTConfig(...), or --n-head to `gptfast weights convert`"
        )
    return checked_config(
        where, vocab_size=wte.shape[0], context_length=wpe.shape[0], n_layer=max(n_layer, 1),
        n_head=n_embd // 64 if n_head is None else n_head, n_embd=n_embd, bias=first("ln_f.bias") is not None,
        qkv_bias=first("h.0.attn.c_attn.bias") is not None, activation=layout.activation,
    )  # fmt: skip


def arrange(tensors: Tensors, layout: Layout, config: GPTConfig, where: str) -> Tensors:
    """The tensors of a file as the parameters of gptfast.GPT. Nothing is read but biases that should not be there.

    Raises GptfastError that lists what is missing, unexpected or of the wrong shape, or names a tensor that has another
    type than weights have.
    """
    if config.n_layer > len(tensors):
        raise GptfastError(
            f"{where}: the configuration says {config.n_layer:,} layers, but there are only {len(tensors):,} tensors"
        )
    wanted = parameters(config)
    wte = tensors.get(layout.parts("wte.weight")[0])
    if wte is not None and len(wte.shape) == 2 and wte.shape[0] != config.vocab_size:
        raise GptfastError(
            f"{where} has a vocabulary of {wte.shape[0]:,} tokens, the configuration says {config.vocab_size:,}; "
            f"pass a configuration with vocab_size={wte.shape[0]}"
        )
    result: Tensors = {}
    missing: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    for name, shape in wanted.items():
        parts = layout.parts(name)
        used.update(parts)
        found = [tensors[part] for part in parts if part in tensors]
        if name == "lm_head.weight" and not found:  # a file that leaves out the head ties it
            continue
        missing += [part for part in parts if part not in tensors]
        if len(found) < len(parts):
            continue
        expected = (shape[0] // len(parts), *shape[1:])
        stored = [_transposed(t) for t in found] if layout.transposed and name.endswith(MATRICES) else found
        for part, seen, tensor in zip(parts, found, stored, strict=True):
            if seen.dtype not in DTYPES:
                raise GptfastError(
                    f"{where} holds {part} as {str(seen.dtype).removeprefix('torch.')}, not as weights: gptfast reads "
                    "fp32, bf16, fp16 and fp64; convert it with what made it, which knows its scales"
                )
            if tensor.shape != expected:
                needs = expected[::-1] if stored is not found else expected
                wrong.append(f"{part} is {list(seen.shape)}, should be {list(needs)}")
        result[name] = stored[0] if len(stored) == 1 else _stacked(stored, shape)
    unexpected = [name for name in tensors if name not in used and not layout.ignored.search(name)]
    absent = {part for name in _biases(config) - set(wanted) for part in layout.parts(name)}
    for name in [name for name in unexpected if name in absent]:
        if not tensors[name].read().any():  # zeros stand for the absence of a bias
            unexpected.remove(name)
    if missing or unexpected or wrong:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong))
        lists = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)
        raise GptfastError(f"{where}: the weights do not fit the configuration ({layout.name}). {lists}")
    return result


def export(model: GPT, layout: Layout, biases: bool) -> dict[str, Tensor]:
    """The model's tensors in a layout, as views of its parameters. With `biases`, those that it does not have are
    zeros.
    """
    state = dict(model.state_dict())
    if any(name.endswith(("lora_A", "lora_B")) for name in state):
        raise GptfastError("the model has LoRA layers, which no layout has; merge_lora(model) first, or save_lora")
    if biases:
        for name in sorted(_biases(model.config) - set(state)):
            weight = state[name.removesuffix("bias") + "weight"]
            state[name] = weight.new_zeros(weight.shape[0])
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = layout.parts(name)
        whole = tensor.T if layout.transposed and name.endswith(MATRICES) else tensor
        pieces = whole.chunk(len(parts)) if len(parts) > 1 else (whole,)
        result.update(zip(parts, pieces, strict=True))
    return result


def _biases(config: GPTConfig) -> set[str]:
    """The names of all biases that a GPT of so many layers can have."""
    layers = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    return {"ln_f.bias"} | {f"h.{i}.{name}.bias" for i in range(config.n_layer) for name in layers}


def _transposed(stored: Stored) -> Stored:
    return Stored(stored.shape[::-1], stored.dtype, lambda: stored.read().mT)


def _stacked(parts: list[Stored], shape: tuple[int, ...]) -> Stored:
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    return Stored(shape, dtype, lambda: torch.cat([part.read() for part in parts]))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
