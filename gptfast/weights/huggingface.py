"""Hugging Face's layout: config.json beside model.safetensors or pytorch_model.bin, whole or in shards."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import GPTConfig
from ..errors import GptfastError
from ..files import atomic_path, make_folder, read_json, write_json
from ..model import GPT
from .layout import Layout, arrange, checked_config, export
from .tensors import of_state_dict, write_safetensors

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip

# Old files carry the causal mask. Names are without `transformer.`, which `plain` takes off: not every file has it.
LAYOUT = Layout("Hugging Face", lambda name: (name,), True, re.compile(r"^h\.\d+\.attn\.(masked_)?bias$"))


# transformers' names of the activations that gptfast has, and gptfast's.
_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"}
# Settings of transformers' GPT-2 that change what it computes, and their values in every published GPT-2.
_PLAIN = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def plain(name: str) -> str:
    """A tensor's name without the prefixes of the modules that held the model."""
    return name.removeprefix("_orig_mod.").removeprefix("transformer.").removeprefix("gptfast.")


def config_values(config: GPTConfig) -> dict[str, Any]:
    """config.json for a model."""
    dropout = config.dropout
    eot = config.vocab_size - 1 if config.vocab_size == 50257 else None
    if any(config.windows):
        # Banded attention is no GPT-2: with neither its settings nor its tensor names (see `to_hf`), transformers
        # cannot take the model for one and compute something else.
        return {"model_type": "gptfast", "architectures": ["GPT"], "gptfast": config.to_dict()}
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size, "n_positions": config.context_length, "n_layer": config.n_layer,
        "n_head": config.n_head, "n_embd": config.n_embd, "activation_function": config.activation,
        "layer_norm_epsilon": config.layer_norm_eps, "tie_word_embeddings": config.tie_weights,
        "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout, "bos_token_id": eot, "eos_token_id": eot,
        "gptfast": config.to_dict(),
    }  # fmt: skip


def read_config(path: Path) -> GPTConfig:
    """The configuration in a Hugging Face config.json. Raises GptfastError for what is no GPT-2."""
    values = read_json(path, "model_type")
    ours: dict[str, Any] = values.get("gptfast") or {}
    if not isinstance(ours, dict):
        raise GptfastError(f"{path} is damaged: its 'gptfast' is {reprlib.repr(ours)}; restore it")
    if ours and values["model_type"] == "gptfast":
        return checked_config(str(path), **(GPTConfig().to_dict() | ours))
    if values["model_type"] != "gpt2":
        described = reprlib.repr(values["model_type"])
        raise GptfastError(f"{path} describes a {described} model; gptfast reads GPT-2 models")
    missing = {"vocab_size", "n_positions", "n_layer", "n_head", "n_embd"} - set(values)
    if missing:
        raise GptfastError(f"{path} does not say {', '.join(sorted(missing))}; copy it again")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise GptfastError(f"{path} asks for the activation {reprlib.repr(activation)}; gptfast has {known}")
    for name, plain_value in _PLAIN.items():
        if values.get(name, plain_value) != plain_value:
            asked = reprlib.repr(values[name])
            raise GptfastError(f"{path} asks for {name} = {asked}; gptfast has only {plain_value!r}")
    # What transformers has a name for is in its own fields, which it may have changed since; the rest is in ours.
    config = checked_config(
        str(path), **(ours | {
            "vocab_size": values["vocab_size"], "context_length": values["n_positions"], "n_layer": values["n_layer"],
            "n_head": values["n_head"], "n_embd": values["n_embd"], "dropout": values.get("resid_pdrop", 0.1),
            "tie_weights": values.get("tie_word_embeddings", True),
            "layer_norm_eps": values.get("layer_norm_epsilon", 1e-5), "activation": _ACTIVATIONS[activation],
        })
    )  # fmt: skip
    if values.get("n_inner") not in (None, 4 * config.n_embd):
        asked = reprlib.repr(values["n_inner"])
        raise GptfastError(f"{path} asks for n_inner = {asked}; gptfast's MLP is 4 n_embd wide")
    return config


def to_hf(model: GPT) -> dict[str, Tensor]:
    """The model's tensors under the names and in the shapes of transformers' GPT2LMHeadModel; absent biases become
    zeros.
    """
    return {name: tensor.contiguous() for name, tensor in _views(model).items()}


def _views(model: GPT) -> dict[str, Tensor]:
    """`to_hf`, not contiguous: matrices are the model's own, transposed."""
    prefix = "gptfast." if any(model.config.windows) else "transformer."
    state = export(model, LAYOUT, biases=True)
    if model.config.tie_weights:
        del state["lm_head.weight"]
    return {name if name == "lm_head.weight" else prefix + name: tensor for name, tensor in state.items()}


def from_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The inverse of `to_hf`: a state dict of gptfast.GPT."""
    tensors = of_state_dict({plain(name): tensor for name, tensor in state.items()}, "the state dict")
    arranged = arrange(tensors, LAYOUT, config, "the state dict")
    result = {name: stored.read().contiguous() for name, stored in arranged.items()}
    result.setdefault("lm_head.weight", result["wte.weight"])
    return result


def save(model: GPT, folder: str | Path) -> None:
    """Write config.json and model.safetensors, each whole or not at all, in the memory of one matrix more."""
    folder = Path(folder)
    make_folder(folder)
    with atomic_path(folder / "model.safetensors") as temporary:
        write_safetensors(temporary, _views(model), {"format": "pt"})
    write_json(folder / "config.json", config_values(model.config))
