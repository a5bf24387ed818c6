"""Models on disk in Hugging Face's layout: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import GPTConfig
from .errors import GptfastError
from .files import atomic_path, read_json, write_json
from .model import GPT

# Hugging Face's GPT-2 keeps these matrices as [in, out] (its Conv1D), gptfast as [out, in].
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def _hf_config(config: GPTConfig) -> dict[str, Any]:
    dropout = config.dropout
    eot = config.vocab_size - 1 if config.vocab_size == 50257 else None
    if any(config.windows):
        # Banded attention is no GPT-2: with neither its settings nor its tensor names (see `to_hf`), transformers
        # cannot take the model for one and compute something else.
        return {"model_type": "gptfast", "architectures": ["GPT"], "gptfast": config.to_dict()}
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size, "n_positions": config.context_length, "n_layer": config.n_layer,
        "n_head": config.n_head, "n_embd": config.n_embd, "activation_function": "gelu_new",
        "layer_norm_epsilon": config.layer_norm_eps, "tie_word_embeddings": config.tie_weights,
        "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout, "bos_token_id": eot, "eos_token_id": eot,
        "gptfast": config.to_dict(),
    }  # fmt: skip


def read_config(path: Path) -> GPTConfig:
    """The configuration in a Hugging Face config.json. Raises GptfastError for what is no GPT-2."""
    values = read_json(path, "model_type")
    if "gptfast" in values:
        return GPTConfig.from_dict(values["gptfast"])
    missing = {"vocab_size", "n_positions", "n_layer", "n_head", "n_embd"} - set(values)
    if values["model_type"] == "gpt2" and missing:
        raise GptfastError(f"{path} does not say {', '.join(sorted(missing))}; copy it again")
    if values["model_type"] != "gpt2":
        raise GptfastError(f"{path} describes a {values['model_type']!r} model; gptfast reads GPT-2 models")
    if values.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise GptfastError(f"{path} asks for the activation {values['activation_function']!r}; gptfast has gelu_new")
    if values.get("n_inner") not in (None, 4 * values["n_embd"]):
        raise GptfastError(f"{path} asks for n_inner = {values['n_inner']}; gptfast's MLP is 4 n_embd wide")
    return GPTConfig(
        values["vocab_size"], values["n_positions"], values["n_layer"], values["n_head"], values["n_embd"],
        dropout=values.get("resid_pdrop", 0.1), tie_weights=values.get("tie_word_embeddings", True),
        layer_norm_eps=values.get("layer_norm_epsilon", 1e-5),
    )  # fmt: skip


def to_hf(model: GPT) -> dict[str, Tensor]:
    """The model's tensors under the names and in the shapes of transformers' GPT2LMHeadModel; absent biases become
    zeros.
    """
    prefix = "gptfast." if any(model.config.windows) else "transformer."
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            if not model.config.tie_weights:
                state[name] = tensor
            continue
        state[prefix + name] = (tensor.T if name.endswith(_TRANSPOSED) else tensor).contiguous()
    for name, tensor in list(state.items()):
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("weight") and bias not in state and (".ln_" in name or name.endswith(_TRANSPOSED)):
            state[bias] = tensor.new_zeros(tensor.shape[-1])
    return state


def from_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The inverse of `to_hf`; the `transformer.` prefix may be absent, and the mask buffers of old files are
    dropped.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    state = {name.removeprefix("transformer.").removeprefix("gptfast."): tensor for name, tensor in state.items()}
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state.get("wte.weight", torch.empty(0))
    result = {}
    for name, shape in shapes.items():
        if name not in state:
            raise GptfastError(f"the weights have no {name!r}; they do not belong to this configuration")
        tensor = state[name].T if name.endswith(_TRANSPOSED) else state[name]
        if tensor.shape != shape:
            raise GptfastError(f"{name} is {list(tensor.shape)} in the file, but the configuration needs {list(shape)}")
        result[name] = tensor.contiguous()
    return result


def save(model: GPT, folder: str | Path) -> None:
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(to_hf(model), temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", _hf_config(model.config))


def load(folder: str | Path) -> GPT:
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise GptfastError(f"{folder} has no {name}; give a folder in Hugging Face's layout")
    config = read_config(folder / "config.json")
    with torch.device("meta"):
        model = GPT(config)
    try:
        tensors = load_file(folder / "model.safetensors")
    except Exception as error:  # safetensors has its own error class for a damaged file
        raise GptfastError(f"{folder / 'model.safetensors'} cannot be read ({error}); copy it again") from error
    model.load_state_dict(from_hf(tensors, config), assign=True)
    if config.tie_weights:
        model.lm_head.weight = model.wte.weight
    return model
