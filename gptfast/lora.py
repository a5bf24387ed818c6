"""LoRA: fine-tuning through low-rank updates of frozen matrices (Hu et al. 2021).

A layer y = x W^T + b, with W [out, in] frozen, becomes

    y = x W^T + b + s (x A^T) B^T        A [r, in], B [out, r], s = alpha / r

so W moves by s B A, of rank r. With g = dL/dy [N, out] and z = x A^T [N, r]:

    dB = s g^T z      dA = s (g B)^T x      dx = g W + s (g B) A      and no dW

B starts at zero, so the model computes what it did; A starts as PEFT's does, uniform in +-1/sqrt(in). A layer trains
r (in + out) numbers: of GPT-2 124M, c_attn in 12 layers, r (768 + 2304) 12 = 589,824 at r = 16 (docs/lora.md).

Once trained, s B A can be added to W: the same model at no cost. Adapters are saved in PEFT's format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import GptfastError
from .files import atomic_path, make_folder, read_json, write_json
from .model import GPT
from .weights.tensors import write_safetensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model.transformer."  # what PEFT puts before the names of transformers' GPT2LMHeadModel

# What PEFT's LoRA can do and this cannot, as the fields of its configuration that ask for it.
_UNSUPPORTED = (
    "use_dora", "use_rslora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora",
    "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
_INITS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others, PiSSA say, take away from W what is in B A


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 8
    """Of the update of each matrix (r)."""
    alpha: float = 16
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Of what goes into the update, in training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers of the blocks by the end of their name: c_attn, attn.c_proj, c_fc, mlp.c_proj, or c_proj for two."""

    def check(self) -> None:
        """Raise GptfastError for values that no adapter can have."""
        if self.rank < 1:
            raise GptfastError(f"the LoRA rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise GptfastError(f"LoRA's alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise GptfastError(f"LoRA's dropout is {self.dropout}; it must be at least 0 and below 1")


class LoRALinear(nn.Linear):
    """An nn.Linear with a low-rank update beside it; weight and bias are those of `linear`, under the same names."""

    original: Tensor | None

    def __init__(self, linear: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.lora_A = nn.Parameter(linear.weight.new_empty(config.rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        self.register_buffer("original", None, persistent=False)  # the weight before it was merged; None: it is not

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)  # [..., out]
        if self.original is not None:
            return y
        z = F.linear(F.dropout(x, self.dropout, self.training) if self.dropout else x, self.lora_A)  # [..., r]
        return torch.addmm(y.flatten(0, -2), z.flatten(0, -2), self.lora_B.T, alpha=self.scale).view_as(y)

    @torch.no_grad()
    def merge(self) -> None:
        if self.original is None:
            wide = torch.promote_types(self.weight.dtype, torch.float32)
            self.original = self.weight.detach().clone()
            moved = torch.addmm(self.weight.to(wide), self.lora_B.to(wide), self.lora_A.to(wide), alpha=self.scale)
            self.weight.copy_(moved)

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.original is not None:
            self.weight.copy_(self.original)
            self.original = None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.original is not None:  # merged, the state dict is that of a plain model
            del destination[f"{prefix}lora_A"], destination[f"{prefix}lora_B"]


def add_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Give the targeted layers of a GPT, or of the GPT inside `model`, an update to train, and freeze all else, in
    place.

    Parameters keep their names; each targeted layer has lora_A [r, in] and lora_B [out, r] too, in its weight's type
    and device. What the model computes is the same bit for bit until it is trained. Raises GptfastError for targets
    that are not linear layers of the blocks, a rank above theirs, and a model that has LoRA already.
    """
    config.check()
    gpt = _gpt(model)
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise GptfastError("the model has LoRA layers already; remove_lora(model) first")
    layers = {name: module for name, module in gpt.named_modules() if name.startswith("h.")}
    chosen: dict[str, nn.Linear] = {}
    for target in config.targets:
        found = {n: m for n, m in layers.items() if f".{n}".endswith(f".{target}") and isinstance(m, nn.Linear)}
        if not found:
            raise GptfastError(f"no layer to give LoRA is called {target!r}; choose among {', '.join(_linear(layers))}")
        chosen.update(found)
    for name, linear in chosen.items():
        if config.rank > (most := min(linear.in_features, linear.out_features)):
            raise GptfastError(f"the LoRA rank is {config.rank}; that of {name} is {most} at most")
    if not chosen:
        raise GptfastError(f"LoRA has no targets; choose among {', '.join(_linear(layers))}")
    model.requires_grad_(False)
    for name, linear in chosen.items():
        parent, _, leaf = name.rpartition(".")
        setattr(gpt.get_submodule(parent), leaf, LoRALinear(linear, config))


def remove_lora(model: nn.Module) -> None:
    """Put plain linear layers back, with their weights as they are, merged or original; all parameters train."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, LoRALinear):
                plain = nn.Linear.__new__(nn.Linear)  # without weights of its own, drawn at random
                nn.Module.__init__(plain)
                plain.in_features, plain.out_features = module.in_features, module.out_features
                plain.weight = module.weight
                plain.register_parameter("bias", module.bias)
                setattr(parent, name, plain)
    model.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Add s B A to the weights, computed in fp32 and rounded once: the layers cost what plain ones do, and the model is
    saved as any other. The original weights are kept beside them, so that `unmerge_lora` gives them back bit for bit.
    Does nothing to a model without LoRA, or merged already.
    """
    for _, layer in _layers(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Undo `merge_lora`, exactly."""
    for _, layer in _layers(model):
        layer.unmerge()


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All A and B, in the order of the layers."""
    return [parameter for _, layer in _layers(model) for parameter in (layer.lora_A, layer.lora_B)]


def save_lora(model: nn.Module, folder: str | Path, base: str = "") -> None:
    """Write the adapters as PEFT does, adapter_config.json and adapter_model.safetensors: PeftModel.from_pretrained
    puts them on a GPT2LMHeadModel.

    base: what they belong on, a folder or a name on the hub. Names are those of the GPT; what else `model` has, such as
    a classification head, is not written. Raises GptfastError for a model without LoRA.
    """
    layers = dict(_layers(model))
    if not layers:
        raise GptfastError("the model has no LoRA layers to save; add_lora(model, LoRAConfig()) first")
    first = next(iter(layers.values()))
    rank = first.lora_A.shape[0]
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": first.scale * rank, "lora_dropout": first.dropout, "bias": "none", "inference_mode": True,
        "target_modules": _targets(_gpt(model), layers), "fan_in_fan_out": True,
    }  # fmt: skip
    make_folder(Path(folder))
    with atomic_path(Path(folder) / WEIGHTS) as temporary:
        write_safetensors(temporary, tensors, {"format": "pt"})
    write_json(Path(folder) / CONFIG, config)


def load_lora(model: nn.Module, folder: str | Path) -> LoRAConfig:
    """`add_lora` with the adapters in a folder that `save_lora` or PEFT wrote; returns what they are.

    Raises GptfastError for a folder that is damaged, asks for what this LoRA cannot do (DoRA, ranks that differ, ...),
    or does not fit the model, which is not changed then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / CONFIG
    values = read_json(path, "peft_type", "r", "lora_alpha")
    if values["peft_type"] != "LORA" or values.get("bias", "none") != "none":
        raise GptfastError(f"{path} describes {values['peft_type']} with bias {values.get('bias')!r}, not plain LoRA")
    asked = [name for name in _UNSUPPORTED if values.get(name)]
    if (init := values.get("init_lora_weights")) not in _INITS:
        asked.append(f"init_lora_weights = {init!r}")
    if asked:
        raise GptfastError(f"{path} asks for {', '.join(asked)}, which gptfast's LoRA does not have")
    rank, alpha, dropout = values["r"], values["lora_alpha"], values.get("lora_dropout", 0.0)
    if not isinstance(rank, int) or not all(isinstance(number, (int, float)) for number in (alpha, dropout)):
        said = f"r = {rank!r}, lora_alpha = {alpha!r}, lora_dropout = {dropout!r}"
        raise GptfastError(f"{path} is damaged: it says {said}, which are not numbers; restore it")
    try:
        tensors = load_file(Path(folder) / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise GptfastError(f"cannot read {Path(folder) / WEIGHTS}: {error}") from None
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    gpt = _gpt(model)
    linears = {name: m for name, m in gpt.named_modules() if name.startswith("h.") and isinstance(m, nn.Linear)}
    targets = {name.rsplit(".lora_", 1)[0] for name in found}
    wanted: dict[str, tuple[int, ...]] = {}
    for name in sorted(targets & set(linears)):
        wanted[f"{name}.lora_A.weight"] = (rank, linears[name].in_features)
        wanted[f"{name}.lora_B.weight"] = (linears[name].out_features, rank)
    odd = set(found) ^ set(wanted) or {n for n, shape in wanted.items() if found[n].shape != shape}
    if odd or not found:
        raise GptfastError(f"{folder} does not fit this model: {', '.join(sorted(odd)[:5]) or 'it has no adapters'}")
    names = tuple(_targets(gpt, targets))
    config = LoRAConfig(rank, alpha, dropout, names)
    add_lora(model, config)
    with torch.no_grad():
        for name, layer in _layers(model):
            layer.lora_A.copy_(found[f"{name}.lora_A.weight"])
            layer.lora_B.copy_(found[f"{name}.lora_B.weight"])
    return config


def _gpt(model: nn.Module) -> GPT:
    for module in model.modules():
        if isinstance(module, GPT):
            return module
    raise GptfastError(f"LoRA is for a GPT or a model with one inside, not for a {type(model).__name__}")


def _layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The LoRA layers by their names in the GPT."""
    return ((name, module) for name, module in _gpt(model).named_modules() if isinstance(module, LoRALinear))


def _linear(layers: dict[str, nn.Module]) -> list[str]:
    """What the linear layers of the blocks are called in each block: attn.c_attn, mlp.c_fc, ..."""
    return list(dict.fromkeys(n.split(".", 2)[2] for n, m in layers.items() if isinstance(m, nn.Linear)))


def _targets(gpt: GPT, names: Any) -> list[str]:
    """The shortest targets that mean exactly the layers `names`: ends of names where they suffice, else the names."""
    blocks = {n for n, m in gpt.named_modules() if n.startswith("h.") and isinstance(m, nn.Linear)}
    ends = sorted({n.split(".", 2)[2] for n in names})
    return ends if {n for n in blocks if n.split(".", 2)[2] in ends} == set(names) else sorted(names)
